"""The paper's numbers agree with each other, so a slip of the pen would show."""

import pytest

from vilem_jax.report.paper_tables import (
    TABLE_1,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    WINOGROUND_COUNTS,
)


def test_recalls_of_tables_1_and_2_add_up_to_the_printed_sum():
    rows = [row for _, _, *both in TABLE_1 for row in both if row[0] is not None]
    rows += [row for _, row in TABLE_2]
    assert len(rows) == 17 + 17 - 4 + 4
    for *recalls, total in rows:
        assert len(recalls) == 6
        assert sum(recalls) == pytest.approx(total, abs=0.051)
        assert recalls[:3] == sorted(recalls[:3]) and recalls[3:] == sorted(recalls[3:])


def test_recalls_of_table_3_rise_and_ranks_fall():
    assert len(TABLE_3) == 6
    for _, _, (r1, r5, r10, median) in TABLE_3:
        assert r1 < r5 < r10 and 1 <= median <= 30


def is_share(percent, count):
    """Whether some k of `count` is `percent`, rounded (either way) to a tenth."""
    return any(abs(100 * k / count - percent) < 0.06 for k in range(count + 1))


def test_every_number_of_table_4_is_a_share_of_its_examples():
    for model, row in TABLE_4:
        for percent, count in zip(row, WINOGROUND_COUNTS, strict=True):
            assert is_share(percent, count), (model, percent, count)
    # As printed, the paper's own columns are not.
    ours = dict(TABLE_4)["ViLEM (paper)"]
    assert not is_share(ours[1], WINOGROUND_COUNTS[0])


@pytest.mark.parametrize("model", [model for model, _ in TABLE_4])
def test_parts_of_table_4_make_up_the_whole(model):
    row = dict(TABLE_4)[model]
    for columns in ((0, 1, 2), (3, 4)):
        right = sum(row[i] * WINOGROUND_COUNTS[i] for i in columns) / 400
        assert right == pytest.approx(row[5], abs=0.1)

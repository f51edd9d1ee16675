"""A few mutants of a file of each kind; `tests/fuzz.py` reads more."""

import pytest

from tests import fuzz

TFDS = ("dataset_info.json", "features.json", "array_record")


@pytest.mark.parametrize("name", fuzz.PARSERS)
def test_mutants_are_read_or_refused_in_a_sentence(tmp_path, name):
    if name in TFDS:
        pytest.importorskip("tensorflow_datasets")
    report = fuzz.run(name, 40, tmp_path)
    assert report.faults == []
    assert report.outcomes["refused"] > 5


def test_a_seed_gives_the_same_mutants():
    text = b'{"a": [1, 2], "b": "text"}' * 4
    made = [[fuzz.mutant(text, fuzz.random.Random(i)) for i in range(50)] for _ in "ab"]
    assert made[0] == made[1] and len(set(made[0])) > 40

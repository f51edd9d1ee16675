"""The analytic count against the paper's table, its switches and compiled steps."""

import dataclasses

import jax
import pytest

from tests.tiny import BATCH, CONTRAST_ALONE, tiny_config
from vilem_jax.config.files import load_config
from vilem_jax.planning import compiled, costs

K5 = ("editor.max_edits", "5")
# GFLOP a pair of the paper's shape with nothing saved, by hand from the shapes:
# 257 image tokens, 30 text tokens, 5 edited, width 768, a vocabulary of 30,522.
TABLE = {
    "online ViT": 138.9,
    "momentum ViT": 46.4,
    "clean text": 15.4,
    "local branch": 21.0,
    "global branch": 8.4,
    "editor": 5.4,
    "momentum text": 5.1,
    "contrast": 0.14,
}


def by_part(config) -> dict[str, float]:
    return {part.name: part.total / 1e9 for part in costs.step_costs(config)}


def paper(*settings):
    return load_config("pretrain_cc4m", [K5, *settings])


def test_costs_without_savings_equal_the_papers_table():
    parts = by_part(costs.without_savings(paper()))
    # The table leaves the detection heads out: 30 tokens through a transform, twice.
    detection = parts.pop("detection heads, all words")
    assert detection == pytest.approx(6 * 2 * 30 * (768**2 + 2 * 768) / 1e9)
    assert len(parts) == len(TABLE)
    for (name, value), (start, expected) in zip(
        parts.items(), TABLE.items(), strict=True
    ):
        assert name.startswith(start)
        assert round(value, 2 if expected < 1 else 1) == expected
    assert round(sum(parts.values()), 1) == 240.7


def test_savings_and_a_larger_image_change_the_costs():
    saved = by_part(paper())
    detection = saved.pop("detection heads, all words")
    assert round(sum(saved.values()), 1) == 226.1
    off = by_part(costs.without_savings(paper()))
    lost = {name: off[name] - saved[name] for name in saved}
    image = lost["online ViT, forward and backward"] + lost["momentum ViT, forward"]
    text = lost["clean text, 12 layers"] + lost["momentum text, forward"]
    assert round(image, 1) == 12.9 and round(text, 1) == 1.4
    assert round(lost["editor, frozen, with its head at 5 places"], 1) == 0.3
    large = costs.without_savings(paper(("model.vision.image_size", "384")))
    assert costs.flops(large) / 1e9 - detection == pytest.approx(512.8, rel=3e-4)


def with_compute(config, **changes):
    compute = dataclasses.replace(config.compute, **changes)
    return dataclasses.replace(config, compute=compute)


CASES = {
    "savings on": {},
    "savings off": {
        "compute": {
            "cls_only_last_layer": False,
            "joint_text_pass": False,
            "editor_at_positions": False,
        },
        "loss": {"local_correct": False, "global_detect": False},
    },
    "other widths, last levels, one head, microbatches": {
        "model": {
            "vision": {"width": 48, "mlp_width": 96, "num_layers": 4},
            "text": {"num_layers": 3},
            "num_proofread_layers": 3,
            "levels": "last",
            "heads": "shared",
            "decoder_trains_embeddings": False,
        },
        "train": {"num_microbatches": 4},
    },
    "editor": {"task": "editor"},
    "locked towers": {
        "model": {
            "vision": {"num_trained_layers": 0},
            "text": {"num_trained_layers": 0},
        },
    },
    "last layers train": {
        "model": {
            "vision": {
                "width": 48,
                "mlp_width": 96,
                "num_layers": 4,
                "num_trained_layers": 2,
            },
            "text": {"num_layers": 3, "num_trained_layers": 1},
            "num_proofread_layers": 3,
        },
    },
    "contrast alone": {
        "loss": {**CONTRAST_ALONE, "soft_target_weight": 0.4},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_count_equals_the_compiled_step(name):
    """Within half a percent, so that every product is counted, and no other.

    The tiny model's products are small: a forgotten one shows.
    """
    config = tiny_config(**CASES[name])
    program = compiled.compile_ahead(config, jax.devices()[:1]).program
    assert program.unknown_loops == 0
    counted, expected = program.flops / BATCH, costs.flops(config)
    assert counted == pytest.approx(expected, rel=5e-3)


@pytest.mark.slow
def test_recomputed_work_is_an_upper_bound():
    """The compiler reuses some values: 3 % of the tiny step is not recomputed."""
    config = tiny_config(compute={"recompute": True})
    program = compiled.compile_ahead(config, jax.devices()[:1]).program
    counted = program.flops / BATCH
    plain = costs.flops(with_compute(config, recompute=False))
    assert 1.05 * plain < counted <= costs.flops(config)


def test_an_edit_table_needs_no_editor():
    parts = by_part(paper(("editor.edit_table", "edits.npz")))
    assert not [name for name in parts if "editor" in name]


def test_one_by_one_runs_the_editor_once_per_position():
    together = by_part(costs.without_savings(paper()))
    alone = by_part(costs.without_savings(paper(("editor.masking", "one_by_one"))))
    name = "editor, frozen, with its head at 5 places"
    head = 2 * 5 * (768**2 + 768 * 30522) / 1e9
    assert alone[name] == pytest.approx(5 * (together[name] - head) + head)


def test_cross_pairing_runs_the_branches_twice():
    once, twice = by_part(paper()), by_part(paper(("loss.pairing", "cross")))
    name = "global branch: 6 layers, word head"
    assert 1.4 * once[name] < twice[f"{name}, twice"] < 2 * once[name]
    assert "momentum ViT, seen by the text" in twice


def test_an_editors_run_has_one_part():
    config = load_config("editor")
    (part,) = costs.step_costs(config)
    assert part.backward == 2 * part.forward > 0

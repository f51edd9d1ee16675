"""Bytes against counts by hand, predictions, and devices by name."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import pytest

from tests.tiny import tiny_config
from vilem_jax.config.files import load_config
from vilem_jax.errors import UserError
from vilem_jax.models.attention_kernel import with_attention
from vilem_jax.planning import compiled, memory
from vilem_jax.planning.devices import device_here, find_device
from vilem_jax.planning.gpu_targets import TARGETS
from vilem_jax.planning.plan import collectives, make_plan, predict
from vilem_jax.training.state import abstract_state

PAPER = load_config("pretrain_cc4m", [("editor.max_edits", "5")])


def test_parameters_and_state_of_the_paper():
    count = memory.parameters(PAPER)
    assert round(count["trained"] / 1e6, 1) == 211.7
    assert count["momentum"] == count["trained"]
    assert round(count["frozen editor"] / 1e6, 1) == 109.5
    held = memory.state_bytes(PAPER)
    leaves = jax.tree.leaves(abstract_state(PAPER))
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    names = ("parameters", "momentum parameters", "optimizer's moments", "queues")
    assert sum(held[name] for name in names) == whole - 5 * 4  # counters
    assert held["copies in bfloat16"] == 2 * sum(count.values())


def test_locked_parameters_have_neither_moments_nor_copies():
    model = {"vision": {"num_trained_layers": 1}, "text": {"num_trained_layers": 0}}
    config, plain = tiny_config(model=model), memory.parameters(tiny_config())
    count, held = memory.parameters(config), memory.state_bytes(config)
    assert count["trained"] + count["locked"] == plain["trained"]
    assert count["momentum"] == count["trained"] and "locked" not in plain
    leaves = jax.tree.leaves(abstract_state(config))
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    names = ("parameters", "momentum parameters", "optimizer's moments", "queues")
    assert sum(held[name] for name in names) == whole - 5 * 4  # counters
    assert held["gradients"] == 4 * count["trained"]


def test_activations_of_the_paper():
    """105 MB a pair with fused attention; plain attention adds 57."""
    plain = memory.activation_bytes(PAPER)
    fused = load_config(
        "pretrain_cc4m", [("editor.max_edits", "5"), ("compute.attention", "cudnn")]
    )
    kept = sum(memory.activation_bytes(fused).values())
    assert kept == pytest.approx(105e6, rel=0.03)
    squares = 11 * 12 * 257**2 * 6  # the last block computes [CLS] alone
    assert sum(plain.values()) - kept == squares


def test_recompute_keeps_the_inputs_and_one_layer():
    config = tiny_config(compute={"recompute": True, "cls_only_last_layer": False})
    vision = config.model.vision
    patches = 3 * vision.patch_size**2 * vision.num_patches * 4
    inputs = vision.num_layers * (vision.num_patches + 1) * vision.width * 4
    assert memory.activation_bytes(config)["ViT"] == (
        patches + inputs + memory.layer_bytes(config, vision)
    )


def test_largest_microbatch_just_fits():
    for room in (20e9, 80e9):
        largest = memory.largest_microbatch(PAPER, room, 32)
        a_pair = sum(memory.activation_bytes(PAPER).values())
        lasting = sum(memory.state_bytes(PAPER).values())
        lasting += 64 * memory.batch_bytes(PAPER)
        assert lasting + largest * a_pair <= 0.9 * room
        assert lasting + (largest + 1) * a_pair > 0.9 * room
    assert memory.largest_microbatch(PAPER, 5e9, 32) == 0
    assert memory.microbatches_needed(PAPER, 64, 32) == 1
    assert memory.microbatches_needed(PAPER, 63, 32) == 2
    assert memory.microbatches_needed(PAPER, 0, 32) is None


@pytest.mark.parametrize(
    "name, chips, topology",
    [
        ("h200", 1, ""),
        ("A100-32", 32, ""),
        ("v5e-16", 16, "v5e:4x4"),
        ("v5e:4x4", 16, "v5e:4x4"),
        ("v6e-256", 256, "v6e:16x16"),
        ("v5p-8", 4, "v5p:2x2x1"),  # TensorCores, two a chip
        ("v4-32", 16, "v4:2x2x4"),
        ("cpu", 1, ""),
        ("RTX 4090", 1, ""),
        ("rtx-3090-2", 2, ""),
        ("l40s-8", 8, ""),
    ],
)
def test_device_is_found_by_name(name, chips, topology):
    device = find_device(name)
    assert (device.num_chips, device.topology) == (chips, topology)


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("h20", "no device 'h20', the nearest known is h200; known: h200, h100, a100"),
        ("rtx4080", "the nearest known is rtx4090"),
        ("tpu", "known: .*v5e-N"),
        ("a100-0", "there is no device"),
        ("a100:2x2", "there is no device"),
        ("cpu-4", "there is no device"),
        ("v5e", "there is no slice 'v5e'; known: v5e-1, v5e-4, v5e-8"),
        ("v5e-12", "or a topology of 2 sides such as v5e:4x4"),
        ("v5e:4x4x4", "there is no slice"),
        ("v5p-9", "known: v5p-8, v5p-16"),
        ("", "there is no device ''"),
    ],
)
def test_unknown_device_is_refused(name, sentence):
    with pytest.raises(UserError, match=sentence):
        find_device(name)


def test_attention_of_a_plan_is_the_devices():
    """As a run there would choose it: 57 MB a pair less on an A100."""
    sizes = {}
    for name in ("a100-32", "v5e-16"):
        found = make_plan(PAPER, find_device(name))
        sizes[name] = found["bytes_a_chip"]["activations_a_pair_sum"]
    assert sizes["v5e-16"] - sizes["a100-32"] == 11 * 12 * 257**2 * 6
    forced = with_attention(PAPER, "cudnn")
    with pytest.raises(UserError, match="NVIDIA GPUs, and the device"):
        make_plan(forced, find_device("v5e-16"))


def test_gpus_that_are_not_here_are_hosts_of_eight():
    with pytest.raises(UserError, match=r"name up to 8 .* as a100-16"):
        compiled._gpu_devices(find_device("a100-12"))
    for kind, target in TARGETS.items():
        device = find_device(kind)
        assert device.capability == float("{}.{}".format(*target.capability))
        assert f"device_memory_size: {target.memory}" in target.text()
        # A data sheet's GB; the driver reports a little more or less.
        assert target.memory == pytest.approx(device.memory, rel=0.08)


@pytest.mark.parametrize(
    "kind, count, name",
    [
        ("NVIDIA GeForce RTX 4090", 2, "rtx4090-2"),
        ("NVIDIA L40S", 1, "l40s"),
        ("NVIDIA L4", 1, "l4"),
        ("Tesla T4", 1, "t4"),
        ("NVIDIA H100 80GB HBM3", 8, "h100-8"),
        ("NVIDIA A100-SXM4-80GB", 1, "a100"),
        ("TPU v5 lite", 16, "v5e-16"),
        ("TPU v4", 4, "v4-8"),
        ("TPU v5", 4, "v5p-8"),
    ],
)
def test_devices_of_this_machine_are_found(monkeypatch, kind, count, name):
    platform = "tpu" if kind.startswith("TPU") else "gpu"
    found = SimpleNamespace(device_kind=kind, platform=platform)
    monkeypatch.setattr("jax.devices", lambda: [found])
    monkeypatch.setattr("jax.device_count", lambda: count)
    assert device_here() == find_device(name)
    found.device_kind = "NVIDIA RTX A6000" if platform == "gpu" else "TPU v9"
    with pytest.raises(UserError, match=r"the nearest known|no device 'v9"):
        device_here()


@pytest.mark.parametrize(
    "name, expected", [("h200", 1640), ("a100", 648), ("v5e-1", 409), ("v6e-1", 1335)]
)
def test_prediction_is_the_goal_of_the_peak(name, expected):
    found = predict(PAPER, find_device(name), 5.1e6)
    # The expected numbers leave out the detection heads, a thousandth.
    assert found["pairs_per_second"] == pytest.approx(expected, rel=2e-3)
    hours = 5.1e6 * 20 / found["pairs_per_second"] / 3600
    assert found["hours"] == pytest.approx(hours)
    if name == "h200":
        assert round(found["hours"]) == 17 and math.isclose(found["goal"], 0.5)


def test_collectives_move_gradients_and_keys():
    gradients, keys = collectives(PAPER, 8)
    assert gradients["bytes"] == 4 * memory.parameters(PAPER)["trained"]
    assert keys["bytes"] == 2048 * 256 * 2 * 4  # 4 MB
    assert collectives(PAPER, 1) == []


def test_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="does not divide over 12"):
        make_plan(PAPER, find_device("a100-12"))


def test_sharding_leaves_an_eighth_on_a_chip():
    """In groups of 8 chips; fsdp also gathers whole towers for a step."""
    whole = memory.state_bytes(PAPER, 32)

    def split(how):
        compute = dataclasses.replace(PAPER.compute, sharding=how, fsdp_devices=8)
        return memory.state_bytes(dataclasses.replace(PAPER, compute=compute), 32)

    zero1, fsdp = split("zero1"), split("fsdp")
    assert zero1["optimizer's moments"] == whole["optimizer's moments"] // 8
    assert zero1["parameters"] == whole["parameters"]
    for name in ("parameters", "momentum parameters", "optimizer's moments"):
        assert fsdp[name] == whole[name] // 8
    towers = whole["parameters"] + whole["momentum parameters"]
    assert fsdp["gathered towers"] == towers
    assert fsdp["queues"] == whole["queues"]

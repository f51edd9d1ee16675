"""A split state trains like a replicated one."""

import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from tests.tiny import BATCH, Runner, tiny_batch, tiny_config, tiny_state
from tests.training.test_invariance import assert_same_run, run
from vilem_jax.config.schema import ComputeConfig
from vilem_jax.distributed.mesh import (
    Layout,
    device_put,
    make_layout,
    on_one_device,
    put_batch,
)
from vilem_jax.errors import UserError
from vilem_jax.runs.checkpoints import Checkpoints
from vilem_jax.training.state import state_sharding

COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)\("
)


def split(sharding_name, fsdp_devices, num_microbatches=1):
    return tiny_config(
        compute={"sharding": sharding_name, "fsdp_devices": fsdp_devices},
        train={"num_microbatches": num_microbatches},
    )


@pytest.fixture(scope="module")
def alone():
    return run(tiny_config())


@pytest.mark.slow
@pytest.mark.parametrize(
    "sharding_name, fsdp_devices, num_microbatches",
    [("zero1", 0, 1), ("fsdp", 2, 2)],
)
def test_a_split_state_trains_like_a_replicated_one(
    alone, sharding_name, fsdp_devices, num_microbatches
):
    config = split(sharding_name, fsdp_devices, num_microbatches)
    assert_same_run(run(config, 8), alone)


@pytest.mark.parametrize("sharding_name", ["replicated", "zero1", "fsdp"])
def test_each_device_holds_its_share(sharding_name):
    """For 8 devices in pairs: half of split arrays, small arrays whole."""
    config = split(sharding_name, 2)
    state = Runner(config, 8).init_state(config)

    def share(tree):
        local = sum(x.addressable_data(0).size for x in jax.tree.leaves(tree))
        return local / sum(x.size for x in jax.tree.leaves(tree))

    halves = {
        "replicated": (),
        "zero1": ("opt_state",),
        "fsdp": ("params", "momentum_params", "opt_state"),
    }[sharding_name]
    for name in ("params", "momentum_params", "opt_state", "image_queue"):
        found = share(getattr(state, name))
        assert (0.5 <= found < 0.65) if name in halves else (found == 1.0), name
    assert state.params["temperature"].is_fully_replicated


def collectives(config, num_devices):
    """[(kind, elements, is in a loop)] of the compiled step, scalars left out."""
    runner = Runner(config, num_devices)
    batch = put_batch(tiny_batch(), runner.mesh)
    state = runner.init_state(config)
    text = runner.compiled.lower(state, runner.editor, batch, runner.key).compile()
    found, in_loop = [], False
    for line in text.as_text().splitlines():
        if line.startswith(("%", "ENTRY")):  # a computation begins
            in_loop = "region" in line or "body" in line or "while" in line
        match = COLLECTIVE.search(line)
        if match:
            shapes = re.findall(r"[a-z]\w*\[([\d,]*)\]", match.group(1))
            sizes = [np.prod([int(n) for n in s.split(",") if n]) for s in shapes]
            found.append((match.group(2), int(sum(sizes)), in_loop))
    return [(kind, size, loop) for kind, size, loop in found if size > 1]


@pytest.mark.slow
def test_gradients_are_all_reduced_once_a_step():
    """Four microbatches communicate gradients, sums and keys once, and nothing else."""
    config = tiny_config(train={"num_microbatches": 4})
    state = Runner(config, 2).init_state(config)
    num_params = sum(x.size for x in jax.tree.leaves(state.params))
    found = collectives(config, 2)
    reduced = sum(size for kind, size, _ in found if kind == "all-reduce")
    gathered = sum(size for kind, size, _ in found if kind == "all-gather")
    num_sums = 2 * config.model.embedding_width
    assert num_params - 64 <= reduced <= num_params + num_sums + 64
    assert gathered == 2 * BATCH * config.model.embedding_width
    assert {kind for kind, _, _ in found} == {"all-reduce", "all-gather"}
    assert not any(is_in_loop for *_, is_in_loop in found)


def test_a_checkpoint_of_eight_devices_restores_on_fewer(tmp_path):
    """Split eight ways when written; read split, whole, and on one device."""

    def begin(name, num_devices):
        layout = make_layout(split(name, 0).compute, num_devices)
        state = tiny_state(tiny_config())
        return device_put(state, state_sharding(state, layout))

    state = begin("fsdp", 8)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
    for name, num_devices in (("fsdp", 4), ("zero1", 2), ("replicated", 1)):
        target = begin(name, num_devices)
        with Checkpoints(tmp_path) as checkpoints:
            restored, step = checkpoints.restore_latest(target)
        assert step == 1
        for found, like, wanted in zip(
            *map(jax.tree.leaves, (restored, target, state)), strict=True
        ):
            assert found.sharding.is_equivalent_to(like.sharding, found.ndim)
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    "shape, count, expected",
    [
        ((768, 3072), 8, PartitionSpec(None, "fsdp")),
        ((30522, 768), 8, PartitionSpec(None, "fsdp")),  # 30,522 = 2 x 3 x 5,087
        ((30522, 768), 2, PartitionSpec("fsdp")),
        ((768,), 8, PartitionSpec()),  # small
        ((101, 103), 2, PartitionSpec()),
        ((), 2, PartitionSpec()),
        ((768, 3072), 1, PartitionSpec()),
    ],
)
def test_the_longest_divisible_axis_is_split(shape, count, expected):
    mesh = jax.sharding.AbstractMesh((1, count), ("data", "fsdp"))
    layout = Layout(mesh, "fsdp")
    assert layout.param_specs(jax.ShapeDtypeStruct(shape, "float32")) == expected


@pytest.mark.parametrize("name", ["replicated", "fsdp"])
def test_on_one_device_gives_whole_parameters(name):
    """An evaluation uses them."""
    layout = make_layout(split(name, 0).compute, 8)
    state = tiny_state(tiny_config())
    params = device_put(state, state_sharding(state, layout)).params
    found = on_one_device(params)
    for leaf, wanted in zip(
        jax.tree.leaves(found), jax.tree.leaves(state.params), strict=True
    ):
        assert len(leaf.devices()) == 1
        np.testing.assert_array_equal(leaf, wanted)


def test_devices_that_do_not_divide_raise():
    compute = ComputeConfig(sharding="zero1", fsdp_devices=3)
    with pytest.raises(UserError, match="fsdp_devices=3 does not divide the 8 devices"):
        make_layout(compute, 8)

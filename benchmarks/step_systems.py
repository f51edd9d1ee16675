"""The systems that `step.py` times: functions of the options that return a `System`."""

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import ceilings
import shapes


@dataclass(frozen=True)
class System:
    about: dict
    steps: Callable[[int], float]  # takes N steps, returns seconds
    ceilings: Callable[[], dict[str, float]]  # by the names of `ceilings.LABELS`


def peer_module(path: str):
    spec = importlib.util.spec_from_file_location("torch_vilem", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_peer(options) -> System:
    import torch
    from transformers import BertForMaskedLM

    peer = peer_module(options.peer)
    shape, device = shapes.SHAPES[options.shape], options.device
    if peer.SHAPES[options.shape] != shape:
        sys.exit(f"the peer's shape {options.shape!r} differs from ours")
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    is_cuda = device == "cuda"
    trainer = peer.Trainer(
        shape, lr=1e-5, device=device, autocast=is_cuda, queue_start="full"
    )
    editor = peer.Editor(BertForMaskedLM(trainer.model.text_config)).to(device)
    if is_cuda:
        editor = editor.to(torch.bfloat16)
    if options.compile:
        for model in (trainer.model, trainer.momentum):
            for name in ("encode_image", "encode_text", "proofread"):
                setattr(model, name, torch.compile(getattr(model, name)))
        editor.compile()
    generator = torch.Generator().manual_seed(0)
    batch = peer.random_batch(shape, options.batch, generator, device)

    def steps(count: int) -> float:
        ceilings.wait_for_torch(device)
        start = time.perf_counter()
        for _ in range(count):
            batch["edited_ids"] = editor(batch)
            trainer.step(batch)
        ceilings.wait_for_torch(device)
        return time.perf_counter() - start

    how = "compiled" if options.compile else "eager"
    about = {"torch": torch.__version__, "how": how, "threads": torch.get_num_threads()}
    return System(about, steps, lambda: ceilings.of_torch(options))


def make_ours(options) -> System:
    import jax

    from vilem_jax.distributed.mesh import (
        one_device,
        put_batch,
    )
    from vilem_jax.planning import costs

    shapes.use_device(options.device)
    config = shapes.make_config(
        options, microbatches=options.microbatches, is_plain=True
    )
    layout = one_device()
    state, step = begin_training(config, layout)
    batch = put_batch(shapes.random_batch(config), layout.mesh)

    def steps(count: int) -> float:
        nonlocal state
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(count):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    about = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    about |= {"microbatches": options.microbatches, "attention": options.attention}
    about |= {"xla_flags": os.environ.get("XLA_FLAGS", "")}
    about |= {"gflop_a_pair": costs.flops(costs.without_savings(config)) / 1e9}
    dtype = config.compute.dtype
    return System(about, steps, lambda: ceilings.of_jax(options, dtype))


def begin_training(config, layout, **ids: int):
    """A first state, and `step(state, batch) -> (state, metrics)`, which eats it.

    `ids` are pad_id and mask_id of the vocabulary, if they are not BERT's first ones.

    Compiled once, as a run's (`training/tasks.py`): with shardings written out.
    """
    import jax

    from vilem_jax.distributed.mesh import put_replicated
    from vilem_jax.training import state as states
    from vilem_jax.training.compile import compile_step
    from vilem_jax.training.optimizer import make_schedule
    from vilem_jax.training.step import make_train_step

    graph, editor = make_editor(config, **ids)
    mesh = layout.mesh
    editor = put_replicated(editor, mesh)
    key = put_replicated(jax.random.key(0), mesh)
    shapes = states.abstract_state(config)
    state = jax.jit(
        lambda key: states.init_state(config, states.init_params(config, key)),
        out_shardings=states.state_sharding(shapes, layout),
    )(key)
    schedule = make_schedule(config.optimizer, 1000)
    train_step = compile_step(
        make_train_step(config, schedule, graph, layout=layout), shapes, layout
    )
    return state, lambda state, batch: train_step(state, editor, batch, key)


def make_editor(config, *, pad_id: int = 0, mask_id: int = 4):
    """A masked-language model of the text tower's shape, with random weights."""
    import jax
    import jax.numpy as jnp

    from vilem_jax.editing.editor import FrozenEditor, editor_graph
    from vilem_jax.objectives.editing import TokenTables
    from vilem_jax.training import editor_step

    token = jnp.arange(config.model.text.vocab_size)
    tables = TokenTables(
        is_editable=token > 4,
        is_piece=token < 0,
        is_side=token < 0,
        pad_id=pad_id,
        mask_id=mask_id,
    )
    params = jax.jit(lambda key: editor_step.init_editor_params(config, key))(
        jax.random.key(1)
    )
    return editor_graph(config), FrozenEditor(params, tables)

"""The two systems that `step.py` times: each a function of the options -> `System`."""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class System:
    about: dict
    steps: Callable[[int], float]  # takes so many steps, seconds
    matmul: Callable[[int], float]  # side -> TFLOP/s, the best of five


def best_tflops(side: int, once: Callable[[], None]) -> float:
    once()
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds) / 1e12


def peer_module(path: str):
    spec = importlib.util.spec_from_file_location("torch_vilem", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_peer(options) -> System:
    import torch
    from transformers import BertForMaskedLM

    peer = peer_module(options.peer)
    shape, device = peer.SHAPES[options.shape], options.device
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

    def wait():
        if is_cuda:
            torch.cuda.synchronize()

    def steps(count: int) -> float:
        wait()
        start = time.perf_counter()
        for _ in range(count):
            batch["edited_ids"] = editor(batch)
            trainer.step(batch)
        wait()
        return time.perf_counter() - start

    def matmul(side: int) -> float:
        kind = torch.bfloat16 if is_cuda else torch.float32
        a = torch.randn(side, side, device=device, dtype=kind)

        def once():
            a @ a
            wait()

        return best_tflops(side, once)

    how = "compiled" if options.compile else "eager"
    about = {"torch": torch.__version__, "how": how, "threads": torch.get_num_threads()}
    return System(about, steps, matmul)


def make_ours(options) -> System:
    import jax
    import jax.numpy as jnp

    from vilem_jax import sharding
    from vilem_jax.training import state as states
    from vilem_jax.training.optimizer import make_schedule
    from vilem_jax.training.step import make_train_step

    config = our_config(peer_module(options.peer).SHAPES[options.shape], options)
    layout = sharding.one_device()
    graph, editor = make_editor(config)
    state = jax.jit(
        lambda key: states.initial_state(config, states.initial_params(config, key))
    )(jax.random.key(0))
    train_step = jax.jit(
        make_train_step(
            config,
            make_schedule(config.optimizer, 1000),
            graph,
            pad_id=0,
            mask_id=4,
            layout=layout,
        ),
        donate_argnames="state",
    )
    batch = sharding.put_batch(random_batch(config), layout.mesh)
    key = jax.random.key(0)

    def steps(count: int) -> float:
        nonlocal state
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(count):
            state, _ = train_step(state, editor, batch, key)
        jax.block_until_ready(state)
        return time.perf_counter() - start

    def matmul(side: int) -> float:
        a = jax.random.normal(jax.random.key(0), (side, side), config.compute.dtype)
        multiply = jax.jit(jnp.matmul)
        return best_tflops(side, lambda: jax.block_until_ready(multiply(a, a)))

    about = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    about |= {"microbatches": options.microbatches, "attention": options.attention}
    return System(about, steps, matmul)


def our_config(shape: dict, options):
    """The peer's shape in our words, without dropout and augmentation."""
    from vilem_jax.freeze import freeze

    side = dict(
        width=shape["width"], num_heads=shape["heads"], mlp_width=4 * shape["width"]
    )
    return freeze(
        {
            "augment": {"flip_rate": 0.0, "num_ops": 0},
            "data": {"text_length": shape["length"]},
            "model": {
                "vision": {
                    "image_size": shape["image"],
                    "patch_size": shape["patch"],
                    "num_layers": shape["vision"],
                    **side,
                },
                "text": {
                    "vocab_size": shape["vocab"],
                    "num_layers": shape["text"],
                    "max_positions": 512,
                    "dropout_rate": 0.0,
                    **side,
                },
                "embedding_width": shape["embed"],
                "num_proofread_layers": shape["proofread"],
            },
            # Every caption has more words than places: all places are edited.
            "editor": {"edit_rate": 1.0, "max_edits": shape["edits"]},
            "loss": {"queue_length": shape["queue"]},
            "train": {
                "batch_size": options.batch,
                "num_microbatches": options.microbatches,
            },
            "compute": {
                "dtype": "float32" if options.device == "cpu" else "bfloat16",
                "attention": options.attention,
            },
        }
    )


def make_editor(config):
    """A masked-language model of the text tower's shape, with random weights."""
    import jax
    import jax.numpy as jnp

    from vilem_jax.evaluation.caption_edits import FrozenEditor
    from vilem_jax.objectives.editing import WordTables
    from vilem_jax.training import masked_language

    token = jnp.arange(config.model.text.vocab_size)
    tables = WordTables(is_word=token > 4, is_piece=token < 0, is_side=token < 0)
    params = jax.jit(lambda key: masked_language.initial_editor_params(config, key))(
        jax.random.key(1)
    )
    return masked_language.editor_graph(config), FrozenEditor(params, tables)


def random_batch(config) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    size, side = config.train.batch_size, config.model.vision.image_size
    length = config.data.text_length
    tokens = rng.integers(5, config.model.text.vocab_size, (size, length))
    tokens[:, 0], tokens[:, -1] = 2, 3
    return {
        "pixels": rng.integers(0, 256, (size, side, side, 3), dtype=np.uint8),
        "tokens": tokens.astype(np.int32),
        "sample_id": np.arange(size, dtype=np.int32),
        "image_id": np.arange(size, dtype=np.int32),
        "is_bad": np.zeros(size, bool),
    }

"""The models that benchmarks run, with random weights, and batches of noise."""

import numpy as np

# By the PyTorch peer's names, which has the same shapes (`step.py` checks them).
SHAPES = {
    "paper": dict(
        image=256, patch=16, width=768, heads=12, vision=12, text=12, proofread=6,
        vocab=30522, length=30, edits=5, queue=65536, embed=256,
    ),
    "small": dict(
        image=128, patch=16, width=384, heads=6, vision=6, text=6, proofread=3,
        vocab=30522, length=24, edits=4, queue=4096, embed=256,
    ),
    # To try a benchmark; its numbers mean nothing.
    "case": dict(
        image=32, patch=8, width=32, heads=4, vision=7, text=5, proofread=4,
        vocab=97, length=12, edits=3, queue=10, embed=16,
    ),
}  # fmt: skip


def add_options(parser, *, batch: int) -> None:
    """The options of every benchmark of a model."""
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--attention", choices=("xla", "cudnn"), default="xla")
    parser.add_argument(
        "--matmul", type=int, default=2048, help="ceiling: side of the matrices"
    )
    parser.add_argument(
        "--copy", type=float, default=0.25, help="ceiling: GB that a copy reads"
    )


def use_device(name: str) -> None:
    """Restricts JAX to platform `name`; call it before JAX is used."""
    import jax

    jax.config.update("jax_platforms", name)


def make_config(
    options, *, microbatches: int = 1, image_size: int = 0, is_plain: bool = False
):
    """The config of `options.shape`, float32 on a CPU and bfloat16 on CUDA.

    Args:
      options: of `add_options`.
      image_size: pixels a side, instead of the shape's.
      is_plain: no dropout and no augmentation.
    """
    from vilem_jax.config.freeze import freeze

    shape = SHAPES[options.shape]
    return freeze(
        {
            "augment": {"flip_rate": 0.0, "num_ops": 0} if is_plain else {},
            "data": {"text_length": shape["length"]},
            "model": _model(shape, image_size or shape["image"], is_plain),
            # Every caption has more editable tokens than `max_edits`: all are edited.
            "editor": {"edit_rate": 1.0, "max_edits": shape["edits"]},
            "loss": {"queue_length": shape["queue"]},
            "train": {"batch_size": options.batch, "num_microbatches": microbatches},
            "compute": {
                "dtype": "float32" if options.device == "cpu" else "bfloat16",
                "attention": options.attention,
            },
        }
    )


def _model(shape: dict, image_size: int, is_plain: bool) -> dict:
    side = dict(
        width=shape["width"], num_heads=shape["heads"], mlp_width=4 * shape["width"]
    )
    return {
        "vision": {
            "image_size": image_size,
            "patch_size": shape["patch"],
            "num_layers": shape["vision"],
            **side,
        },
        "text": {
            "vocab_size": shape["vocab"],
            "num_layers": shape["text"],
            "max_positions": 512,
            "dropout_rate": 0.0 if is_plain else 0.1,
            **side,
        },
        "embedding_width": shape["embed"],
        "num_proofread_layers": shape["proofread"],
    }


def make_encoder(config, *, batch_size: int):
    """The project's `Encoder` with random weights; [PAD] is 0, words are above 4."""
    from types import SimpleNamespace

    import jax

    from vilem_jax.data.tokenizer import Vocabulary
    from vilem_jax.evaluation import encoding
    from vilem_jax.training.state import init_params

    size = config.model.text.vocab_size
    token = np.arange(size)
    vocabulary = Vocabulary(size, 0, 1, 2, 3, 4, token > 4, token < 0)
    params = jax.jit(lambda key: init_params(config, key))(jax.random.key(0))
    tokenizer = SimpleNamespace(vocabulary=vocabulary)
    return encoding.make_encoder(config, params, tokenizer, batch_size=batch_size)


def random_pixels(count: int, side: int) -> np.ndarray:
    """uint8 [N, side, side, 3]."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def random_tokens(config, count: int) -> np.ndarray:
    """Captions of full length, int32 [N, L]."""
    rng = np.random.default_rng(1)
    shape = (count, config.data.text_length)
    tokens = rng.integers(5, config.model.text.vocab_size, shape, dtype=np.int32)
    tokens[:, 0], tokens[:, -1] = 2, 3
    return tokens


def random_batch(config) -> dict[str, np.ndarray]:
    """A host batch of the train step, with the names of `data/batches.py`."""
    size = config.train.batch_size
    return {
        "pixels": random_pixels(size, config.model.vision.image_size),
        "tokens": random_tokens(config, size),
        "sample_id": np.arange(size, dtype=np.int32),
        "image_id": np.arange(size, dtype=np.int32),
        "is_corrupt": np.zeros(size, bool),
    }

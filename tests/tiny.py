"""A tiny ViLEM, its frozen editor and batches of noise, for tests without data.

The vocabulary is numbers: five special tokens, punctuation, "left" and "right", words,
and pieces that continue a word.
"""

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vilem_jax.config.freeze import freeze
from vilem_jax.config.schema import Config
from vilem_jax.distributed.mesh import (
    device_put,
    make_layout,
    put_batch,
    put_replicated,
)
from vilem_jax.editing.editor import FrozenEditor, editor_graph
from vilem_jax.objectives.editing import ChosenPositions, TokenTables, apply_edits
from vilem_jax.training import editor_step
from vilem_jax.training.compile import compile_step
from vilem_jax.training.losses import Samples
from vilem_jax.training.optimizer import make_schedule
from vilem_jax.training.state import (
    init_params,
    init_state,
    state_sharding,
)
from vilem_jax.training.step import make_train_step, make_update

PAD, UNK, CLS, SEP, MASK = range(5)
PUNCTUATION = (5, 6, 7)
LEFT, RIGHT = 8, 9
FIRST_WORD, FIRST_PIECE, VOCABULARY = 8, 80, 97
LENGTH, BATCH, NUM_STEPS = 12, 16, 1000
CONTRAST_ALONE = {
    f"{branch}_{what}": False
    for branch in ("local", "global")
    for what in ("detect", "correct")
}
TOWER = dict(width=32, num_heads=4, mlp_width=64)  # compiles fast

SETTINGS: dict[str, Any] = {
    "model": {
        "vision": {"image_size": 32, "patch_size": 8, "num_layers": 2, **TOWER},
        "text": {
            "vocab_size": VOCABULARY,
            "max_positions": 40,
            "num_layers": 2,
            **TOWER,
        },
        "num_proofread_layers": 1,
        "embedding_width": 16,
        "init_std": 0.0,
    },
    "data": {"text_length": LENGTH},
    "augment": {"num_ops": 1},
    "evaluation": {"text_length": LENGTH},
    "loss": {"queue_length": 20},
    "train": {"batch_size": BATCH},
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
    "compute": {"dtype": "float32"},
}


def tiny_config(**sections: dict) -> Config:
    """The tiny config; `loss={"queue_length": 0}` and the like change sections."""
    return freeze(_merge(SETTINGS, sections))


def _merge(settings: dict, changes: dict) -> dict:
    merged = dict(settings)
    for key, value in changes.items():
        is_section = isinstance(value, dict) and key in settings
        merged[key] = _merge(settings[key], value) if is_section else value
    return merged


def token_tables() -> TokenTables:
    token = jnp.arange(VOCABULARY)
    return TokenTables(
        is_editable=token >= FIRST_WORD,
        is_piece=token >= FIRST_PIECE,
        is_side=(token == LEFT) | (token == RIGHT),
        pad_id=PAD,
        mask_id=MASK,
    )


@cache
def tiny_editor(config: Config) -> FrozenEditor:
    """A masked-language model with random weights, large enough to have favorites."""
    params = jax.jit(lambda key: editor_step.init_editor_params(config, key))(
        jax.random.key(7)
    )
    return FrozenEditor(jax.tree.map(lambda x: 4.0 * x, params), token_tables())


@cache
def _start(model, loss, optimizer) -> Any:
    config = Config(model=model, loss=loss, optimizer=optimizer)
    return jax.jit(lambda key: init_state(config, init_params(config, key)))(
        jax.random.key(3)
    )


def tiny_state(config: Config):
    """A fresh state: a donated one is gone."""
    start = _start(config.model, config.loss, config.optimizer)
    return jax.tree.map(jnp.copy, start)


def tiny_batch(seed: int = 0, size: int = BATCH) -> dict[str, np.ndarray]:
    """Noise images, and captions of 0 to 10 words with pieces and punctuation."""
    rng = np.random.default_rng(seed)
    tokens = np.full((size, LENGTH), PAD, np.int32)
    for row in range(size):
        count = rng.integers(1, LENGTH - 1)
        words = rng.integers(PUNCTUATION[0], VOCABULARY, count)
        tokens[row, : count + 2] = [CLS, *words, SEP]
    tokens[0, :3] = CLS, SEP, PAD  # nothing to edit
    tokens[0, 3:] = PAD
    return {
        "pixels": rng.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8),
        "tokens": tokens,
        "sample_id": (seed * size + np.arange(size)).astype(np.int32),
        "image_id": np.arange(size, dtype=np.int32),
        "is_corrupt": np.zeros(size, bool),
    }


def tiny_samples(seed: int = 0, *, dropout: bool = False) -> Samples:
    """What `preprocess` would make of a batch, with words edited at random.

    Every caption has words here, and every word is edited with another.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(FIRST_WORD, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)
    lengths = rng.integers(4, LENGTH + 1, BATCH)
    position = np.arange(LENGTH)
    tokens[:, 0] = CLS
    tokens[position == lengths[:, None] - 1] = SEP
    tokens[position >= lengths[:, None]] = PAD
    num_positions = 3
    positions = 1 + np.array([rng.permutation(num_positions) for _ in range(BATCH)])
    num_edits = np.minimum(rng.integers(1, num_positions + 1, BATCH), 2)
    chosen = ChosenPositions(
        jnp.asarray(positions, jnp.int32),
        jnp.asarray(np.arange(num_positions) < num_edits[:, None])
        & token_tables().is_editable[np.take_along_axis(tokens, positions, axis=1)],
    )
    words = np.take_along_axis(tokens, positions, axis=1) - FIRST_WORD + 1
    words = words % (VOCABULARY - FIRST_WORD) + FIRST_WORD
    return Samples(
        pixels=jnp.asarray(rng.normal(size=(BATCH, 32, 32, 3)), jnp.float32),
        tokens=jnp.asarray(tokens),
        attention_mask=jnp.asarray(tokens != PAD),
        is_editable=token_tables().is_editable[tokens],
        edits=apply_edits(jnp.asarray(tokens), chosen, jnp.asarray(words, jnp.int32)),
        dropout_seeds=(
            jnp.asarray(rng.integers(0, 2**32, (BATCH, 2), dtype=np.uint32))
            if dropout
            else None
        ),
    )


@cache
def compiled_update(config: Config):
    """`update(state, samples)`, compiled once for all tests that share a config."""
    return jax.jit(make_update(config, make_schedule(config.optimizer, NUM_STEPS)))


class Runner:
    """The step as training runs it: jitted once, with shardings, the state donated."""

    def __init__(self, config: Config, num_devices: int = 1):
        layout = make_layout(config.compute, num_devices)
        self.mesh = layout.mesh
        self.shardings = state_sharding(tiny_state(config), layout)
        needs_editor = config.loss.has_proofreading
        editor_config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, text=_frozen(config))
        )
        graph = editor_graph(editor_config) if needs_editor else None
        editor = FrozenEditor({}, token_tables())
        if needs_editor:
            editor = tiny_editor(editor_config)
        self.editor = put_replicated(editor, self.mesh)
        self.key = put_replicated(jax.random.key(config.seed), self.mesh)
        schedule = make_schedule(config.optimizer, NUM_STEPS)
        step = make_train_step(config, schedule, graph, layout=layout)
        self.compiled = compile_step(step, tiny_state(config), layout)

    def init_state(self, config: Config):
        return device_put(tiny_state(config), self.shardings)

    def step(self, state, batch):
        batch = put_batch(batch, self.mesh)
        return self.compiled(state, self.editor, batch, self.key)


def _frozen(config: Config):
    return dataclasses.replace(config.model.text, dropout_rate=0.0)

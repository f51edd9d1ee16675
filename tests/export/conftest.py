"""A finished run of a tiny untrained model, its files and its embeddings."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from vilem_jax.config.schema import (
    ComputeConfig,
    Config,
    DataConfig,
    EditorConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    TextConfig,
    TrainConfig,
    VisionConfig,
)
from vilem_jax.config.sources import JsonConfig
from vilem_jax.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from vilem_jax.runs.checkpoints import Checkpoints
from vilem_jax.runs.workdir import claim_workdir
from vilem_jax.training.state import abstract_state

WORDS = "a red blue dog cat on sofa ##s ##y , the"
PIECES = [*SPECIAL_TOKENS, *WORDS.split(" ")]
QUEUE_COUNT = 3  # of 4 rows
METRICS = {
    "step": 3,
    "validation/own/t2i/r1": 12.5,
    "validation/own/images": 1000,
    "validation/own/proofread/local/detect/f1": 0.5,
}


def noise(tree):
    """Arrays of the shapes in `tree`, large enough that an activation matters."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        values = 0.3 * rng.standard_normal(leaf.shape)
        return np.asarray(values if leaf.shape else abs(values) + 0.1, leaf.dtype)

    return jax.tree.map(fill, tree)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("machine")
    vocabulary = folder / "vocabulary"
    vocabulary.mkdir()
    (vocabulary / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    sizes = {"width": 16, "num_layers": 2, "num_heads": 2, "mlp_width": 24}
    source = JsonConfig(
        name="own", path=str(folder / "captions.json"), images=str(folder / "images")
    )
    config = Config(
        data=DataConfig(
            tokenizer=str(vocabulary),
            text_length=10,
            train=(source,),
            validation=(source,),
        ),
        model=ModelConfig(
            vision=VisionConfig(image_size=16, patch_size=8, **sizes),
            text=TextConfig(vocab_size=len(PIECES), max_positions=16, **sizes),
            embedding_width=8,
            num_proofread_layers=1,
        ),
        editor=EditorConfig(path=str(folder / "editor"), sha256="ab"),
        loss=LossConfig(queue_length=4),
        train=TrainConfig(batch_size=4),
        evaluation=EvaluationConfig(batch_size=4, text_length=10),
        compute=ComputeConfig(dtype="bfloat16"),
    )
    workdir = folder / "run"
    claim_workdir(workdir, config)
    Tokenizer(vocabulary).save(workdir / "tokenizer")
    state = noise(abstract_state(config))
    state = dataclasses.replace(state, queue_count=np.asarray(QUEUE_COUNT, np.int32))
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(3, state)
    (workdir / "metrics.jsonl").write_text(json.dumps(METRICS) + "\n")
    (workdir / "command.txt").write_text(f"vilem train --workdir={workdir}\n")
    return workdir


@pytest.fixture(scope="session")
def stored(run):
    from vilem_jax.runs.trained_model import read_stored

    return read_stored(run, for_training=True)


@pytest.fixture(scope="session")
def pixels():
    shape = (5, 16, 16, 3)
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


CAPTIONS = [
    "A red dog, on the sofa!",
    "cats",
    "blue-dog / cat",
    "a a a a a a a a a a a",
]


@pytest.fixture(scope="session")
def embeddings(run, pixels):
    """Those of our own model: of the images, and of CAPTIONS."""
    import vilem_jax

    model = vilem_jax.load(run)
    return model.encode_image(list(pixels)), model.encode_text(CAPTIONS)


@pytest.fixture(scope="session")
def left_out(stored):
    """Bytes of parameters that no plain dual encoder has: {name: bytes}."""
    from vilem_jax.weights import tables

    parts = ("local_head", "global_head", "cross_attention")
    return {
        ".".join(map(str, path)): np.asarray(leaf).tobytes()
        for path, leaf in tables.leaves(stored.params)
        if any(part in path for part in parts)
    }


@pytest.fixture(scope="session")
def kept(stored):
    """Bytes of some parameters that it has, the same in every format."""
    params = stored.params
    return {
        "vision bias": params["vision"]["blocks"][1]["mlp"]["expand"]["bias"].tobytes(),
        "text bias": params["text"]["layers"][0]["mlp"]["expand"]["bias"].tobytes(),
    }

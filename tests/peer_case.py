"""Compares one case of the PyTorch peer with our training step, in float32.

    python tests/peer_case.py DIR

DIR holds case.json and case.safetensors, as `torch_vilem.py case DIR` writes them.
Prints the largest error of each kind and its tolerance; the exit code is 1 if an error
is above its tolerance. Needs neither torch nor network.
"""

import dataclasses
import functools
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from flax.nnx.traversals import unflatten_mapping

# The package of this checkout, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vilem_jax.config.schema import (
    ComputeConfig,
    Config,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TextConfig,
    VisionConfig,
)
from vilem_jax.objectives import editing
from vilem_jax.training.losses import Samples
from vilem_jax.training.state import TrainState, init_state
from vilem_jax.training.step import make_update
from vilem_jax.weights import tables
from vilem_jax.weights.formats import huggingface_bert, huggingface_vit
from vilem_jax.weights.formats.vision_names import vision_table
from vilem_jax.weights.tables import Entry

ROOT = Path(__file__).resolve().parents[1]
LOSSES = (
    "i2t",
    "t2i",
    "local_detect",
    "local_correct",
    "global_detect",
    "global_correct",
    "total",
)
TOLERANCE = {  # from the peer's README; for gradients see `gradient_errors`
    "losses": 5e-6,
    "gradients": 1.0,
    "parameters": 5e-6,
    "momentum": 5e-6,
    "queues": 5e-6,
}


def peer_table(shape: dict) -> list[Entry]:
    """The peer's name of every parameter -> its path in our tree."""
    table = []
    for prefix, part in (
        ("vision", vision_table(huggingface_vit.NAMES, shape["vision"])),
        ("text", huggingface_bert.text_table(shape["text"])),
    ):
        table += [Entry(f"{prefix}.{e.name}", (prefix, *e.path), e.form) for e in part]
    for number in range(shape["proofread"]):
        path = ("text", "layers", number, "cross_attention")
        table += huggingface_bert.attention_table(f"cross.{number}", path)
    for head in ("local_head", "global_head"):
        for part in ("detect_transform", "correct_transform"):
            table += huggingface_bert.transform_table(f"{head}.{part}", (head, part))
        table += tables.linear(f"{head}.detect", (head, "detect"))
        table.append(Entry(f"{head}.correct_bias", (head, "correct_bias"), tables.SAME))
    for name in ("image_projection", "text_projection"):
        table += tables.linear(name, (name,))
    return [*table, Entry("temperature", ("temperature",), tables.SAME)]


def to_tree(tensors: dict, kind: str, shape: dict) -> dict:
    """The case's `kind/NAME` tensors as our nested dict, each used once."""
    table = peer_table(shape)
    names = {f"{kind}/{entry.name}" for entry in table}
    held = {name for name in tensors if name.startswith(f"{kind}/")}
    if names != held:
        raise ValueError(f"the table and the case differ in {sorted(names ^ held)}")
    return unflatten_mapping(
        {
            entry.path: np.asarray(entry.form.read(tensors[f"{kind}/{entry.name}"]))
            for entry in table
        }
    )


def config_of(case: dict) -> Config:
    """The config of our step in the case's shape and settings."""
    shape = case["shape"]
    width, heads, mlp_width = shape["width"], shape["heads"], 4 * shape["width"]
    sides = {"width": width, "num_heads": heads, "mlp_width": mlp_width}
    vision = VisionConfig(
        image_size=shape["image"],
        patch_size=shape["patch"],
        num_layers=shape["vision"],
        **sides,
    )
    text = TextConfig(
        vocab_size=shape["vocab"],
        num_layers=shape["text"],
        max_positions=max(64, shape["length"]),
        dropout_rate=0.0,
        **sides,
    )
    return Config(
        model=ModelConfig(
            vision=vision,
            text=text,
            embedding_width=shape["embed"],
            num_proofread_layers=shape["proofread"],
        ),
        loss=LossConfig(
            local_weight=case["local_weight"],
            global_weight=case["global_weight"],
            queue_length=shape["queue"],
            momentum=case["momentum"],
        ),
        optimizer=OptimizerConfig(
            learning_rate=case["lr"],
            weight_decay=case["weight_decay"],
            beta1=case["betas"][0],
            beta2=case["betas"][1],
            eps=case["eps"],
        ),
        compute=ComputeConfig(dtype="float32"),
    )


def samples_of(tensors: dict, index: int) -> Samples:
    """The samples of step `index`; the peer stores pixels as [B, 3, R, R]."""
    step = {
        name.removeprefix(f"step{index}/"): value
        for name, value in tensors.items()
        if name.startswith(f"step{index}/")
    }
    edits = editing.Edits(
        tokens=jnp.asarray(step["edited_ids"], jnp.int32),
        edit_here=jnp.asarray(step["edit_here"]),
        positions=jnp.asarray(step["places"], jnp.int32),
        is_edit=jnp.asarray(step["is_edit"]),
    )
    return Samples(
        pixels=jnp.asarray(step["pixels"].transpose(0, 2, 3, 1)),
        tokens=jnp.asarray(step["ids"], jnp.int32),
        attention_mask=jnp.asarray(step["mask"].astype(bool)),
        is_editable=jnp.asarray(step["is_word"]),
        edits=edits,
        dropout_seeds=None,
    )


@functools.cache
def compiled_update(config: Config):
    """The update of a step, compiled once for all cases of one shape."""
    rate = config.optimizer.learning_rate
    return jax.jit(make_update(config, lambda step: rate))


def compare(folder: Path) -> dict[str, dict[str, float]]:
    """{kind: {name: error}} of one case; `TOLERANCE[kind]` bounds each of them."""
    case = json.loads((folder / "case.json").read_text())
    tensors = safetensors.numpy.load_file(folder / "case.safetensors")
    config = config_of(case)
    shape = case["shape"]
    params = jax.tree.map(jnp.asarray, to_tree(tensors, "params", shape))
    momentum_params = jax.tree.map(jnp.asarray, to_tree(tensors, "momentum", shape))
    state = init_state(config, params)
    state = dataclasses.replace(state, momentum_params=momentum_params)
    update = compiled_update(config)
    errors: dict[str, dict[str, float]] = {"losses": {}}
    for index, expected in enumerate(case["expected"]):
        state, metrics = update(state, samples_of(tensors, index))
        for name, error in loss_errors(metrics, expected).items():
            errors["losses"][f"step {index} {name}"] = error
        if index == 0:
            theirs = to_tree(tensors, "grads0", shape)
            errors["gradients"] = gradient_errors(
                first_gradients(state, config), theirs
            )
    errors["parameters"] = norm_errors(state.params, to_tree(tensors, "after", shape))
    errors["momentum"] = norm_errors(
        state.momentum_params, to_tree(tensors, "after_momentum", shape)
    )
    count = int(state.queue_count)
    errors["queues"] = {
        name: queue_error(queue, count, tensors[f"queue/{name}"])
        for name, queue in (("image", state.image_queue), ("text", state.text_queue))
    }
    return errors


def loss_errors(metrics: dict, expected: dict[str, float]) -> dict[str, float]:
    """Relative errors of a step's losses; 0 is met by 0, and missed by the loss."""
    errors = {}
    for name in LOSSES:
        ours = float(metrics["loss" if name == "total" else f"loss_{name}"])
        # A batch in which nothing is edited has a correction loss of 0.
        errors[name] = abs(ours - expected[name]) / (abs(expected[name]) or 1.0)
    return errors


def queue_error(ours: jax.Array, count: int, theirs: np.ndarray) -> float:
    """The largest difference; the peer's queue has no more rows than it was given."""
    if len(theirs) != count:
        return np.inf
    return float(np.abs(np.asarray(ours[:count]) - theirs).max(initial=0.0))


def first_gradients(state: TrainState, config: Config) -> dict:
    """The gradients of step 0, from the state after it.

    AdamW's first moment starts at 0, so it is (1 - beta1) times the gradient.
    """
    share = 1 - config.optimizer.beta1
    moments = optax.tree.get(state.opt_state, "mu")
    return jax.tree.map(lambda moment: np.asarray(moment) / share, moments)


def norm_errors(ours: dict, theirs: dict) -> dict[str, float]:
    """Per tensor, the norm of the difference over the tensor's norm, if it has one."""
    return {
        name: np.linalg.norm(mine - other) / (np.linalg.norm(other) or 1.0)
        for name, mine, other in _pairs(ours, theirs)
    }


def gradient_errors(ours: dict, theirs: dict) -> dict[str, float]:
    """Per tensor, the norm of the difference over the allowed one: 1 is the tolerance.

    Allowed are 5e-5 of the tensor's norm plus 5e-7 of the norm of all gradients: some
    gradients are zero but for rounding, such as that of an attention's key bias.
    """
    pairs = list(_pairs(ours, theirs))
    total = np.sqrt(sum(np.sum(np.square(other)) for _, _, other in pairs))
    # Without any gradient, none may be above rounding.
    allowed = {
        name: 5e-5 * np.linalg.norm(other) + 5e-7 * (total or 1.0)
        for name, _, other in pairs
    }
    return {
        name: np.linalg.norm(mine - other) / allowed[name]
        for name, mine, other in pairs
    }


def _pairs(ours: dict, theirs: dict):
    """Name and both float64 arrays of each leaf; the trees must have equal leaves."""
    mine, other = dict(tables.leaves(ours)), dict(tables.leaves(theirs))
    if mine.keys() != other.keys():
        raise ValueError(f"the trees differ in {mine.keys() ^ other.keys()}")
    for path, value in other.items():
        name = ".".join(map(str, path))
        yield (
            name,
            np.float64(np.asarray(mine[path]).ravel()),
            np.float64(value.ravel()),
        )


def report(errors: dict[str, dict[str, float]]) -> bool:
    """Prints the largest error of each kind; returns whether all are in tolerance."""
    is_good = True
    for kind, values in errors.items():
        # NaN is the largest error.
        name = max(values, key=lambda name: (np.isnan(values[name]), values[name]))
        error, limit = values[name], TOLERANCE[kind]
        is_within = bool(error <= limit)  # False for NaN too
        is_good &= is_within
        unit = " of what is allowed" if kind == "gradients" else ""
        print(
            f"{kind:<12} {error:.2e}{unit} (limit {limit:.0e}) at {name}"
            + ("" if is_within else "  ABOVE THE LIMIT")
        )
    return is_good


def main() -> int:
    if len(sys.argv) != 2:
        print("usage: python tests/peer_case.py DIR", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    for name in ("case.json", "case.safetensors"):
        if not (folder / name).is_file():
            print(f"{folder} has no {name}: write a case there first", file=sys.stderr)
            return 2
    # By default GPUs multiply float32 as TF32.
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".jax_cache"))
    return 0 if report(compare(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())

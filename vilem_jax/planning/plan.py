"""A run on a device, ahead of both: metrics for `vilem plan`."""

import dataclasses
from pathlib import Path
from typing import Any

from vilem_jax.config.freeze import validate
from vilem_jax.config.schema import Config
from vilem_jax.errors import UserError
from vilem_jax.planning import compiled, costs, memory
from vilem_jax.planning.devices import Device
from vilem_jax.runs.origin import complete_model
from vilem_jax.weights import starts

PAPER_EPOCHS = 20
# Pairs of the packaged pre-training mixtures, as the paper counts them; other configs
# say so by --pairs, for their data may not be here.
KNOWN_PAIRS = {"pretrain_cc1m": 1.0e6, "pretrain_cc4m": 5.1e6, "pretrain_cc13m": 14.1e6}


def with_shapes(config: Config) -> tuple[Config, list[str]]:
    """`config` in the shapes of the checkpoints that are here; sentences on others.

    A name of the hub is not asked for: its shape is taken to be the config's.
    """
    model, notes = config.model, []

    def is_here(name: str, key: str) -> bool:
        if name and not Path(name).expanduser().exists():
            notes.append(
                f"{name} (config.{key}) was not read: its shape is taken to be the "
                "config's"
            )
        return bool(name) and Path(name).expanduser().exists()

    if is_here(model.start_from, "model.start_from"):
        model = complete_model(model, None)
    text, vision = model.text, model.vision
    pickle = model.allow_pickle
    if is_here(text.start_from, "model.text.start_from"):
        text = starts.read_text_config(text.start_from, text, allow_pickle=pickle)
    if is_here(vision.start_from, "model.vision.start_from"):
        name = vision.start_from
        vision = starts.read_vision_config(name, vision, allow_pickle=pickle)
    model = dataclasses.replace(model, text=text, vision=vision)
    config = dataclasses.replace(config, model=model)
    validate(config)
    return config, notes


def make_plan(
    config: Config,
    device: Device,
    *,
    pairs: float | None = None,
    with_compiler: bool = False,
) -> dict[str, Any]:
    """All metrics of a plan, ready for JSON.

    Args:
      config: as it is given; see `with_shapes`.
      pairs: image-caption pairs of the training data; None where nobody knows.
      with_compiler: compile the step too, for TPUs for their topology, else for the
        processors of this machine.

    Raises:
      UserError: the batch does not divide over the chips, or there is no compiler.
    """
    config, notes = with_shapes(config)
    train, chips = config.train, device.num_chips
    if train.batch_size % (chips * train.num_microbatches):
        raise UserError(
            f"config.train.batch_size={train.batch_size} does not divide over {chips} "
            f"chips x config.train.num_microbatches={train.num_microbatches}"
        )
    plan = {
        "device": dataclasses.asdict(device),
        "batch_size": train.batch_size,
        "num_microbatches": train.num_microbatches,
        "parameters": memory.parameters(config),
        "gflop_a_pair": _work(config),
        "bytes_a_chip": _memory(config, device),
        "collectives_a_step": collectives(config, chips),
        "prediction": predict(config, device, pairs),
        "compiled": None,
        "notes": notes + _notes(config),
    }
    if with_compiler:
        plan["compiled"] = _compile(config, device)
    return plan


def _work(config: Config) -> dict[str, Any]:
    parts, plain = costs.step_costs(config), costs.without_savings(config)
    return {
        "parts": {part.name: part.total / 1e9 for part in parts},
        "sum": costs.flops(config) / 1e9,
        "without_savings": costs.flops(plain) / 1e9,
    }


def _memory(config: Config, device: Device) -> dict[str, Any]:
    state, kept = (
        memory.state_bytes(config, device.num_chips),
        memory.activation_bytes(config),
    )
    a_chip = config.train.batch_size // device.num_chips
    metrics = {
        "state": state,
        "state_sum": sum(state.values()),
        "batch": a_chip * memory.batch_bytes(config),
        "activations_a_pair": kept,
        "activations_a_pair_sum": sum(kept.values()),
        "activations": sum(kept.values()) * a_chip // config.train.num_microbatches,
        "memory": device.memory,
        "margin": memory.MARGIN,
    }
    if device.memory is not None:
        largest = memory.largest_microbatch(config, device.memory, device.num_chips)
        metrics["largest_microbatch"] = largest
        metrics["microbatches_needed"] = memory.microbatches_needed(
            config, largest, device.num_chips
        )
    return metrics


def collectives(config: Config, num_chips: int) -> list[dict[str, Any]]:
    """What moves between chips, bytes of one chip a step; nothing for a single one."""
    if num_chips == 1:
        return []
    count = memory.parameters(config)
    trained, momentum = 4 * count["trained"], 4 * count.get("momentum", 0)
    splits = config.compute.sharding if config.task == "vilem" else "replicated"
    moved = {
        "replicated": [("all-reduce", "gradients", trained)],
        "zero1": [
            ("reduce-scatter", "gradients", trained),
            ("all-gather", "parameters, updated", trained),
        ],
        "fsdp": [
            ("reduce-scatter", "gradients", trained),
            ("all-gather", "parameters and momentum copies", trained + momentum),
        ],
    }[splits]
    if config.task == "vilem":
        width = config.model.embedding_width
        keys = 2 * 4 * config.train.batch_size * width
        moved.append(("all-gather", "momentum keys, both ways", keys))
    return [{"kind": kind, "what": what, "bytes": size} for kind, what, size in moved]


def predict(config: Config, device: Device, pairs: float | None) -> dict[str, Any]:
    """Pairs a second where the step reaches the goal's fraction of the chips' peak.

    By the work without savings: a step that saves work is not to look idle. Never a
    measurement.
    """
    if device.peak is None:
        return {}
    plain = costs.flops(costs.without_savings(config))
    ceiling = device.num_chips * device.peak / plain
    speed = device.goal * ceiling
    metrics: dict[str, Any] = {
        "goal": device.goal,
        "ceiling_pairs_per_second": ceiling,
        "pairs_per_second": speed,
        "seconds_a_step": config.train.batch_size / speed,
    }
    if pairs:
        metrics |= {
            "pairs": pairs,
            "epochs": PAPER_EPOCHS,
            "hours": pairs * PAPER_EPOCHS / speed / 3600,
        }
    return metrics


def _compile(config: Config, device: Device) -> dict[str, Any]:
    devices = compiled.devices_of(device)
    metrics: dict[str, Any] = {"platform": device.topology or "cpu, this machine"}
    try:
        step = compiled.compile_step(config, devices)
    except compiled.DoesNotFitError as error:
        return metrics | {
            "fits": False,
            "error": str(error),
            "peak_bytes": error.used,
            "limit_bytes": error.limit,
        }
    return metrics | {"fits": True} | describe(step, config)


def describe(step: compiled.CompiledStep, config: Config) -> dict[str, Any]:
    """A compiled step as metrics for JSON, with the analytic count beside it."""
    program, pairs = step.program, config.train.batch_size
    counted = program.flops * step.num_devices / pairs
    return {
        "num_devices": step.num_devices,
        "argument_bytes": step.argument_bytes,
        "temporary_bytes": step.temporary_bytes,
        "peak_bytes": step.peak_bytes,
        "gflop_a_pair": counted / 1e9,
        "against_the_count": counted / costs.flops(config),
        "against_the_count_without_savings": counted
        / costs.flops(costs.without_savings(config)),
        "matrix_products": program.num_products,
        "unknown_loops": program.unknown_loops,
        "collectives": summary(step),
        "lower_seconds": step.lower_seconds,
        "compile_seconds": step.compile_seconds,
    }


def summary(step: compiled.CompiledStep) -> list[dict[str, Any]]:
    """Collectives by kind, and by whether a loop repeats them; largest first."""
    found: dict[tuple[str, bool], dict[str, Any]] = {}
    for one in step.program.collectives:
        row = found.setdefault(
            (one.kind, one.in_loop),
            {
                "kind": one.kind,
                "in_loop": one.in_loop,
                "times": 0,
                "bytes": 0.0,
                "largest": one.shape,
                "largest_bytes": 0.0,
            },
        )
        row["times"] += one.times
        row["bytes"] += one.bytes * one.times
        if one.bytes > row["largest_bytes"]:
            row["largest"], row["largest_bytes"] = one.shape, one.bytes
    return sorted(found.values(), key=lambda row: -row["bytes"])


def _notes(config: Config) -> list[str]:
    if config.task == "vilem" and config.loss.has_proofreading:
        if not config.editor.edit_table:
            return ["the frozen editor is taken to have the text tower's shape"]
        return ["captions come edited: no editor runs in the step"]
    return []

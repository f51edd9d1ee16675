"""All numbers of `vilem plan`: what a run computes, keeps, sends and takes."""

import dataclasses
from pathlib import Path

from vilem_jax.config.freeze import validate
from vilem_jax.config.schema import Config
from vilem_jax.distributed.mesh import check_batch
from vilem_jax.editing.loading import needs_edits
from vilem_jax.models.attention_kernel import resolve_for, with_attention
from vilem_jax.planning import abstract, compiled, costs, hlo, memory
from vilem_jax.planning.devices import Device
from vilem_jax.training.starting import in_shape
from vilem_jax.typing import JsonObject

PAPER_EPOCHS = 20
# Pairs of the packaged pre-training mixtures, as the paper counts them. For other
# configs the user gives --pairs, as their data may not be on this machine.
KNOWN_PAIRS = {"pretrain_cc1m": 1.0e6, "pretrain_cc4m": 5.1e6, "pretrain_cc13m": 14.1e6}


def with_shapes(config: Config) -> tuple[Config, list[str]]:
    """`config` in the shapes of its checkpoints on this machine; notes on the others.

    A name on the hub is not looked up: its shape is taken to be the config's.
    """
    notes = []

    def is_here(name: str, key: str) -> bool:
        found = Path(name).expanduser().exists()
        if not found:
            notes.append(
                f"{name} (config.{key}) was not read: its shape is taken to be the "
                "config's"
            )
        return found

    config = dataclasses.replace(config, model=in_shape(config.model, reads=is_here))
    validate(config)
    return config, notes


def make_plan(
    config: Config,
    device: Device,
    *,
    pairs: float | None = None,
    with_compiler: bool = False,
) -> JsonObject:
    """All metrics of a plan, ready for JSON.

    Args:
      config: as the user gave it; see `with_shapes`.
      pairs: image-caption pairs of the training data; None if unknown.
      with_compiler: compile the step too, for the topology of TPUs, else for the
        processors of this machine.

    Raises:
      UserError: the batch does not divide over the chips, or there is no compiler.
    """
    config, notes = with_shapes(config)
    config = resolve_for(config, device.capability, device.name)
    train, chips = config.train, device.num_chips
    check_batch(train.batch_size, train.num_microbatches, chips)
    if abstract.uses_editor(config):
        notes.append("the frozen editor is taken to have the text tower's shape")
    elif needs_edits(config):
        notes.append("captions come edited: no editor runs in the step")
    if with_compiler and device.capability and not compiled.can_compile_for(device):
        notes.append(
            "compiled for this machine's processors; to compile for GPUs that are not "
            "here: pip install 'vilem-jax[cuda]' (4.4 GB)"
        )
    return {
        "device": dataclasses.asdict(device),
        "batch_size": train.batch_size,
        "num_microbatches": train.num_microbatches,
        "parameters": memory.parameters(config),
        "gflop_a_pair": {
            "parts": {p.name: p.total / 1e9 for p in costs.step_costs(config)},
            "sum": costs.flops(config) / 1e9,
            "without_savings": costs.flops(costs.without_savings(config)) / 1e9,
        },
        "bytes_a_chip": _memory(config, device),
        "collectives_a_step": collectives(config, chips),
        "prediction": predict(config, device, pairs),
        "compiled": _compile(config, device) if with_compiler else None,
        "notes": notes,
    }


def _memory(config: Config, device: Device) -> JsonObject:
    state = memory.state_bytes(config, device.num_chips)
    activations = memory.activation_bytes(config)
    a_pair = sum(activations.values())
    a_chip = config.train.batch_size // device.num_chips
    metrics = {
        "state": state,
        "state_sum": sum(state.values()),
        "batch": a_chip * memory.batch_bytes(config),
        "activations_a_pair": activations,
        "activations_a_pair_sum": a_pair,
        "activations": a_pair * a_chip // config.train.num_microbatches,
        "memory": device.memory,
        "margin": memory.MARGIN,
    }
    if device.memory is not None:
        largest = memory.largest_microbatch(config, device.memory, device.num_chips)
        needed = memory.microbatches_needed(config, largest, device.num_chips)
        metrics |= {"largest_microbatch": largest, "microbatches_needed": needed}
    return metrics


def collectives(config: Config, num_chips: int) -> list[JsonObject]:
    """What moves between chips, in bytes per chip and step; nothing for one chip."""
    if num_chips == 1:
        return []
    count = memory.parameters(config)  # all of them float32
    trained, momentum = 4 * count["trained"], 4 * count.get("momentum", 0)
    locked = 4 * count.get("locked", 0)
    is_vilem = config.task == "vilem"
    moved = {
        "replicated": [("all-reduce", "gradients", trained)],
        "zero1": [
            ("reduce-scatter", "gradients", trained),
            ("all-gather", "parameters, updated", trained),
        ],
        "fsdp": [
            ("reduce-scatter", "gradients", trained),
            (
                "all-gather",
                "parameters and momentum copies",
                trained + locked + momentum,
            ),
        ],
    }[config.compute.sharding if is_vilem else "replicated"]
    if is_vilem:  # float32 keys of images and texts
        keys = 2 * 4 * config.train.batch_size * config.model.embedding_width
        moved.append(("all-gather", "momentum keys, both ways", keys))
    return [{"kind": kind, "what": what, "bytes": size} for kind, what, size in moved]


def predict(config: Config, device: Device, pairs: float | None) -> JsonObject:
    """Pairs per second if the step reaches the goal's fraction of the chips' peak.

    Never a measurement. It is computed from the work without savings, so that a step
    that saves work does not appear slower. {} if the peak is unknown.
    """
    if device.peak is None:
        return {}
    plain = costs.flops(costs.without_savings(config))
    ceiling = device.num_chips * device.peak / plain
    speed = device.goal * ceiling
    metrics: JsonObject = {
        "goal": device.goal,
        "ceiling_pairs_per_second": ceiling,
        "pairs_per_second": speed,
        "seconds_a_step": config.train.batch_size / speed,
    }
    if pairs:
        hours = pairs * PAPER_EPOCHS / speed / 3600
        metrics |= {"pairs": pairs, "epochs": PAPER_EPOCHS, "hours": hours}
    if config.train.num_steps or pairs:
        steps = config.train.steps_of(int(pairs or 0))
        minutes = steps * config.train.batch_size / speed / 60
        metrics |= {"steps": steps, "minutes": minutes}
    return metrics


def _compile(config: Config, device: Device) -> JsonObject:
    devices = compiled.devices_of(device)
    if devices[0].platform != "gpu":  # for GPUs this machine's processors stand in
        config = with_attention(config, "xla")
    is_cpu = devices[0].platform == "cpu"
    platform = "cpu, this machine" if is_cpu else device.topology or device.name
    metrics: JsonObject = {"platform": platform}
    try:
        step = compiled.compile_ahead(config, devices)
    except compiled.DoesNotFitError as error:
        return metrics | {
            "fits": False,
            "error": str(error),
            "peak_bytes": error.used,
            "limit_bytes": error.limit,
        }
    # The compiler for TPUs refuses what does not fit; the one for GPUs does not.
    fits = is_cpu or device.memory is None or step.peak_bytes <= device.memory
    return metrics | {"fits": fits} | describe(step, config)


def describe(step: compiled.CompiledStep, config: Config) -> JsonObject:
    """A compiled step as metrics for JSON, and its FLOPs over the analytic count."""
    program = step.program
    flops = program.flops * step.num_devices / config.train.batch_size  # per pair
    plain = costs.flops(costs.without_savings(config))
    metrics = {name: value for name, value in vars(step).items() if name != "program"}
    return metrics | {
        "gflop_a_pair": flops / 1e9,
        "against_the_count": flops / costs.flops(config),
        "against_the_count_without_savings": flops / plain,
        "matrix_products": program.num_products,
        "unknown_loops": program.unknown_loops,
        "custom_calls": dict(program.calls.most_common()),
        "collectives": _by_kind(program.collectives),
    }


def _by_kind(collectives: list[hlo.Collective]) -> list[JsonObject]:
    """Collectives by kind, whether a loop repeats them, and whether the device waits.

    Most bytes first.
    """
    found: dict[tuple[str, bool, bool], JsonObject] = {}
    for one in sorted(collectives, key=lambda one: one.bytes, reverse=True):
        row = found.setdefault(
            (one.kind, one.in_loop, one.is_async),
            {
                "kind": one.kind,
                "in_loop": one.in_loop,
                "is_async": one.is_async,
                "times": 0,
                "bytes": 0.0,
                "largest": one.shape,
                "largest_bytes": one.bytes,
            },
        )
        row["times"] += one.times
        row["bytes"] += one.bytes * one.times
    return sorted(found.values(), key=lambda row: row["bytes"], reverse=True)

"""Settings that follow from the data and the machine.

A config file leaves a key to `fit` by the value None, as `configs/own_data.py` does; an
override, or a value in a file that builds on it, wins. The keys are in `config.fitted`
until they have values; the run stores the values, and a resumed run keeps them.
"""

import math
from dataclasses import dataclass, replace

from vilem_jax.config.freeze import flatten, freeze, to_dict
from vilem_jax.config.schema import Config
from vilem_jax.config.towers import CPU_PATCHES_A_SIDE, PATCHES_A_SIDE
from vilem_jax.errors import UserError
from vilem_jax.typing import JsonObject

# Pairs that a run trains on for each CPU core. Meant to be about an hour: MiniLM and a
# locked ViT-S at 126 pixels. Not measured on a machine that did nothing else.
PAIRS_A_CORE = 12_000
# A pretrained image tower is locked below so many pairs. An assumption, not measured:
# a thousand images are too few for its 21 million parameters.
LOCK_BELOW_PAIRS = 100_000
# Pairs of a microbatch for each GB of an accelerator's memory; not measured.
PAIRS_A_GB = 64 / 24


@dataclass(frozen=True)
class Machine:
    platform: str  # "cpu", "gpu" or "tpu"
    num_devices: int  # over all processes
    num_cores: int  # of this process
    memory_gb: float = 0.0  # of one accelerator; 0: not known

    def __str__(self) -> str:
        if self.platform == "cpu":
            return f"{self.num_cores} CPU core{'s' * (self.num_cores > 1)}"
        memory = f" of {self.memory_gb:.0f} GB" * bool(self.memory_gb)
        return f"{self.num_devices} x {self.platform.upper()}{memory}"


def fit(config: Config, num_pairs: int, machine: Machine) -> Config:
    """`config` with a value for each of its `fitted` keys; all others stay as they are.

    Let P be the number of pairs, B the batch, S the steps.

      batch      64 on a CPU and 256 on accelerators, at most P / 8: an epoch has steps
                 enough for a schedule. A power of two, times the devices.
      steps      40 epochs for up to 1,000 pairs, falling with P^0.4 to 10: a small set
                 is seen more often; the best weights are kept. On a CPU at most
                 `PAIRS_A_CORE` pairs a core.
      warm-up    a tenth of the steps, at most the paper's 2,000.
      rate       2e-4 * sqrt(B / 64): towers start from weights, so it is small; AdamW's
                 rate grows with the root of the batch. A tower from scratch: 5e-4, as
                 `flickr8k_cpu` has it.
      momentum   the average spans a twentieth of the steps, 10 to 200 of them: m is
                 1 - 1 / span. 200 is the paper's.
      queue      span / 25 batches: 2 steps of 50 did not collapse, 8 of 100 did
                 (docs/results.md). At most P / 4, so that no pair meets its own old
                 key as a negative, and 65,536; 0 if that is less than a batch.
      validation eight times, each with a checkpoint.
      editor     four epochs, 48 captions a step, from 300 steps to 3,000 (on a CPU 200
                 a core); 0 if the text tower has a masked-language head.
      images     126 or 128 pixels on a CPU, 224 or 256 on accelerators.
      lock       the image tower, below `LOCK_BELOW_PAIRS`, if it starts from weights.
      workers    none on a CPU, whose cores the step needs; else one a core, at most 16.

    Raises:
      UserError: `config.fitted` names a key that is none of these.
    """
    return _with(config, _choose(config, num_pairs, machine))


def keep(config: Config, stored: Config) -> Config:
    """`config` with the values that the run of `stored` has for the fitted keys."""
    values = flatten(stored)
    return _with(config, {key: values[key] for key in config.fitted})


def describe(config: Config, num_pairs: int, num_images: int, machine: Machine) -> str:
    """What `fit` chose, in one line."""
    train, optimizer, loss = config.train, config.optimizer, config.loss
    steps = train.steps_of(num_pairs)
    epochs = steps * train.batch_size / num_pairs
    chosen = [
        f"{steps:,} steps of {train.batch_size} pairs ({epochs:.3g} epochs)",
        f"warm-up {optimizer.warmup_steps}",
        f"learning rate {optimizer.learning_rate:.2g}",
        f"queue {loss.queue_length}",
        f"momentum {loss.momentum:.4g}",
        f"{config.model.vision.image_size} pixels",
        f"image tower {'locked' if config.model.vision.has_locked else 'trained'}",
        f"validation every {config.evaluation.every_steps} steps",
        f"{config.data.num_workers} workers",
    ]
    if config.editor.train_steps:
        chosen.append(f"first an editor in {config.editor.train_steps} steps")
    return (
        f"{num_images:,} images, {num_pairs:,} pairs, {machine}: {', '.join(chosen)}; "
        "--config.KEY=VALUE changes one"
    )


def _choose(config: Config, num_pairs: int, machine: Machine) -> JsonObject:
    wanted, is_cpu = set(config.fitted), machine.platform == "cpu"
    chosen: JsonObject = {}

    def value(key: str, number: float | str) -> int:
        """The value of a key that others follow from: the config's, if it is set."""
        chosen[key] = number if key in wanted else flatten(config)[key]
        return chosen[key]

    batch = value("train.batch_size", _batch_size(num_pairs, machine))
    value("train.num_microbatches", _num_microbatches(batch, machine))
    steps = value("train.num_steps", _most_steps(num_pairs, batch, machine))
    train = replace(config.train, batch_size=batch, num_steps=steps)
    steps = train.steps_of(num_pairs)
    span = min(max(steps // 20, 10), 200)
    queue = min(max(span // 25, 1) * batch, num_pairs // 4, 65536)
    is_locked = bool(config.model.vision.start_from) and num_pairs < LOCK_BELOW_PAIRS
    scratch = not config.model.vision.start_from
    eighth, patch = max(steps // 8, 1), config.model.vision.patch_size
    sides = CPU_PATCHES_A_SIDE if is_cpu else {}
    most = 200 * machine.num_cores if is_cpu else 3000  # on a CPU some ten minutes
    editor = 0 if config.editor.path else min(max(num_pairs // 12, 300), most)
    chosen |= {
        "optimizer.warmup_steps": min(steps // 10, 2000),
        "optimizer.learning_rate": (5e-4 if scratch else 2e-4) * math.sqrt(batch / 64),
        "loss.momentum": 1 - 1 / span,
        "loss.queue_length": queue if queue >= batch else 0,
        "evaluation.every_steps": eighth,
        "checkpoint.every_steps": eighth,
        "log.every_steps": min(max(steps // 50, 1), 50),
        "editor.train_steps": editor,
        "model.vision.image_size": patch * sides.get(patch, PATCHES_A_SIDE),
        "model.vision.num_trained_layers": 0 if is_locked else -1,
        "compute.dtype": "float32" if is_cpu else "bfloat16",
        "data.num_workers": 0 if is_cpu else min(machine.num_cores, 16),
    }
    if unknown := wanted - chosen.keys():
        raise UserError(
            f"config.{min(unknown)} is None, but only these follow from the data: "
            f"{', '.join(sorted(chosen))}"
        )
    return {key: number for key, number in chosen.items() if key in wanted}


def _batch_size(num_pairs: int, machine: Machine) -> int:
    most = min(64 if machine.platform == "cpu" else 256, max(num_pairs // 8, 8))
    batch = 1 << (most.bit_length() - 1)
    return max(batch // machine.num_devices, 1) * machine.num_devices


def _num_microbatches(batch: int, machine: Machine) -> int:
    if machine.platform == "cpu" or not machine.memory_gb:
        return 1
    rows, number = batch // machine.num_devices, 1
    while rows / number > PAIRS_A_GB * machine.memory_gb and rows % (2 * number) == 0:
        number *= 2
    return number


def _most_steps(num_pairs: int, batch: int, machine: Machine) -> int:
    epochs = min(max(40 * (1000 / num_pairs) ** 0.4, 10), 40)
    pairs = epochs * num_pairs
    if machine.platform == "cpu":
        pairs = min(pairs, PAIRS_A_CORE * machine.num_cores)
    return max(round(pairs / batch), 20)


def _with(config: Config, values: JsonObject) -> Config:
    settings = to_dict(config)
    for key, value in values.items():
        *sections, last = key.split(".")
        section = settings
        for name in sections:
            section = section[name]
        section[last] = value
    return freeze(settings | {"fitted": ()})

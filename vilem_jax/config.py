"""One run's settings as frozen dataclasses, and `freeze`, the only reader of ConfigDicts.

Defaults are the paper's values, or what `docs/paper-notes.md` chose where the paper is
silent. Nothing below this file reads a ConfigDict.
"""

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


class UserError(ValueError):
    """What a user can cause and mend: one sentence, shown without a traceback."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where image-caption pairs come from; the key of the mapping is its `name`.

    `kind` "scenes": drawn by the program (`split`, `seed`, `num_images`). "json": an
    annotation file `path` with pictures in `images` (a folder or a zip). "tfds": a TFDS
    data set `path` such as "coco_captions/2014" prepared under `images`. "webdataset":
    tars matching the glob `path`.
    """

    name: str = ""
    kind: Literal["scenes", "json", "tfds", "webdataset"] = "json"
    path: str = ""
    images: str = ""
    split: str = ""  # Karpathy's or TFDS's name, several joined by "+"; "" takes all
    weight: float = 0.0  # share in a mixture; 0 means the number of pairs
    seed: int = 0  # of `scenes`
    num_images: int = 0  # the first so many; 0 means all (for `scenes` its default)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    train: tuple[SourceConfig, ...] = ()
    validation: tuple[SourceConfig, ...] = ()
    tokenizer: str = ""  # folder or hub name that holds vocab.txt
    text_length: int = 30  # tokens, [CLS] and [SEP] included; ALBEF
    cleaning: Literal["albef", "blip"] = "albef"
    captions: Literal["pairs", "one_at_random"] = "pairs"  # what an epoch visits once
    crop_scale: tuple[float, float] = (0.2, 1.0)  # of the area, RandomResizedCrop
    num_workers: int = 0  # processes that read, decode and crop; 0: a thread
    prefetch: int = 2  # batches on their way
    max_bad_fraction: float = 0.01  # of pictures replaced before the run stops


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Device-side augmentation of uint8 pictures, after the crop."""

    flip_rate: float = 0.5
    flip_spares_sides: bool = True  # no flip where the caption says left or right
    num_ops: int = 2  # RandAugment N; 0 turns it off
    level: int = 7  # RandAugment M, of 10
    op_rate: float = 0.5  # each drawn op is applied with this probability
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The ViT; where `start_from` is set, its config.json decides the shape."""

    start_from: str = ""
    image_size: int = 256  # pixels a side
    patch_size: int = 16
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    layer_norm_eps: float = 1e-6
    activation: Literal["gelu", "gelu_tanh"] = "gelu"

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The BERT; where `start_from` is set, its config.json decides all but dropout."""

    start_from: str = ""
    vocab_size: int = 30522
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    max_positions: int = 512
    num_token_types: int = 2
    layer_norm_eps: float = 1e-12
    activation: Literal["gelu", "gelu_tanh"] = "gelu"
    dropout_rate: float = 0.1  # of hidden states and of attention probabilities


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)
    embedding_width: int = 256
    num_proofread_layers: int = 6  # M_1, Table 6
    levels: Literal["uniform", "last"] = "uniform"  # Eq. (11), or Table 7 D
    global_feature: Literal["normed", "unnormed"] = "normed"  # [CLS] after the last LN
    heads: Literal["separate", "shared"] = "separate"  # of the local and global branch
    initial_temperature: float = 0.07


@dataclass(frozen=True, kw_only=True)
class EditorConfig:
    """The frozen masked-language model and how it edits, Sec. 3.2.1."""

    path: str = ""  # folder or hub name of a BertForMaskedLM
    sha256: str = ""  # of its weights; filled in when a run starts
    edit_rate: float = 0.15
    min_edits: int = 1  # where there is a word
    max_edits: int = 8  # K
    num_candidates: int = 20  # top-k
    masking: Literal["together", "one_by_one"] = "together"
    sampling: Literal["likely", "uniform", "vocabulary"] = "likely"  # Table 7 F: last
    keep_pieces: bool = True  # a ## piece is replaced by a ## piece only


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    local_weight: float = 0.8  # lambda_1
    global_weight: float = 0.2  # lambda_2
    local_detect: bool = True  # the four switches of Table 5
    local_correct: bool = True
    global_detect: bool = True
    global_correct: bool = True
    detect_reduction: Literal["sum", "per_edit", "mean"] = "sum"  # over a text's words
    soft_target_weight: float = 0.0  # alpha of ALBEF's momentum targets
    soft_target_ramp_steps: int = 0
    pairing: Literal["online", "cross"] = "online"
    negatives: Literal["global", "device"] = "global"
    queue_length: int = 65536  # N_q
    momentum: float = 0.995  # m
    momentum_dropout: bool = False
    min_temperature: float = 0.001
    max_temperature: float = 0.5

    @property
    def has_local(self) -> bool:
        return self.local_detect or self.local_correct

    @property
    def has_global(self) -> bool:
        return self.global_detect or self.global_correct

    @property
    def has_proofreading(self) -> bool:
        return self.has_local or self.has_global


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    learning_rate: float = 3e-4
    final_learning_rate: float = 1e-5
    warmup_steps: int = 2000
    decay_per: Literal["step", "epoch"] = "step"
    weight_decay: float = 0.02
    decays_class_and_positions: bool = False  # ALBEF decays them and the temperature
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 0.0  # 0: no clipping


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    batch_size: int = 2048  # pairs a step, over all devices
    num_microbatches: int = 1
    num_epochs: float = 20.0  # used where num_steps is 0
    num_steps: int = 0
    max_skipped_in_a_row: int = 3  # non-finite steps before the run stops


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """What changes speed and memory, and rounding at most."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    attention: Literal["xla", "cudnn"] = "xla"  # of the ViT
    recompute: bool = False  # activations of each block in the backward pass
    cls_only_last_layer: bool = True  # exact savings; switches for the equality tests
    joint_text_pass: bool = True
    editor_at_places: bool = True


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    every_steps: int = 0  # 0: only at the end
    batch_size: int = 64
    text_length: int = 35
    num_proofread_images: int = 256


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    every_steps: int = 50
    tensorboard: bool = True


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    every_steps: int = 1000
    keep: int = 2


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run."""

    task: Literal["vilem", "editor"] = "vilem"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    editor: EditorConfig = field(default_factory=EditorConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)


# A resumed run may differ from the one that began in these keys and no others.
MAY_DIFFER_ON_RESUME = (
    "data.num_workers",
    "data.prefetch",
    "data.max_bad_fraction",
    "train.num_steps",
    "train.num_epochs",
    "evaluation",
    "log",
    "checkpoint",
)


def freeze(settings: Mapping[str, Any]) -> Config:
    """Turns nested settings into a validated `Config`.

    Args:
      settings: a ConfigDict or a dict; keys that are absent take the default.

    Raises:
      UserError: an unknown key (with the nearest known one), a value of another type,
        or values that contradict each other.
    """
    config = _build(Config, settings, "config")
    validate(config)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """The nested dict that `freeze` turns back into the same config (JSON-ready)."""
    values = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif f.type == tuple[SourceConfig, ...]:
            value = {source.name: to_dict(source) for source in value}
        elif isinstance(value, tuple):
            value = list(value)
        values[f.name] = value
    return values


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"model.vision.width": 768, ...}."""
    nested = to_dict(config) if dataclasses.is_dataclass(config) else config
    flat = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def differences(before: Config, now: Config) -> list[str]:
    """The keys that a resumed run may not change, as sentences with both values."""
    old, new = flatten(before), flatten(now)
    return [
        f"config.{key} was {old.get(key)!r} and is now {new.get(key)!r}"
        for key in sorted(old | new)
        if old.get(key) != new.get(key)
        and not any(key == k or key.startswith(k + ".") for k in MAY_DIFFER_ON_RESUME)
    ]


def unknown_key(key: str, known: typing.Iterable[str], where: str) -> UserError:
    """The error for a misspelt key, with the nearest known one."""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
    return UserError(f"{where}.{key} is not a setting; {hint}")


def _build(cls: type, settings: Mapping[str, Any], where: str) -> Any:
    if not isinstance(settings, Mapping) and not hasattr(settings, "items"):
        raise UserError(f"{where} must be a section of settings, not {settings!r}")
    fields = {f.name: f.type for f in dataclasses.fields(cls)}
    for key in settings:
        if key not in fields:
            raise unknown_key(key, fields, where)
    return cls(
        **{
            key: _convert(fields[key], value, f"{where}.{key}")
            for key, value in settings.items()
        }
    )


def _convert(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`, one of the types that the dataclasses above use."""
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where)
    if kind == tuple[SourceConfig, ...]:
        return _sources(value, where)
    origin = typing.get_origin(kind)
    if origin is Literal:
        allowed = typing.get_args(kind)
        if value not in allowed:
            raise UserError(f"{where} must be one of {allowed}, not {value!r}")
        return value
    if origin is tuple:
        kinds = typing.get_args(kind)
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            raise UserError(f"{where} must have {len(kinds)} values, not {value!r}")
        return tuple(
            _convert(k, v, f"{where}[{i}]")
            for i, (k, v) in enumerate(zip(kinds, value, strict=True))
        )
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{where} must be {_type_name(kind)}, not {value!r}")
    return value


def _sources(value: Any, where: str) -> tuple[SourceConfig, ...]:
    if not hasattr(value, "items"):
        raise UserError(
            f"{where} must map a name to a source, for example "
            "{'coco': {'kind': 'json', 'path': 'captions.json'}}"
        )
    return tuple(
        dataclasses.replace(_build(SourceConfig, source, f"{where}.{name}"), name=name)
        for name, source in value.items()
    )


def _type_name(kind: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        bool: "True or False",
        str: "text",
    }
    return names.get(kind, str(kind))


def validate(config: Config) -> None:
    """Raises a UserError for the first setting that cannot work, before anything runs."""
    for sentence, is_wrong in _checks(config):
        if is_wrong:
            raise UserError(sentence)


def _checks(config: Config) -> typing.Iterator[tuple[str, bool]]:
    vision, text, train = config.model.vision, config.model.text, config.train
    yield from _range_checks(config)
    yield (
        f"config.model.vision.image_size={vision.image_size} is not a multiple of "
        f"config.model.vision.patch_size={vision.patch_size}",
        vision.image_size % vision.patch_size != 0,
    )
    for name, tower in (("vision", vision), ("text", text)):
        yield (
            f"config.model.{name}.width={tower.width} is not a multiple of "
            f"config.model.{name}.num_heads={tower.num_heads}",
            tower.width % tower.num_heads != 0,
        )
    m1 = config.model.num_proofread_layers
    yield (
        f"config.model.num_proofread_layers={m1} must be at most the number of vision "
        f"layers ({vision.num_layers}) and of text layers ({text.num_layers}); "
        "otherwise Eq. (11) has no level left to choose",
        m1 > min(vision.num_layers, text.num_layers),
    )
    yield (
        f"config.train.batch_size={train.batch_size} does not divide into "
        f"config.train.num_microbatches={train.num_microbatches}",
        train.batch_size % train.num_microbatches != 0,
    )
    queue = config.loss.queue_length
    yield (
        f"config.loss.queue_length={queue} is shorter than config.train.batch_size="
        f"{train.batch_size}; make it 0 (no queue) or at least the batch",
        config.task == "vilem" and 0 < queue < train.batch_size,
    )
    for section, length in (
        ("data", config.data.text_length),
        ("evaluation", config.evaluation.text_length),
    ):
        yield (
            f"config.{section}.text_length={length} is more than "
            f"config.model.text.max_positions={text.max_positions}",
            length > text.max_positions,
        )
    yield (
        f"config.editor.min_edits={config.editor.min_edits} is above "
        f"config.editor.max_edits={config.editor.max_edits}",
        config.editor.min_edits > config.editor.max_edits,
    )


def _range_checks(config: Config) -> typing.Iterator[tuple[str, bool]]:
    rates = {
        "augment.flip_rate": config.augment.flip_rate,
        "augment.op_rate": config.augment.op_rate,
        "data.max_bad_fraction": config.data.max_bad_fraction,
        "editor.edit_rate": config.editor.edit_rate,
        "loss.momentum": config.loss.momentum,
        "loss.soft_target_weight": config.loss.soft_target_weight,
        "model.text.dropout_rate": config.model.text.dropout_rate,
    }
    for key, value in rates.items():
        yield f"config.{key}={value} must lie between 0 and 1", not 0 <= value <= 1
    positive = {
        "train.batch_size": config.train.batch_size,
        "train.num_microbatches": config.train.num_microbatches,
        "model.num_proofread_layers": config.model.num_proofread_layers,
        "model.vision.patch_size": config.model.vision.patch_size,
        "editor.max_edits": config.editor.max_edits,
        "editor.num_candidates": config.editor.num_candidates,
        "evaluation.batch_size": config.evaluation.batch_size,
        "log.every_steps": config.log.every_steps,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "loss.min_temperature": config.loss.min_temperature,
        "model.initial_temperature": config.model.initial_temperature,
    }
    for key, value in positive.items():
        yield f"config.{key}={value} must be more than 0", not value > 0
    yield (
        f"config.data.text_length={config.data.text_length} leaves no room for a word "
        "between [CLS] and [SEP]; use at least 3",
        config.data.text_length < 3,
    )
    low, high = config.data.crop_scale
    yield (
        f"config.data.crop_scale={config.data.crop_scale} must be two fractions of the "
        "area, the smaller first, above 0 and at most 1",
        not 0 < low <= high <= 1,
    )

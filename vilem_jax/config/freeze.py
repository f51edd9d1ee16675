"""From a ConfigDict or a dict to a validated `Config`, and back."""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from math import inf, isfinite
from typing import Any, Literal

from vilem_jax.config.schema import Config, SourceConfig
from vilem_jax.errors import UserError

# A resumed run may differ from the one that began in these keys and no others.
MAY_DIFFER_ON_RESUME = (
    "data.num_workers",
    "data.prefetch",
    "data.max_corrupt_fraction",
    "data.test",
    "train.num_steps",
    "train.num_epochs",
    "compute.sharding",
    "compute.fsdp_devices",
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


def unknown_key(key: str, known: Iterable[str], where: str) -> UserError:
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
        is_sequence = isinstance(value, list | tuple)
        if is_sequence and kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if not is_sequence or len(value) != len(kinds):
            number = "any number of" if kinds[-1] is Ellipsis else len(kinds)
            raise UserError(f"{where} must have {number} values, not {value!r}")
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
    """Raises a UserError for the first setting that cannot work."""
    for sentence, is_wrong in _checks(config):
        if is_wrong:
            raise UserError(sentence)


def _checks(config: Config) -> Iterator[tuple[str, bool]]:
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
    lengths = (0, *config.compute.text_lengths, config.data.text_length)
    yield (
        f"config.compute.text_lengths={config.compute.text_lengths} must rise, from "
        f"above 0 to below config.data.text_length={config.data.text_length}",
        any(low >= high for low, high in pairwise(lengths)),
    )
    yield from _start_checks(config)
    compute = config.compute
    yield (
        f"config.compute.attention='cudnn' cannot compute in {compute.dtype}: set "
        "config.compute.dtype='bfloat16', or attention='xla'",
        compute.attention == "cudnn" and compute.dtype != "bfloat16",
    )
    yield (
        "config.checkpoint.keep_best needs data to judge by: name a source in "
        "config.data.validation, or set it to False",
        config.checkpoint.keep_best and not config.data.validation,
    )
    yield (
        f"config.editor.min_edits={config.editor.min_edits} is above "
        f"config.editor.max_edits={config.editor.max_edits}",
        config.editor.min_edits > config.editor.max_edits,
    )


def _start_checks(config: Config) -> Iterator[tuple[str, bool]]:
    origin = config.model.start_from
    for name in ("vision", "text"):
        tower = getattr(config.model, name).start_from
        yield (
            f"config.model.start_from={origin} brings both towers, and "
            f"config.model.{name}.start_from={tower} brings one: leave one of them "
            "empty",
            bool(origin and tower),
        )
    is_vilem = config.task == "vilem"
    for key, value, rest in (
        ("model.start_from", origin, ""),
        ("checkpoint.keep_best", config.checkpoint.keep_best, False),
        ("compute.text_lengths", config.compute.text_lengths, ()),
        ("compute.sharding", config.compute.sharding, "replicated"),
        ("train.num_microbatches", config.train.num_microbatches, 1),
        ("data.test", config.data.test, ()),
    ):
        yield (
            f"config.{key} has no meaning for the run of an editor "
            f"(config.task='editor'): leave it at {rest!r}",
            value != rest and not is_vilem,
        )


def _range_checks(config: Config) -> Iterator[tuple[str, bool]]:
    flat = flatten(config)
    for key, value in flat.items():
        is_float = isinstance(value, float)
        yield f"config.{key}={value} is not finite", is_float and not isfinite(value)
    for key in _FRACTIONS:
        value = flat[key]
        yield f"config.{key}={value} must lie between 0 and 1", not 0 <= value <= 1
    for key in ("optimizer.beta1", "optimizer.beta2", "model.text.dropout_rate"):
        yield f"config.{key}={flat[key]} must be below 1", flat[key] == 1
    for key in _POSITIVE:
        yield f"config.{key}={flat[key]} must be more than 0", not flat[key] > 0
    for key in _NOT_NEGATIVE:
        yield f"config.{key}={flat[key]} must be 0 or more", not flat[key] >= 0
    yield f"config.seed={config.seed} must be below 2**31", config.seed >= 2**31
    for key in ("data.text_length", "evaluation.text_length"):
        least = 2 + config.data.keeps_sep
        yield (
            f"config.{key}={flat[key]} leaves no room for a word beside [CLS]"
            f"{' and [SEP]' if config.data.keeps_sep else ''}; use at least {least}",
            flat[key] < least,
        )
    yield (
        f"config.loss.min_temperature={config.loss.min_temperature} is above "
        f"config.loss.max_temperature={config.loss.max_temperature}",
        config.loss.min_temperature > config.loss.max_temperature,
    )
    augment = config.augment
    yield (
        f"config.augment.std={augment.std} must be more than 0 in every channel, and "
        "finite",
        not all(0 < value < inf for value in augment.std),
    )
    yield f"config.augment.level={augment.level} is above 10", augment.level > 10
    low, high = config.data.crop_scale
    yield (
        f"config.data.crop_scale={config.data.crop_scale} must be two fractions of the "
        "area, the smaller first, above 0 and at most 1",
        not 0 < low <= high <= 1,
    )


_FRACTIONS = (
    "augment.flip_rate",
    "augment.op_rate",
    "data.max_corrupt_fraction",
    "editor.edit_rate",
    "editor.mask_rate",
    "evaluation.edit_rate",
    "loss.momentum",
    "loss.soft_target_weight",
    "optimizer.beta1",
    "optimizer.beta2",
    "model.text.dropout_rate",
)
_POSITIVE = (
    "train.batch_size",
    "train.num_microbatches",
    "train.max_skipped_in_a_row",
    "model.embedding_width",
    "model.num_proofread_layers",
    "model.initial_temperature",
    "model.text.vocab_size",
    "model.text.max_positions",
    "model.text.num_token_types",
    "model.vision.image_size",
    "model.vision.patch_size",
    *(
        f"model.{tower}.{name}"
        for tower in ("vision", "text")
        for name in ("width", "num_layers", "num_heads", "mlp_width", "layer_norm_eps")
    ),
    "editor.max_edits",
    "editor.num_candidates",
    "evaluation.batch_size",
    "evaluation.num_proofread_images",
    "log.every_steps",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "loss.min_temperature",
    "optimizer.eps",
    "optimizer.muon_rms",
)
_NOT_NEGATIVE = (
    "seed",
    "augment.num_ops",
    "augment.level",
    "data.num_workers",
    "data.prefetch",
    "editor.min_edits",
    "compute.fsdp_devices",
    "evaluation.every_steps",
    "loss.local_weight",
    "loss.global_weight",
    "loss.queue_length",
    "loss.proofread_ramp_steps",
    "loss.soft_target_ramp_steps",
    "model.init_std",
    "optimizer.learning_rate",
    "optimizer.final_learning_rate",
    "optimizer.warmup_steps",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "train.num_epochs",
    "train.num_steps",
)

"""From a ConfigDict or a dict to a validated `Config`, and back."""

import dataclasses
import difflib
import typing
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from math import isfinite
from typing import Annotated, Any, Literal

from vilem_jax.config.schema import Config
from vilem_jax.config.sources import SOURCE_KINDS, SourceConfig
from vilem_jax.errors import UserError
from vilem_jax.typing import JsonObject

# A resumed run may differ from its start in these keys and no others.
MAY_DIFFER_ON_RESUME = (
    "editor.path",  # its SHA-256 may not
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


def freeze(settings: Mapping[str, object]) -> Config:
    """Turns nested settings into a validated `Config`.

    Args:
      settings: a ConfigDict or a dict; absent keys take the default.

    Raises:
      UserError: an unknown key (with the nearest known one), a value of another type,
        or values that contradict each other.
    """
    config = _build(Config, settings, "config")
    validate(config)
    return config


def to_dict(config: Any) -> JsonObject:
    """The nested dict that `freeze` turns back into the same config (JSON-ready)."""
    values = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            value = to_dict(value)
        elif f.type == tuple[SourceConfig, ...]:
            value = {source.name: to_dict(source) for source in value}
        values[f.name] = value
    return values


def flatten(config: Any, prefix: str = "") -> JsonObject:
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
    return UserError(f"{where}.{key} is not a setting; {hint(key, list(known))}")


def hint(name: str, known: list[str]) -> str:
    """The known name that is nearest to a misspelt one, or all."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


def source_class(settings: Any, where: str) -> type[SourceConfig]:
    """The config class of a source's `kind`, "json" if it names none.

    Raises:
      UserError: there is no such kind.
    """
    kind = settings.get("kind", "json") if hasattr(settings, "items") else "json"
    if kind not in tuple(SOURCE_KINDS):  # a tuple: `kind` may be unhashable
        raise UserError(f"{where}.kind must be one of {(*SOURCE_KINDS,)}, not {kind!r}")
    return SOURCE_KINDS[kind]


def _build(cls: type, settings: Any, where: str) -> Any:
    if not hasattr(settings, "items"):  # a ConfigDict is no Mapping
        raise UserError(f"{where} must be a section of settings, not {settings!r}")
    types = {f.name: f.type for f in dataclasses.fields(cls)}
    values = {}
    for key, value in settings.items():
        if key not in types:
            raise unknown_key(key, types, where)
        values[key] = _convert(types[key], value, f"{where}.{key}")
    return cls(**values)


def _convert(kind: Any, value: object, where: str) -> Any:
    """`value` as `kind`, one of the types of the schema's fields."""
    origin = typing.get_origin(kind)
    if origin is Annotated:
        return _convert(kind.__origin__, value, where)
    if kind == tuple[SourceConfig, ...]:
        return _sources(value, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _build(kind, value, where)
    if origin is Literal:
        allowed = typing.get_args(kind)
        if value not in allowed:
            raise UserError(f"{where} must be one of {allowed}, not {value!r}")
        return value
    if origin is tuple:
        return _convert_tuple(typing.get_args(kind), value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{where} must be {_TYPE_NAMES[kind]}, not {value!r}")
    return value


def _convert_tuple(kinds: tuple, value: object, where: str) -> tuple:
    is_sequence = isinstance(value, list | tuple)
    has_any_length = kinds[-1] is Ellipsis
    if is_sequence and has_any_length:
        kinds = kinds[:1] * len(value)
    if not is_sequence or len(value) != len(kinds):
        number = "any number of" if has_any_length else len(kinds)
        raise UserError(
            f"{where} must have {number} values, in brackets and with commas, not "
            f"{value!r}"
        )
    return tuple(
        _convert(kind, part, f"{where}[{i}]")
        for i, (kind, part) in enumerate(zip(kinds, value, strict=True))
    )


def _sources(value: Any, where: str) -> tuple[SourceConfig, ...]:
    if not hasattr(value, "items"):
        raise UserError(
            f"{where} must map a name to a source, for example "
            "{'coco': {'kind': 'json', 'path': 'captions.json'}}"
        )
    sources = []
    for name, settings in value.items():
        key = f"{where}.{name}"
        source = _build(source_class(settings, key), settings, key)
        sources.append(dataclasses.replace(source, name=name))
    return tuple(sources)


_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
}


# ---- settings that contradict each other ----


def validate(config: Config) -> None:
    """Raises UserError for the first setting that cannot work."""
    for problems in (_out_of_bounds(config, "config"), _contradictions(config)):
        if problem := next(problems, None):
            raise UserError(problem)


def _out_of_bounds(section: Any, where: str) -> Iterator[str]:
    """What is not finite or outside its `Range`."""
    for f in dataclasses.fields(section):
        value, key = getattr(section, f.name), f"{where}.{f.name}"
        if dataclasses.is_dataclass(value):
            yield from _out_of_bounds(value, key)
            continue
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, SourceConfig):
                yield from _out_of_bounds(part, f"{key}.{part.name}")
            elif isinstance(part, float) and not isfinite(part):
                yield f"{key}={value} is not finite"
            for bounds in getattr(f.type, "__metadata__", ()):
                if part not in bounds:
                    yield f"{key}={value} must be {bounds}"


def _contradictions(config: Config) -> Iterator[str]:
    flat = flatten(config)

    def show(key: str) -> str:
        return f"config.{key}={flat[key]}"

    data, loss, train, compute = config.data, config.loss, config.train, config.compute
    vision, text = config.model.vision, config.model.text
    yield from _text_length_contradictions(config)
    yield from _start_contradictions(config)
    # A start decides the patch's side, and is checked when it is read.
    if not vision.start_from and vision.image_size % vision.patch_size:
        image, patch = show("model.vision.image_size"), show("model.vision.patch_size")
        near = max(round(vision.image_size / vision.patch_size), 1) * vision.patch_size
        yield f"{image} is not a multiple of {patch}: use {near}"
    for name, tower in (("model.vision", vision), ("model.text", text)):
        if tower.width % tower.num_heads:
            heads = show(f"{name}.num_heads")
            yield f"{show(f'{name}.width')} is not a multiple of {heads}"
        if tower.num_trained_layers > tower.num_layers:
            trained = show(f"{name}.num_trained_layers")
            yield f"{trained} is above {show(f'{name}.num_layers')}"
    if config.model.num_proofread_layers > min(vision.num_layers, text.num_layers):
        yield (
            f"{show('model.num_proofread_layers')} must be at most the number of "
            f"vision layers ({vision.num_layers}) and of text layers "
            f"({text.num_layers}), because Eq. (11) gives each of them a level: use "
            f"{min(max(text.num_layers // 2, 1), vision.num_layers)}"
        )
    low, high = data.crop_scale
    if not 0 < low <= high <= 1:
        yield (
            f"config.data.crop_scale={data.crop_scale} must be two fractions of the "
            "area, the smaller first, above 0 and at most 1"
        )
    batch = show("train.batch_size")
    if train.batch_size % train.num_microbatches:
        whole = train.batch_size // train.num_microbatches * train.num_microbatches
        yield (
            f"{batch} does not divide into {show('train.num_microbatches')}: use "
            f"{whole or train.num_microbatches} pairs a step"
        )
    if config.task == "vilem" and 0 < loss.queue_length < train.batch_size:
        yield (
            f"{show('loss.queue_length')} is shorter than {batch}; make it 0 (no "
            "queue) or at least the batch"
        )
    for least, most in (
        ("loss.min_temperature", "loss.max_temperature"),
        ("editor.min_edits", "editor.max_edits"),
    ):
        if flat[least] > flat[most]:
            yield f"{show(least)} is above {show(most)}"
    if compute.attention == "cudnn" and compute.dtype != "bfloat16":
        yield (
            f"config.compute.attention='cudnn' cannot compute in {compute.dtype}: set "
            "config.compute.dtype='bfloat16', or attention='xla'"
        )
    yield from _validation_contradictions(config)


def _validation_contradictions(config: Config) -> Iterator[str]:
    if config.checkpoint.keep_best and not config.data.validation:
        yield (
            "config.checkpoint.keep_best needs data to judge by: name a source in "
            "config.data.validation, or set it to False"
        )


def _text_length_contradictions(config: Config) -> Iterator[str]:
    longest, keeps_sep = config.model.text.max_positions, config.data.keeps_sep
    for section, length in (
        ("data", config.data.text_length),
        ("evaluation", config.evaluation.text_length),
    ):
        if length < 2 + keeps_sep:
            yield (
                f"config.{section}.text_length={length} leaves no room for a token "
                f"beside [CLS]{' and [SEP]' if keeps_sep else ''}; use at least "
                f"{2 + keeps_sep}"
            )
        if length > longest:
            yield (
                f"config.{section}.text_length={length} is more than "
                f"config.model.text.max_positions={longest}"
            )
    shorter, whole = config.compute.text_lengths, config.data.text_length
    if any(low >= high for low, high in pairwise((0, *shorter, whole))):
        yield (
            f"config.compute.text_lengths={shorter} must rise, from above 0 to below "
            f"config.data.text_length={whole}"
        )


def _start_contradictions(config: Config) -> Iterator[str]:
    origin = config.model.start_from
    vision, text = config.model.vision, config.model.text
    for name, tower in (("vision", vision), ("text", text)):
        if origin and tower.start_from:
            yield (
                f"config.model.start_from={origin} brings both towers, and "
                f"config.model.{name}.start_from={tower.start_from} brings one: leave "
                "one of them empty"
            )
    if config.task == "vilem":
        return
    for key, value, rest in (
        ("model.start_from", origin, ""),
        ("model.vision.num_trained_layers", vision.num_trained_layers, -1),
        ("model.text.num_trained_layers", text.num_trained_layers, -1),
        ("checkpoint.keep_best", config.checkpoint.keep_best, False),
        ("compute.text_lengths", config.compute.text_lengths, ()),
        ("compute.sharding", config.compute.sharding, "replicated"),
        ("train.num_microbatches", config.train.num_microbatches, 1),
        ("data.test", config.data.test, ()),
    ):
        if value != rest:
            yield (
                f"config.{key} has no meaning for the run of an editor "
                f"(config.task='editor'): leave it at {rest!r}"
            )

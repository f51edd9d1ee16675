"""Config files: from a name or a path, and `--config.a.b=value`, to a `Config`.

A config file is Python with a `get_config()` that returns a ConfigDict, usually
`default_config()` with some keys set. Only this module imports ml_collections.
"""

import ast
import inspect
import os
import runpy
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vilem_jax.config.freeze import freeze, hint, source_class, to_dict, unknown_key
from vilem_jax.config.schema import Config
from vilem_jax.errors import UserError
from vilem_jax.typing import JsonObject

Override = tuple[str, str]  # ("optimizer.learning_rate", "1e-4")


# `Any`: the keys of a ConfigDict are known at run time only.
def default_config() -> Any:
    """A ConfigDict with every key at its default, for config files to start from."""
    from ml_collections import ConfigDict

    return ConfigDict(to_dict(Config()))


def packaged_config(name: str, **options: str) -> Any:
    """The ConfigDict of a packaged config, for config files that build on another.

    Args:
      options: parameters of its `get_config`: packaged_config("own_data", data=...).
    """
    return _run_get_config(_find(name), options)


def source(**settings: object) -> Any:
    """A ConfigDict of one source, for `config.data.train.NAME = source(...)`.

    Args:
      settings: `kind`, and fields of that kind in `config/sources.py`, except `name`.
    """
    from ml_collections import ConfigDict

    return ConfigDict(_source_defaults(settings, "source") | settings)


def load_config(
    name_or_file: str,
    overrides: Iterable[Override] = (),
    options: Mapping[str, str] | None = None,
) -> Config:
    """The frozen config of a run.

    Args:
      name_or_file: a packaged config ("scenes"), or the path of your own file (it
        ends in .py or contains a folder).
      overrides: (dotted key, text) pairs; the text is parsed as the type of the value
        that it replaces.
      options: parameters of its `get_config`, as `--data` and `--images` give them.

    Raises:
      UserError: no such config, an error in the file, an unknown key (with the nearest
        known one), a value of another type, or settings that contradict each other.
    """
    settings = _complete(_run_get_config(_find(name_or_file), options or {}))
    # The kind of a source comes first: it decides which other keys the source has.
    for key, text in sorted(overrides, key=lambda o: not o[0].endswith(".kind")):
        _override(settings, key, text)
        keys = {key, "train.num_steps"} if key == "train.num_epochs" else {key}
        settings["fitted"] = [k for k in settings["fitted"] if k not in keys]
    return freeze(settings)


def config_names() -> list[str]:
    """The packaged configs."""
    return sorted(file.stem for file in _packaged_folder().glob("[!_]*.py"))


def _packaged_folder() -> Path:
    """Inside the package once installed; beside it in a checkout."""
    here = Path(__file__).resolve().parents[1]
    inside = here / "configs"
    return inside if inside.is_dir() else here.parent / "configs"


def _find(name_or_file: str) -> Path:
    is_path = name_or_file.endswith(".py") or os.sep in name_or_file
    if is_path:
        file = Path(name_or_file).expanduser()
        if not file.is_file():
            raise UserError(f"there is no config file {name_or_file}")
        return file
    names = config_names()
    if name_or_file not in names:
        raise UserError(
            f"there is no config {name_or_file!r}; {hint(name_or_file, names)} (a file "
            "of your own is given by its path, ending in .py)"
        )
    return _packaged_folder() / f"{name_or_file}.py"


def _run_get_config(file: Path, options: Mapping[str, str]) -> Mapping[str, object]:
    try:
        # An import would leave a __pycache__ beside the user's file.
        get_config = runpy.run_path(str(file)).get("get_config")
        if get_config is None:
            raise UserError(f"{file} has no get_config()")
        if unknown := options.keys() - inspect.signature(get_config).parameters:
            raise UserError(
                f"--{min(unknown).replace('_', '-')} is an option of the config "
                f"own_data: get_config() in {file} has no parameter {min(unknown)}; "
                "change its settings by --config.KEY=VALUE"
            )
        settings = get_config(**options)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_describe(file, error)) from error
    if not hasattr(settings, "items"):
        raise UserError(
            f"get_config() in {file} returned {settings!r}, not a ConfigDict"
        )
    return settings


def _describe(file: Path, error: Exception) -> str:
    """FILE:LINE of the innermost frame in the config file, and the error."""
    line = getattr(error, "lineno", None)
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == str(file):
            line = frame.lineno
    message = str(error).splitlines()[0][:200] if str(error) else ""
    return f"{file}:{line}: {type(error).__name__}: {message}"


def _complete(settings: Mapping[str, object]) -> JsonObject:
    """A plain dict that holds every key, so that each override knows its type."""
    defaults = to_dict(Config())
    complete = _merge(defaults, settings)
    complete["fitted"] = [*complete["fitted"], *_fill(complete, defaults)]
    if "model.vision.image_size" in complete["fitted"]:  # any that fits the patches
        vision = complete["model"]["vision"]
        vision["image_size"] = 16 * vision["patch_size"]
    data = complete["data"] if isinstance(complete["data"], dict) else {}
    for part in ("train", "validation", "test"):
        sources = data.get(part)
        if sources is not None and hasattr(sources, "items"):
            data[part] = {
                name: _merge(_source_defaults(one, f"config.data.{part}.{name}"), one)
                for name, one in sources.items()
            }
    return complete


def _merge(base: JsonObject, settings: Any) -> Any:
    """`base` updated by `settings`; `freeze` refuses what does not fit."""
    if not hasattr(settings, "items"):
        return settings
    merged = dict(base)
    for key, value in settings.items():
        inner = base.get(key)
        merged[key] = _merge(inner if isinstance(inner, dict) else {}, value)
    return merged


def _fill(settings: JsonObject, defaults: JsonObject, prefix: str = "") -> list[str]:
    """Puts the default in place of each None, and returns their keys, for `fit`."""
    keys = []
    for key, default in defaults.items():
        value = settings.get(key)
        if value is None:
            settings[key] = default
            keys.append(prefix + key)
        elif isinstance(value, dict) and isinstance(default, dict):
            keys += _fill(value, default, f"{prefix}{key}.")
    return keys


def _source_defaults(settings: Any, where: str) -> JsonObject:
    """All keys of a source of the kind that `settings` names, at their defaults."""
    return to_dict(source_class(settings, where)())


def _override(settings: JsonObject, key: str, text: str) -> None:
    value, section, where = settings, {}, "config"
    parts = key.split(".")
    for part in parts:
        if not isinstance(value, dict):
            raise UserError(f"{where} is one value, so --config.{key} has no meaning")
        if not value:
            raise UserError(f"{where} is empty; name sources in a config file")
        if part not in value:
            raise unknown_key(part, list(value), where)
        section, value, where = value, value[part], f"{where}.{part}"
    if parts[-1] == "kind":
        _change_kind(section, text, where.removesuffix(".kind"))
    else:
        section[parts[-1]] = _parse(text, value, where)


def _change_kind(source: JsonObject, kind: str, where: str) -> None:
    """Gives `source` the keys of another kind; those that a file sets stay."""
    unset = _source_defaults(source, where).items()
    kept = {key: value for key, value in source.items() if (key, value) not in unset}
    source.clear()
    source.update(_source_defaults({"kind": kind}, where) | kept | {"kind": kind})


def _parse(text: str, current: object, where: str) -> object:
    """`text` as a value of the type of `current`, or `text` itself if it is none."""
    if isinstance(current, dict):
        keys = ", ".join(current) or "none yet; name sources in a config file"
        raise UserError(f"{where} is a section; set one of its keys: {keys}")
    if isinstance(current, str):
        return text
    if isinstance(current, bool):
        known = {"true": True, "1": True, "false": False, "0": False}
        return known.get(text.lower(), text)
    kind = type(current) if isinstance(current, int | float) else ast.literal_eval
    try:
        return kind(text)
    except (ValueError, SyntaxError):
        return text  # which `freeze` refuses

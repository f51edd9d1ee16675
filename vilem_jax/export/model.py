"""A trained model out of a run, or of a model folder, in one of four formats."""

import os
from pathlib import Path
from typing import Literal, get_args

from vilem_jax.errors import UserError
from vilem_jax.export import onnx_graph, stablehlo
from vilem_jax.export.card import model_card
from vilem_jax.export.towers import (
    DESCRIPTION,
    describe,
    largest_difference,
    make_towers,
    names_of,
    write_towers,
)
from vilem_jax.runs.trained_model import Stored, Weights, read_stored
from vilem_jax.weights import folders, model_folder
from vilem_jax.weights.formats import huggingface_export

Format = Literal["vilem", "huggingface", "stablehlo", "onnx"]
FORMATS: tuple[str, ...] = get_args(Format)
_COMPILED = {"stablehlo": stablehlo, "onnx": onnx_graph}


def export_model(
    name: str | os.PathLike,
    out: str | os.PathLike,
    kind: Format,
    *,
    weights: Weights = "online",
    step: str = "last",
    for_training: bool = False,
    made_by: str = "",
) -> list[str]:
    """Writes the folder `out`, whole or not at all.

    Args:
      name: a run's work directory, a model folder, or its name on the hub.
      kind: "vilem", a model folder; "huggingface", a ViTModel and a BertModel;
        "stablehlo" or "onnx", each tower as a program.
      weights: which are written: those that were trained, or their moving average.
      step: of a run, "last", its newest checkpoint, or "best", that of the best
        validation, where the run kept it.
      for_training: of kind "vilem", the moving average and the queues too (none are
        kept of the best step).
      made_by: the command line, for the card.

    Returns:
      what was found out on the way, as sentences.

    Raises:
      UserError: no such model or weights, `out` holds something else or cannot be
        written, a package is missing, or an exported tower is not the model's.
    """
    if kind not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}, not {kind!r}")
    if for_training and (kind != "vilem" or weights != "online"):
        raise UserError(
            "what training on needs goes with --format=vilem and the online weights: "
            "leave --for-training out"
        )
    _check_out(name, out, kind)
    stored = read_stored(name, weights, step=step, for_training=for_training)
    card = model_card(
        name, stored, kind, Path(out).name, weights=weights, made_by=made_by
    )
    if kind == "vilem":
        return _write_model(out, stored, card)
    if kind == "huggingface":
        huggingface_export.write_huggingface(
            out, stored.config, stored.params, stored.tokenizer, card=card
        )
        return []
    return _write_compiled(out, stored, kind, card)


def _check_out(name, out, kind: Format) -> None:
    """What can be refused before a model is read."""
    if kind in _COMPILED:
        _COMPILED[kind].check_installed()
        files = [f"{tower}.{kind}" for tower in ("image", "text")]
        ours, is_earlier = names_of(files), folders.holds(DESCRIPTION, *files)
    elif kind == "huggingface":
        ours, is_earlier = huggingface_export.FILES, huggingface_export.IS_EARLIER
    else:
        ours, is_earlier = model_folder.FILES, model_folder.is_model_folder
    place = Path(out).expanduser()
    if place.exists() and place.resolve() == Path(name).expanduser().resolve():
        raise UserError(f"--out={out} is the model itself: name another folder")
    folders.check_replaceable(place, ours, is_earlier=is_earlier)


def _write_model(out, stored: Stored, card: str) -> list[str]:
    model_folder.write_model_folder(
        out,
        model_folder.without_paths(stored.config),
        stored.params,
        stored.tokenizer,
        momentum_params=stored.momentum_params,
        queues=stored.queues,
        card=card,
    )
    return []


def _write_compiled(out, stored: Stored, kind: Format, card: str) -> list[str]:
    maker = _COMPILED[kind]
    towers = make_towers(stored.config, stored.params, stored.tokenizer)
    file_of = {name: f"{name}.{maker.ENDING}" for name in towers}
    files, differences = {}, {}
    for name, tower in towers.items():
        content = maker.to_bytes(tower)
        run = maker.runner(content)
        differences[name] = largest_difference(tower, run, file_of[name])
        files[file_of[name]] = content
    description = describe(
        towers, file_of, differences, stored.config, stored.tokenizer
    )
    description["format"] = maker.describe()
    write_towers(out, files, description, stored.tokenizer, card=card)
    return [
        f"{file_of[name]}: differs from the model by {difference:.1e} at most, on rows "
        "of noise"
        for name, difference in differences.items()
    ]

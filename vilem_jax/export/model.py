"""Exports the model of a run or of a model folder in one of four formats."""

import os
from pathlib import Path
from typing import Literal, get_args

from vilem_jax.errors import UserError
from vilem_jax.export import onnx_graph, stablehlo, towers
from vilem_jax.export.card import model_card
from vilem_jax.runs.trained_model import Stored, Weights, read_stored
from vilem_jax.typing import JsonObject
from vilem_jax.weights import folders, model_folder
from vilem_jax.weights.formats import huggingface_export

Format = Literal["vilem", "huggingface", "stablehlo", "onnx"]
FORMATS: tuple[str, ...] = get_args(Format)
_COMPILED = {"stablehlo": stablehlo, "onnx": onnx_graph}


def export_model(
    name: str | os.PathLike[str],
    out: str | os.PathLike[str],
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
      weights: "online", the trained weights, or "momentum", their moving average.
      step: of a run, "last", its newest checkpoint, or "best", that of the best
        validation, if the run kept it.
      for_training: of kind "vilem", the moving average and the queues too (the best
        step has none).
      made_by: the command line, for the card.

    Returns:
      sentences on how far the exported towers differ from the model.

    Raises:
      UserError: no such model or weights, `out` holds something else or cannot be
        written, a package is missing, or an exported tower is not the model's.
    """
    if kind not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}, not {kind!r}")
    if for_training and (kind != "vilem" or weights != "online"):
        raise UserError(
            "what further training needs goes with --format=vilem and the online "
            "weights: leave --for-training out"
        )
    out = Path(out).expanduser()
    _check_out(name, out, kind)  # first: reading a model may take minutes
    stored = read_stored(name, weights, step=step, for_training=for_training)
    config, params, tokenizer = stored.config, stored.params, stored.tokenizer
    card = model_card(name, stored, kind, out.name, weights=weights, made_by=made_by)
    if kind in _COMPILED:
        return _write_compiled(out, stored, kind, card)
    if kind == "huggingface":
        huggingface_export.write_huggingface(out, config, params, tokenizer, card=card)
    else:
        model_folder.write_model_folder(
            out,
            model_folder.without_paths(config),
            params,
            tokenizer,
            momentum_params=stored.momentum_params,
            queues=stored.queues,
            card=card,
        )
    return []


def _check_out(name: str | os.PathLike[str], out: Path, kind: Format) -> None:
    """Refuses what can be refused before a model is read."""
    if kind in _COMPILED:
        _COMPILED[kind].check_installed()
        files = [f"{tower}.{kind}" for tower in ("image", "text")]
        ours = towers.names_of(files)
        is_earlier = folders.holds(towers.DESCRIPTION, *files)
    elif kind == "huggingface":
        ours, is_earlier = huggingface_export.FILES, huggingface_export.IS_EARLIER
    else:
        ours, is_earlier = model_folder.FILES, model_folder.is_model_folder
    # Replacing an earlier export is allowed, so this folder would be replaced too.
    if out.exists() and out.resolve() == Path(name).expanduser().resolve():
        raise UserError(f"--out={out} is the model itself: name another folder")
    folders.check_replaceable(out, ours, is_earlier=is_earlier)


def _write_compiled(out: Path, stored: Stored, kind: str, card: str) -> list[str]:
    config, tokenizer, maker = stored.config, stored.tokenizer, _COMPILED[kind]
    files: dict[str, bytes] = {}
    description: JsonObject = {}
    sentences = []
    for name, tower in towers.make_towers(config, stored.params, tokenizer).items():
        file = f"{name}.{kind}"
        files[file] = maker.to_bytes(tower)
        # Nothing is written before every tower has been run and compared.
        run = maker.runner(files[file])
        difference = towers.largest_difference(tower, run, file)
        description[name] = {
            "file": file,
            **towers.describe(tower, config.model.embedding_width),
            "largest_difference": difference,
        }
        sentences.append(
            f"{file}: differs from the model by {difference:.1e} at most, on rows of "
            "noise"
        )
    text_length = config.evaluation.text_length
    description["tokenizer"] = towers.describe_tokenizer(tokenizer, text_length)
    description["format"] = maker.describe()
    towers.write_towers(out, files, description, tokenizer, card=card)
    return sentences

"""`vilem weights import`: foreign weights become a model folder, or a tower's folder.

ALBEF and BLIP become a model folder, which is evaluated and trained further like our
own models. A tower alone becomes a folder in Hugging Face's layout, for `start_from`.
"""

import math
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from vilem_jax import files
from vilem_jax.config.schema import Config, ModelConfig, TextConfig, VisionConfig
from vilem_jax.data.tokenizer import Tokenizer, read_vocabulary, write_vocabulary
from vilem_jax.errors import UserError
from vilem_jax.templates import render_template
from vilem_jax.weights import folders
from vilem_jax.weights.detect import FORMATS, recognize
from vilem_jax.weights.folders import Tensors
from vilem_jax.weights.foreign import open_checkpoint
from vilem_jax.weights.formats import dinov2, huggingface_vit
from vilem_jax.weights.formats import huggingface_bert as bert
from vilem_jax.weights.formats.whole_models import WholeModel, resized
from vilem_jax.weights.model_folder import write_model_folder

BERT = "bert-base-uncased"  # ALBEF and BLIP use its vocabulary


@dataclass(frozen=True)
class Imported:
    """What was written."""

    format: str
    what: str  # a sentence
    note: str = ""


def import_weights(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    format: str = "",
    tokenizer: str = "",
    allow_pickle: bool = False,
    image_size: int = 0,
    vision_heads: int = 0,
    text_heads: int = 0,
) -> Imported:
    """Reads foreign weights and writes the folder `out` as one change.

    Args:
      source: a file, a folder or a hub name.
      format: a key of `detect.FORMATS`; "" recognizes it by the tensors' names.
      tokenizer: folder or hub name with vocab.txt, for a text tower; by default the
        source's own, and for ALBEF and BLIP without one bert-base-uncased.
      allow_pickle: whether .pth, .pt and .bin may be read.
      image_size: pixels a side to resize position embeddings to; 0 leaves them.
      vision_heads, text_heads: for a tower of unusual width whose file does not name
        its number of heads.

    Raises:
      UserError: weights, format, tokenizer or sizes that do not fit, or a folder that
        cannot be written.
    """
    out = Path(out).expanduser()
    if not out.is_dir():
        files.check_writable(out)
    opened = open_checkpoint(source, allow_pickle=allow_pickle)
    key = recognize(opened, format)
    module = FORMATS[key]
    heads = {"vision_heads": vision_heads, "text_heads": text_heads}
    try:
        if hasattr(module, "read_model"):
            model = module.read_model(opened, **heads)
            model = resized(model, image_size) if image_size else model
            return _write_model(opened, key, model, out, tokenizer)
        if hasattr(module, "load_text"):
            _refuse("a text tower", image_size=image_size, **heads)
            return _import_text(opened, out, tokenizer)
        _refuse("an image tower", tokenizer=tokenizer, text_heads=text_heads)
        return _import_vision(opened, key, out, image_size, vision_heads)
    except OSError as error:
        raise UserError(f"cannot write {out}: {files.reason(error)}") from error


def _refuse(what: str, **options: object) -> None:
    """Raises UserError if an option is given that has no meaning for `what`."""
    for name, value in options.items():
        if value:
            option = f"--{name.replace('_', '-')}={value}"
            raise UserError(f"{option} has no meaning for {what}: leave it out")


def _write_model(
    opened: Tensors, key: str, model: WholeModel, out: Path, tokenizer: str
) -> Imported:
    reader = _open_tokenizer(
        opened, model.config, given=tokenizer, default=BERT, extra=model.extra_pieces
    )
    shapes, name = model.config.model, opened.path.name
    card = render_template("weights/imported.md.j2", title=name, key=key, model=shapes)
    write_model_folder(
        out,
        model.config,
        model.params,
        reader,
        momentum_params=model.momentum_params,
        queues=model.queues,
        card=card,
    )
    rows = len(model.queues["image_queue"]) if model.queues else 0
    return Imported(
        key,
        f"a model of {shapes.vision.num_layers} image and {shapes.text.num_layers} "
        f"text layers for images of {shapes.vision.image_size} pixels, "
        f"{'with' if model.momentum_params else 'without'} momentum copy, "
        f"{rows:,} rows in each queue",
        "its proofreading heads are new: it can search and be trained, but not "
        "proofread",
    )


def _open_tokenizer(
    opened: Tensors,
    config: Config,
    *,
    given: str,
    default: str,
    extra: tuple[str, ...] = (),
) -> Tokenizer:
    """The tokenizer `given`, or else that beside the weights, or else `default`.

    A BERT's is extended by `extra`, the tokens that a BLIP adds.

    Raises:
      UserError: no vocabulary there, one of another size than the model's, or `given`
        is not the one beside the weights.
    """
    wanted, data = config.model.text.vocab_size, config.data
    options = {"cleaning": data.cleaning, "keeps_sep": data.keeps_sep}

    def read(name: str) -> Tokenizer:
        if not extra:
            return Tokenizer(name, **options)
        pieces = read_vocabulary(name)
        whole = pieces if len(pieces) == wanted else (*pieces, *extra)
        # The other files beside vocab.txt may add other tokens.
        with tempfile.TemporaryDirectory() as folder:
            write_vocabulary(whole, Path(folder), lower_case=True)
            return Tokenizer(folder, **options)

    own, has_own = opened.folder, (opened.folder / folders.VOCABULARY).is_file()
    name = given or (str(own) if has_own else default)
    size = len(read_vocabulary(name))
    if size not in (wanted, wanted - len(extra)):
        raise UserError(
            f"the tokenizer in {name} has {size} tokens, but the model has "
            f"{wanted}: name the model's own with --tokenizer"
        )
    reader = read(name)
    if given and has_own and read(str(own)).pieces != reader.pieces:
        raise UserError(
            "the tokenizer that --tokenizer names is not the model's: "
            f"{own / folders.VOCABULARY} lists other tokens, or in another order; "
            "leave --tokenizer out"
        )
    return reader


def _import_vision(
    opened: Tensors, key: str, out: Path, image_size: int, num_heads: int
) -> Imported:
    module, base = FORMATS[key], VisionConfig(image_size=image_size)
    config = module.read_vision_config(opened, base, num_heads=num_heads)
    params = module.load_vision(opened, config)
    # With image_size 0 the grid keeps its stored side.
    side = math.isqrt(len(params["position_embedding"]) - 1)
    config = replace(config, image_size=side * config.patch_size)
    kind, note = "ViTModel", ""
    if module is dinov2:
        start = dinov2.read_start(opened)
        kind, note = "Dinov2Model", start.note
        dinov2.save_vision(out, params, config, start)
    else:
        huggingface_vit.save_vision(out, params, config)
    return Imported(
        key,
        f"an image tower of {config.num_layers} layers for images of "
        f"{config.image_size} pixels, as Hugging Face's {kind}: name it in "
        "config.model.vision.start_from",
        note,
    )


def _import_text(opened: Tensors, out: Path, tokenizer: str) -> Imported:
    config = bert.read_text_config(opened, TextConfig())
    whole, beside = Config(model=ModelConfig(text=config)), str(opened.folder)
    reader = _open_tokenizer(opened, whole, given=tokenizer, default=beside)
    kind, load, save = "BertModel", bert.load_text, bert.save_text
    if bert.has_head(opened):
        kind = "BertForMaskedLM"
        load, save = bert.load_masked_language_model, bert.save_masked_language_model
    with tempfile.TemporaryDirectory() as vocabulary:
        reader.save(vocabulary)
        save(out, load(opened, config), config, Path(vocabulary))
    return Imported(
        "huggingface-bert",
        f"a text tower of {config.num_layers} layers, as Hugging Face's {kind}: name "
        "it in config.model.text.start_from",
    )

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
from vilem_jax.config.schema import TextConfig, VisionConfig
from vilem_jax.data.tokenizer import Tokenizer, extended_tokenizer, vocabulary_size
from vilem_jax.errors import UserError
from vilem_jax.weights import folders
from vilem_jax.weights.detect import FORMATS, recognize
from vilem_jax.weights.foreign import Checkpoint, open_checkpoint
from vilem_jax.weights.formats import huggingface_bert, huggingface_vit
from vilem_jax.weights.formats.whole_models import WholeModel, resized
from vilem_jax.weights.model_folder import write_model_folder

BERT = "bert-base-uncased"  # ALBEF and BLIP use its vocabulary


@dataclass(frozen=True)
class Imported:
    """What was written."""

    format: str
    what: str  # a sentence
    notes: tuple[str, ...] = ()


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
    heads = {"vision": vision_heads, "text": text_heads}
    given_heads = {f"{tower}_heads": number for tower, number in heads.items()}
    try:
        if FORMATS[key].is_model:
            return _import_model(opened, key, out, tokenizer, image_size, heads)
        if FORMATS[key].has_text:
            _refuse("a text tower", {"image_size": image_size} | given_heads)
            return _import_text(opened, out, tokenizer)
        _refuse("an image tower", {"tokenizer": tokenizer, "text_heads": text_heads})
        return _import_vision(opened, key, out, image_size, heads["vision"])
    except OSError as error:
        raise UserError(f"cannot write {out}: {files.reason(error)}") from error


def _refuse(what: str, options: dict) -> None:
    """Raises UserError if an option is given that has no meaning for `what`."""
    for name, value in options.items():
        if value:
            option = f"--{name.replace('_', '-')}={value}"
            raise UserError(f"{option} has no meaning for {what}: leave it out")


def _import_model(
    opened: Checkpoint,
    key: str,
    out: Path,
    tokenizer: str,
    image_size: int,
    heads: dict[str, int],
) -> Imported:
    model = FORMATS[key].module.read_model(
        opened, vision_heads=heads["vision"], text_heads=heads["text"]
    )
    own = opened.folder / folders.VOCABULARY
    name = tokenizer or (str(opened.folder) if own.is_file() else BERT)
    reader = open_tokenizer(name, model)
    if tokenizer and own.is_file():
        _check_same(own, open_tokenizer(str(opened.folder), model), reader)
    if image_size:
        model = resized(model, image_size)
    write_model_folder(
        out,
        model.config,
        model.params,
        reader,
        momentum_params=model.momentum_params,
        queues=model.queues,
        card=_card(opened, key, model),
    )
    vision, text = model.config.model.vision, model.config.model.text
    rows = len(model.queues["image_queue"]) if model.queues else 0
    return Imported(
        key,
        f"a model of {vision.num_layers} image and {text.num_layers} text layers for "
        f"images of {vision.image_size} pixels, "
        f"{'with' if model.momentum_params else 'without'} momentum copy, "
        f"{rows:,} rows in each queue",
        (
            "its proofreading heads are new: it can search and be trained, but not "
            "proofread",
        ),
    )


def open_tokenizer(name: str, model: WholeModel) -> Tokenizer:
    """The model's tokenizer; a BERT's is extended by the tokens that a BLIP adds.

    Raises:
      UserError: no vocabulary there, or one of another size than the model's.
    """
    data, extra = model.config.data, model.extra_pieces
    options = {"cleaning": data.cleaning, "keeps_sep": data.keeps_sep}
    size, wanted = vocabulary_size(name), model.config.model.text.vocab_size
    if size not in (wanted, wanted - len(extra)):
        raise UserError(
            f"the tokenizer in {name} has {size} tokens, but the model has {wanted}: "
            "name the model's own with --tokenizer"
        )
    if not extra:
        return Tokenizer(name, **options)
    return extended_tokenizer(name, () if size == wanted else extra, **options)


def _check_same(own: Path, theirs: Tokenizer, given: Tokenizer) -> None:
    """Raises UserError if --tokenizer has another vocabulary than the weights' own."""
    if theirs.pieces != given.pieces:
        raise UserError(
            f"the tokenizer that --tokenizer names is not the model's: {own} lists "
            "other tokens, or in another order; leave --tokenizer out"
        )


def _import_vision(
    opened: Checkpoint, key: str, out: Path, image_size: int, num_heads: int
) -> Imported:
    module, base = FORMATS[key].module, VisionConfig(image_size=image_size)
    config = module.read_vision_config(opened, base, num_heads=num_heads)
    params = module.load_vision(opened, config)
    # With image_size 0 the grid keeps its stored side.
    side = math.isqrt(len(params["position_embedding"]) - 1)
    config = replace(config, image_size=side * config.patch_size)
    huggingface_vit.save_vision(out, params, config)
    return Imported(
        key,
        f"an image tower of {config.num_layers} layers for images of "
        f"{config.image_size} pixels, as Hugging Face's ViTModel: name it in "
        "config.model.vision.start_from",
    )


def _import_text(opened: Checkpoint, out: Path, tokenizer: str) -> Imported:
    folder = opened.folder
    config = huggingface_bert.read_text_config(opened, TextConfig())
    reader = Tokenizer(tokenizer or str(folder))
    size = reader.vocabulary.size
    if size != config.vocab_size:
        raise UserError(
            f"the tokenizer in {tokenizer or folder} has {size} tokens, but the model "
            f"has {config.vocab_size}: name the model's own with --tokenizer"
        )
    own = folder / folders.VOCABULARY
    if tokenizer and own.is_file():
        _check_same(own, Tokenizer(str(folder)), reader)
    has_head = huggingface_bert.has_head(opened)
    load, save = (
        (
            huggingface_bert.load_masked_language_model,
            huggingface_bert.save_masked_language_model,
        )
        if has_head
        else (huggingface_bert.load_text, huggingface_bert.save_text)
    )
    with tempfile.TemporaryDirectory() as vocabulary:
        reader.save(vocabulary)
        save(out, load(opened, config), config, Path(vocabulary))
    return Imported(
        "huggingface-bert",
        f"a text tower of {config.num_layers} layers, as Hugging Face's "
        f"{'BertForMaskedLM' if has_head else 'BertModel'}: name it in "
        "config.model.text.start_from",
    )


def _card(opened: Checkpoint, key: str, model: WholeModel) -> str:
    """The model card: its origin, and what it cannot do."""
    vision, text = model.config.model.vision, model.config.model.text
    return f"""# {opened.path.name}, imported

Weights in the format {key}, read by `vilem weights import` from {opened.path.name}.
Image tower: {vision.num_layers} layers of {vision.width}, images of
{vision.image_size} pixels. Text tower: {text.num_layers} layers of {text.width},
{text.vocab_size:,} tokens. Projections to {model.config.model.embedding_width}.

It can search, be evaluated and be trained further. It cannot proofread: the heads for
that are new, and those that its authors trained were left out.
"""

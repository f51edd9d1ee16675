"""A plain dual encoder as Hugging Face's ViTModel and BertModel, projections beside.

vision/                  ViTModel: config.json, model.safetensors
text/                    BertModel: the same, and the tokenizer's files
projections.safetensors  the two linear maps, torch's [out, in], and the temperature
README.md                how torch uses them

Cross-attention and heads are in no table here, and so in no file.
"""

from collections.abc import Mapping
from pathlib import Path

import safetensors.numpy

from vilem_jax.config.schema import Config
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.weights import folders, tables
from vilem_jax.weights.formats import huggingface_bert, huggingface_vit

CARD = "README.md"
PROJECTIONS = "projections.safetensors"
FILES = {
    *(CARD, PROJECTIONS, f"vision/{folders.CONFIG}", f"vision/{folders.WEIGHTS}"),
    *(f"text/{name}" for name in folders.FILES),
}
IS_EARLIER = folders.holds(PROJECTIONS)


def projection_table() -> list[tables.Entry]:
    return [
        *tables.linear("image_projection", ("image_projection",)),
        *tables.linear("text_projection", ("text_projection",)),
        tables.Entry("temperature", ("temperature",), tables.SAME),
    ]


def write_huggingface(
    folder: str | Path,
    config: Config,
    params: Mapping,
    tokenizer: Tokenizer,
    *,
    card: str = "",
) -> None:
    """Writes all of it as one change.

    Args:
      params: nested, the tree of a `ViLEM`; arrays that reach the host.
      card: README.md.

    Raises:
      UserError: `folder` holds something else, or cannot be written.
    """
    vision, text = config.model.vision, config.model.text
    with folders.whole_folder(folder, FILES, is_earlier=IS_EARLIER) as new:
        huggingface_vit.save_vision(new / "vision", params["vision"], vision)
        tokenizer.save(new / "text")
        huggingface_bert.save_text(new / "text", params["text"], text, new / "text")
        projections = tables.write_tensors(projection_table(), params)
        header = {"format": "pt"}
        safetensors.numpy.save_file(projections, new / PROJECTIONS, header)
        (new / CARD).write_text(card, encoding="utf-8")

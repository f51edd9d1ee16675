"""The section "Use" of an export's README.md, one text a format."""

import json

from vilem_jax.config.schema import Config
from vilem_jax.data.tokenizer import Tokenizer

_CLEANING = {
    "albef": (
        r"""text = re.sub(r"[,.'!?\"()*#:;~]", "", text.lower())""",
        r"""text = re.sub(r"[-/]", " ", text)""",
    ),
    "blip": (r"""text = re.sub(r"[.!\"()*#:;~]", " ", text.lower())""",),
}


def use_of_model(folder: str, *, proofreads: bool) -> str:
    proofread = (
        f"""
vilem proofread --model={folder} PHOTO "a caption"
"""
        if proofreads
        else "\n"
    ).rstrip()
    return f"""## Use

```python
import vilem_jax

model = vilem_jax.load("{folder}")  # this folder, or its name on the hub
model.encode_image(["a.jpg", "b.jpg"])  # [2, E], unit rows
model.encode_text(["a dog on grass"])  # [1, E]
```

```
vilem evaluate retrieval --model={folder} --data=FILE.json --images=DIR{proofread}
```

`config.json` is the frozen config, without the paths of the machine it ran on.
`model.safetensors` has all parameters by name, float32."""


def use_of_huggingface(config: Config, tokenizer: Tokenizer) -> str:
    size, length = config.model.vision.image_size, config.evaluation.text_length
    body = "\n    ".join(_CLEANING[tokenizer.cleaning])
    sep = " + [tokenizer.sep_token_id]" if tokenizer.keeps_sep else ""
    room = length - 1 - tokenizer.keeps_sep
    mean, std = json.dumps(config.augment.mean), json.dumps(config.augment.std)
    return f"""## Use

`vision/` is a `ViTModel`, `text/` a `BertModel`; neither has a pooler.
`projections.safetensors` has the two linear maps, and the temperature that the cosines
were divided by in training. No code of ours is needed:

```python
import re

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file
from torch.nn.functional import linear, normalize
from transformers import BertModel, BertTokenizerFast, ViTModel

folder = "."
vision = ViTModel.from_pretrained(f"{{folder}}/vision", add_pooling_layer=False).eval()
text = BertModel.from_pretrained(f"{{folder}}/text", add_pooling_layer=False).eval()
tokenizer = BertTokenizerFast.from_pretrained(f"{{folder}}/text")
maps = load_file(f"{{folder}}/projections.safetensors")
mean, std = torch.tensor({mean}), torch.tensor({std})


def clean(text):
    {body}
    return " ".join(text.replace("<person>", "person").split())


def rgb(image):  # upright, and what is transparent laid over white
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        grey = np.round(np.asarray(image) / 257)
        image = Image.fromarray(grey.astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        image = Image.alpha_composite(white, layer)
    return image.convert("RGB")


@torch.no_grad()
def embed_images(images):  # Pillow images -> [N, {config.model.embedding_width}]
    size, bicubic = ({size}, {size}), Image.Resampling.BICUBIC
    squashed = [rgb(p).resize(size, bicubic) for p in images]
    pixels = torch.from_numpy(np.stack([np.asarray(p) for p in squashed])) / 255
    pixels = ((pixels - mean) / std).permute(0, 3, 1, 2)
    feature = vision(pixels).last_hidden_state[:, 0]
    weight, bias = maps["image_projection.weight"], maps["image_projection.bias"]
    return normalize(linear(feature, weight, bias), dim=-1)


@torch.no_grad()
def embed_captions(captions):  # texts -> [N, {config.model.embedding_width}]
    ids = tokenizer([clean(c) for c in captions], add_special_tokens=False).input_ids
    ids = [[tokenizer.cls_token_id] + row[:{room}]{sep} for row in ids]
    longest = max(map(len, ids))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in ids])
    feature = text(ids, attention_mask=ids != pad).last_hidden_state[:, 0]
    weight, bias = maps["text_projection.weight"], maps["text_projection.bias"]
    return normalize(linear(feature, weight, bias), dim=-1)


scores = embed_captions(["a dog on grass"]) @ embed_images([Image.open("a.jpg")]).T
```"""


_TOWERS = """## Use

`image.{ending}` takes uint8 pixels [B, {size}, {size}, 3] (RGB, the image squashed by
bicubic resizing; normalised inside), `text.{ending}` int32 tokens [B, L] with L up to
{limit}, padded with {pad}. Both give float32 [B, {width}], unit rows; B is free.
`towers.json` says the same for programs; `vocab.txt` is the tokenizer's. Captions are
cleaned first (`vilem_jax.data.tokenizer.clean_caption`, rule "{cleaning}").

```python
{code}
```"""

_CODE = {
    "stablehlo": """import jax
import jax.export

image = jax.export.deserialize(bytearray(open("image.stablehlo", "rb").read()))
text = jax.export.deserialize(bytearray(open("text.stablehlo", "rb").read()))
scores = text.call(tokens) @ image.call(pixels).T  # on CPU, CUDA or TPU""",
    "onnx": """import onnxruntime

image = onnxruntime.InferenceSession("image.onnx")
text = onnxruntime.InferenceSession("text.onnx")
(image_embedding,) = image.run(None, {"pixels": pixels})
(text_embedding,) = text.run(None, {"tokens": tokens})
scores = text_embedding @ image_embedding.T""",
}


def use_of_towers(kind: str, config: Config, tokenizer: Tokenizer) -> str:
    """`kind` is "stablehlo" or "onnx"."""
    return _TOWERS.format(
        ending=kind,
        size=config.model.vision.image_size,
        limit=config.model.text.max_positions,
        pad=tokenizer.vocabulary.pad_id,
        width=config.model.embedding_width,
        cleaning=tokenizer.cleaning,
        code=_CODE[kind],
    )

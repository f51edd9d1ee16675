"""The Hugging Face layout: equal embeddings in torch, and an exact round trip."""

import copy
import io
import re

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.export.conftest import CAPTIONS
from vilem_jax.data.images import from_pillow
from vilem_jax.data.tokenizer import clean_caption
from vilem_jax.export.card import model_card
from vilem_jax.export.model import export_model
from vilem_jax.weights import tables
from vilem_jax.weights.formats import huggingface_bert, huggingface_vit

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "huggingface"
    export_model(run, folder, "huggingface")
    return folder


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip(
        "torch", reason="no torch: an export to Hugging Face is NOT tested here"
    )


def odd_images():
    """Turned by EXIF, half transparent, and grey of 16 bits."""
    rng = np.random.default_rng(0)
    turned = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    turned.getexif()[ExifTags.Base.Orientation] = 6
    file = io.BytesIO()
    turned.save(file, "JPEG", exif=turned.getexif())
    layer = rng.integers(0, 256, (6, 9, 4), dtype=np.uint8)
    grey = rng.integers(0, 65536, (6, 9), dtype=np.uint16)
    yield from (Image.open(file), Image.fromarray(layer), Image.fromarray(grey))


@pytest.mark.filterwarnings("default")  # of torch and transformers
def test_the_code_of_the_card_gives_our_embeddings(exported, embeddings, pixels, torch):
    code = re.search(
        "```python\n(.*)\nscores = ", (exported / "README.md").read_text(), re.S
    )
    names: dict = {}
    exec(code[1].replace('folder = "."', f"folder = {str(exported)!r}"), names)
    theirs = names["embed_images"]([Image.fromarray(p) for p in pixels]).numpy()
    np.testing.assert_allclose(theirs, embeddings[0], atol=TOLERANCE, rtol=0)
    for image in odd_images():
        read_as = np.asarray(names["rgb"](image))
        np.testing.assert_array_equal(read_as, from_pillow(image))
    theirs = names["embed_captions"](CAPTIONS).numpy()
    np.testing.assert_allclose(theirs, embeddings[1], atol=TOLERANCE, rtol=0)
    assert np.abs(embeddings[1][0] - embeddings[1][1]).max() > 100 * TOLERANCE


@pytest.mark.filterwarnings("default")
def test_transformers_finds_every_tensor_and_ignores_none(exported, torch):
    from transformers import AutoModel

    for name, kind in (("vision", "ViTModel"), ("text", "BertModel")):
        model, info = AutoModel.from_pretrained(
            exported / name, output_loading_info=True
        )
        assert type(model).__name__ == kind
        assert not info["unexpected_keys"] and not info["mismatched_keys"]
        assert all(key.startswith("pooler.") for key in info["missing_keys"])


def test_an_export_is_a_plain_dual_encoder(exported, left_out, kept):
    files = {path: path.read_bytes() for path in exported.rglob("*") if path.is_file()}
    everything = b"".join(files.values())
    assert len(left_out) > 20
    assert not [name for name, content in left_out.items() if content in everything]
    assert all(content in everything for content in kept.values())
    assert {path.name for path in files} == {
        "README.md",
        "config.json",
        "files.json",
        "model.safetensors",
        "projections.safetensors",
        "tokenizer_config.json",
        "vocab.txt",
    }


def test_a_round_trip_is_exact(exported, stored, tmp_path):
    """Folder -> parameters -> folder -> parameters: every bit stays the same."""
    model = stored.config.model
    vision, text = exported / "vision", exported / "text"
    assert huggingface_vit.read_vision_config(vision, model.vision) == model.vision
    assert huggingface_bert.read_text_config(text, model.text) == model.text
    first = {
        "vision": huggingface_vit.load_vision(vision, model.vision),
        "text": huggingface_bert.load_text(text, model.text),
    }
    compared = 0
    for name, tree in first.items():
        for path, leaf in tables.leaves(tree):
            assert leaf.tobytes() == tables.take(stored.params[name], path).tobytes()
            compared += 1
    assert compared > 60
    huggingface_vit.save_vision(tmp_path / "vision", first["vision"], model.vision)
    huggingface_bert.save_text(tmp_path / "text", first["text"], model.text, text)
    for part in (vision, text):
        for file in part.iterdir():
            again = tmp_path / part.name / file.name
            assert file.read_bytes() == again.read_bytes(), file.name


@pytest.mark.parametrize("rule", ["albef", "blip"])
def test_the_card_cleans_captions_as_we_do(stored, rule):
    tokenizer = copy.copy(stored.tokenizer)
    tokenizer.cleaning = rule
    made = {"weights": "online", "made_by": ""}
    changed = stored._replace(tokenizer=tokenizer)
    card = model_card("/nowhere", changed, "huggingface", "title", **made)
    code = re.search(r"(def clean.*?)\n\n\n", card, re.S)
    names: dict = {"re": re}
    exec(code[1], names)
    for caption in (*CAPTIONS, 'It\'s "A-b/c": <person>, (d)? #1; e~f*.  g!'):
        assert names["clean"](caption) == clean_caption(caption, rule)

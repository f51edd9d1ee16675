"""BLIP of Hugging Face and under its own names, against Hugging Face's in torch."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.weights.both_towers import (
    EMBEDDING,
    HEADS,
    POINTER,
    POSITIONS,
    QUEUE,
    VOCABULARY,
    WIDTH,
    embeddings,
    images,
    projected,
    text_shape,
    words,
)
from vilem_jax.config.schema import TextConfig, VisionConfig
from vilem_jax.models.vilem import level_of_layer
from vilem_jax.weights import starts
from vilem_jax.weights.detect import recognize
from vilem_jax.weights.foreign import open_checkpoint
from vilem_jax.weights.formats import blip, huggingface_blip


@pytest.fixture(scope="module")
def blip_of_hugging_face(torch, randomize, tmp_path_factory):
    """A folder, its model, and its contrastive embeddings."""
    from transformers import BlipConfig, BlipForImageTextRetrieval

    vision = text_shape(3) | dict(image_size=24, patch_size=8, layer_norm_eps=1e-5)
    for key in ("vocab_size", "max_position_embeddings"):
        del vision[key]
    tokens = dict(bos_token_id=28, eos_token_id=2, pad_token_id=0, sep_token_id=3)
    config = BlipConfig(
        vision_config=vision | {"num_hidden_layers": 3},
        text_config=text_shape(3) | tokens | {"encoder_hidden_size": WIDTH},
        image_text_hidden_size=EMBEDDING,
    )
    model = randomize(BlipForImageTextRetrieval(config), seed=6)
    folder = tmp_path_factory.mktemp("blip")
    model.save_pretrained(folder)
    return folder, model, blip_embeddings(torch, model)


def blip_embeddings(torch, model):
    tokens, attention_mask = words()
    pixels = torch.from_numpy(images()).permute(0, 3, 1, 2)
    with torch.no_grad():
        image = model.vision_model(pixel_values=pixels).last_hidden_state[:, 0]
        text = model.text_encoder(
            input_ids=torch.from_numpy(tokens).long(),
            attention_mask=torch.from_numpy(attention_mask).long(),
        ).last_hidden_state[:, 0]
        theirs = (
            projected(torch, model.vision_proj, image),
            projected(torch, model.text_proj, text),
        )
        # The model's own score says that these are its contrastive embeddings.
        scores = model(
            input_ids=torch.from_numpy(tokens[:2]).long(),
            attention_mask=torch.from_numpy(attention_mask[:2]).long(),
            pixel_values=pixels,
            use_itm_head=False,
        ).itm_score
    wanted = theirs[0] @ theirs[1][:2].T
    np.testing.assert_allclose(scores.numpy(), wanted.numpy(), atol=1e-5)
    return theirs


def test_blip_embeds_as_hugging_face_does(blip_of_hugging_face, relative_error):
    folder, _, theirs = blip_of_hugging_face
    source = open_checkpoint(folder)
    assert recognize(source) == "huggingface-blip"
    found = huggingface_blip.read_model(source)
    model = found.config.model
    assert (model.num_proofread_layers, model.text.num_layers) == (3, 3)
    assert level_of_layer(model) == (3, 3, 3)
    assert (model.vision.layer_norm_eps, model.text.layer_norm_eps) == (1e-5, 1e-12)
    assert found.momentum_params is None and found.queues == {}
    assert not found.config.loss.has_proofreading
    for ours, wanted in zip(
        embeddings(found.config, found.params), theirs, strict=True
    ):
        assert relative_error(ours, wanted) <= 1e-4


def test_cross_attention_of_a_blip_is_ours(blip_of_hugging_face, torch, relative_error):
    """A text layer looking at patches, as theirs does."""
    from vilem_jax.models.text import TextLayer

    folder, model, _ = blip_of_hugging_face
    found = huggingface_blip.read_model(open_checkpoint(folder))
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2, 7, WIDTH)).astype(np.float32)
    patches = rng.normal(size=(2, 9, WIDTH)).astype(np.float32)
    with torch.no_grad():
        theirs = model.text_encoder.encoder.layer[1](
            torch.from_numpy(hidden), encoder_hidden_states=torch.from_numpy(patches)
        )

    compute = replace(found.config.compute, dtype="float32")
    text = found.config.model.text
    layer = nnx.eval_shape(lambda: TextLayer(text, WIDTH, compute, rngs=nnx.Rngs(0)))
    graph, _ = nnx.split(layer, nnx.Param)
    params = jax.tree.map(jnp.asarray, found.params["text"]["layers"][1])
    ours = nnx.merge(graph, params)(hidden, np.ones((2, 7), bool), patches=patches)
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs
    assert relative_error(ours, theirs) <= 1e-5


def original_names(model):
    """The state of a BlipForImageTextRetrieval under the names of BLIP's own code."""
    renames = (
        ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
        ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
        ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
        ("vision_model.post_layernorm", "visual_encoder.norm"),
        ("vision_model.encoder.layers", "visual_encoder.blocks"),
        ("self_attn.projection", "attn.proj"),
        ("self_attn", "attn"),
        ("layer_norm", "norm"),
    )
    state = {}
    for name, tensor in model.state_dict().items():
        for old, new in renames:
            name = name.replace(old, new)
        state[name] = tensor
    return state


@pytest.fixture(scope="module")
def blip_file(blip_of_hugging_face, torch, tmp_path_factory):
    from tests.weights.torch_models import momentum_names, queues

    _, model, theirs = blip_of_hugging_face
    state = original_names(model)
    prefixes = ("visual_encoder.", "text_encoder.", "vision_proj.", "text_proj.")
    state |= momentum_names(state, prefixes)
    state |= {
        "temp": torch.tensor(0.05),
        "text_encoder.embeddings.position_ids": torch.arange(POSITIONS)[None],
        "text_encoder_m.embeddings.position_ids": torch.arange(POSITIONS)[None],
        "text_decoder.cls.predictions.bias": torch.zeros(VOCABULARY),
    }
    owners = [-100] * QUEUE
    state |= queues(EMBEDDING, QUEUE, POINTER, name="ptr_queue", owners=owners)
    file = tmp_path_factory.mktemp("blip_pth") / "model_base_retrieval.pth"
    torch.save({"model": state}, file)
    return file, theirs


def test_original_blip(blip_file, blip_of_hugging_face, relative_error):
    """The same weights under their other names; its ViT's epsilon is 1e-6 always."""
    file, _ = blip_file
    source = open_checkpoint(file, allow_pickle=True)
    assert recognize(source) == "blip"
    found = blip.read_model(source, **HEADS)
    theirs = huggingface_blip.read_model(open_checkpoint(blip_of_hugging_face[0]))
    assert found.config.model.vision.layer_norm_eps == 1e-6
    assert found.config.loss.queue_length == QUEUE and found.queues == {}
    assert found.config.model.text == theirs.config.model.text
    assert (found.config.data.cleaning, found.config.data.keeps_sep) == ("blip", True)
    np.testing.assert_array_equal(found.params["temperature"], np.float32(0.05))
    for tower in ("vision", "text", "image_projection", "text_projection"):
        jax.tree.map(
            np.testing.assert_array_equal, found.params[tower], theirs.params[tower]
        )
    for ours, wanted in zip(
        embeddings(theirs.config, found.params), blip_file[1], strict=True
    ):
        assert relative_error(ours, wanted) <= 1e-4
    momentum = found.momentum_params["text"]["layers"][2]["cross_attention"]["query"]
    online = found.params["text"]["layers"][2]["cross_attention"]["query"]
    np.testing.assert_allclose(
        momentum["kernel"], online["kernel"] * 0.5 + 0.01, rtol=1e-6, atol=1e-7
    )
    types = found.momentum_params["text"]["embedding"]["token_types"]
    np.testing.assert_array_equal(types, np.zeros((1, WIDTH)))


def test_towers_of_a_blip(blip_file, blip_of_hugging_face):
    vision = VisionConfig(image_size=24, width=WIDTH, num_heads=4)
    trees = []
    for name in (str(blip_file[0]), str(blip_of_hugging_face[0])):
        options = {"allow_pickle": True}
        config = starts.read_vision_config(name, vision, **options)
        text = starts.read_text_config(name, TextConfig(), **options)
        assert text.num_token_types == 1 and text.vocab_size == VOCABULARY
        tower, _ = starts.load_text(name, text, **options)
        assert "cross_attention" not in tower["layers"][0]
        trees.append((starts.load_vision(name, config, **options), tower))
    jax.tree.map(np.testing.assert_array_equal, *trees)

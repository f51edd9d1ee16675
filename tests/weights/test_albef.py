"""ALBEF, whole and its towers, against a reference in torch."""

import jax
import numpy as np
import pytest

from tests.weights.both_towers import (
    EMBEDDING,
    HEADS,
    QUEUE,
    WIDTH,
    albef_state,
    embeddings,
)
from vilem_jax.config.schema import TextConfig, VisionConfig
from vilem_jax.errors import UserError
from vilem_jax.weights import starts, tables
from vilem_jax.weights.detect import recognize
from vilem_jax.weights.folders import tensors_in_memory
from vilem_jax.weights.foreign import open_checkpoint
from vilem_jax.weights.formats import albef
from vilem_jax.weights.formats.whole_models import resized


@pytest.fixture(scope="module", params=[True, False], ids=["pretrained", "retrieval"])
def albef_file(request, torch, randomize, tmp_path_factory):
    state, theirs = albef_state(torch, randomize, is_pretrained=request.param)
    file = tmp_path_factory.mktemp("albef") / "ALBEF.pth"
    torch.save({"model": state, "epoch": 29, "config": {"temp": 0.07}}, file)
    return file, state, theirs, request.param


@pytest.fixture(scope="module")
def albef_source(albef_file):
    return open_checkpoint(albef_file[0], allow_pickle=True)


@pytest.fixture(scope="module")
def albef_model(albef_source):
    return albef.read_model(albef_source, **HEADS)


def test_albef_embeds_as_torch_does(
    albef_file, albef_source, albef_model, relative_error
):
    assert recognize(albef_source) == "albef"
    config = albef_model.config
    assert (config.model.text.num_layers, config.model.vision.num_layers) == (3, 2)
    assert config.model.num_proofread_layers == 2
    assert config.model.text.layer_norm_eps == 1e-12
    assert config.model.vision.image_size == 24
    assert (config.data.cleaning, config.data.keeps_sep) == ("albef", False)
    assert not config.loss.has_proofreading
    for ours, theirs in zip(
        embeddings(config, albef_model.params), albef_file[2], strict=True
    ):
        assert relative_error(ours, theirs) <= 1e-4
    np.testing.assert_array_equal(albef_model.params["temperature"], 0.0625)


def test_albef_momentum_and_queues(albef_file, albef_model):
    _, state, _, is_pretrained = albef_file
    params, momentum = albef_model.params, albef_model.momentum_params
    assert dict(tables.leaves(momentum)).keys() == dict(tables.leaves(params)).keys()
    for path in (
        ("vision", "blocks", 1, "query"),
        ("text", "layers", 2, "mlp", "expand"),
    ):
        online = tables.take(params, path)["kernel"]
        np.testing.assert_allclose(
            tables.take(momentum, path)["kernel"],
            online * 0.5 + 0.01,
            rtol=1e-6,
            atol=1e-7,
        )
    projection = momentum["image_projection"]["kernel"]
    np.testing.assert_array_equal(projection, state["vision_proj_m.weight"].numpy().T)
    for head in ("local_head", "temperature"):  # what ALBEF has no copy of
        jax.tree.map(np.testing.assert_array_equal, momentum[head], params[head])
    # Written round and round: 2 comes next, so 1 is the newest and 2 the oldest.
    rows = np.array([1, 0, 4, 3, 2] if is_pretrained else [1, 0, 4, 2])
    for name, offset in (("image_queue", 0.25), ("text_queue", 0.5)):
        wanted = np.repeat(rows[:, None] + offset, EMBEDDING, axis=1)
        np.testing.assert_array_equal(albef_model.queues[name], wanted)
    assert albef_model.config.loss.queue_length == QUEUE


def test_towers_of_an_albef(albef_file, albef_model):
    name, options = str(albef_file[0]), {"allow_pickle": True}
    vision = VisionConfig(image_size=24, width=WIDTH, num_heads=4)
    config = starts.read_vision_config(name, vision, **options)
    assert config == albef_model.config.model.vision
    ours = starts.load_vision(name, config, **options)
    jax.tree.map(np.testing.assert_array_equal, ours, albef_model.params["vision"])
    config = starts.read_text_config(name, TextConfig(dropout_rate=0.2), **options)
    assert config.num_layers == 3 and config.dropout_rate == 0.2
    tower, head = starts.load_text(name, config, **options)
    assert head is None
    for path, value in tables.leaves(tower):
        wanted = tables.take(albef_model.params["text"], path)
        np.testing.assert_array_equal(value, wanted)


def test_online_and_momentum_positions_are_resized(albef_model):
    larger = resized(albef_model, 40)
    assert larger.config.model.vision.num_patches == 25
    for name in ("params", "momentum_params"):
        before, after = (
            getattr(model, name)["vision"]["position_embedding"]
            for model in (albef_model, larger)
        )
        assert (before.shape, after.shape) == ((10, WIDTH), (26, WIDTH))
        np.testing.assert_array_equal(before[0], after[0])
    both_tables = [
        p["vision"]["position_embedding"]
        for p in (larger.params, larger.momentum_params)
    ]
    assert np.abs(both_tables[0] - both_tables[1]).max() > 0.01
    with pytest.raises(UserError, match="42 pixels do not divide"):
        resized(albef_model, 42)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("temp"), "lacks temp$"),
        (lambda s: s.pop("text_proj.bias"), r"lacks text_proj\.bias$"),
        (lambda s: s.pop("visual_encoder_m.norm.bias"), r"lacks visual_encoder_m\.nor"),
        (lambda s: s.pop("text_queue"), "lacks the tensor text_queue"),
        (lambda s: s.pop("queue_ptr"), "lacks the tensor queue_ptr"),
        (
            lambda s: s.update({"prompt.bias": s["temp"]}),
            r"holds prompt\.bias, which this model has no place for",
        ),
        (
            lambda s: s.update({"text_queue": s["image_queue"][:, :2]}),
            r"text_queue in .* is \[16, 2\]: \[16, 5\] is expected",
        ),
        (
            lambda s: s.update({"text_proj.weight": s["vision_proj.weight"][:9]}),
            r"text_proj\.weight .* is \[9, 64\], but .* needs \[16, 64\]",
        ),
    ],
)
def test_an_albef_that_does_not_fit(albef_source, change, message):
    arrays = {name: albef_source.array(name) for name in albef_source.names}
    change(arrays)
    changed = tensors_in_memory(albef_source.path, arrays)
    with pytest.raises(UserError, match=message):
        albef.read_model(changed, **HEADS)

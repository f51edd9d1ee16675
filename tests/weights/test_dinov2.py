"""DINOv2: our ViT with LayerScale folded in against `Dinov2Model`; what is refused."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from vilem_jax.cli.main import main
from vilem_jax.config.freeze import freeze
from vilem_jax.config.schema import AugmentConfig, ComputeConfig, VisionConfig
from vilem_jax.errors import UserError
from vilem_jax.models.vision import VisionTower
from vilem_jax.training import starting
from vilem_jax.weights import starts

COMPUTE = ComputeConfig(dtype="float32", cls_only_last_layer=False)
SHAPE = dict(
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    mlp_ratio=2,
    image_size=42,
    patch_size=14,
)
BASE = VisionConfig(image_size=42, width=64, num_heads=4)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def tiny(torch, randomize):
    """A `Dinov2Model`, its LayerScale unlike 1."""
    from transformers import Dinov2Config, Dinov2Model

    return randomize(Dinov2Model(Dinov2Config(**SHAPE)), seed=4)


@pytest.fixture
def folder(tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.fixture
def authors_state(folder):
    """The tensors under the authors' names, [3 * W, W] for query, key and value."""
    theirs = safetensors.numpy.load_file(folder / "model.safetensors")
    state = {
        "cls_token": theirs["embeddings.cls_token"],
        "mask_token": theirs["embeddings.mask_token"],
        "pos_embed": theirs["embeddings.position_embeddings"],
    }
    for part in ("weight", "bias"):
        patches = f"embeddings.patch_embeddings.projection.{part}"
        state[f"patch_embed.proj.{part}"] = theirs[patches]
        state[f"norm.{part}"] = theirs[f"layernorm.{part}"]
        for number in range(SHAPE["num_hidden_layers"]):
            block, ours = f"encoder.layer.{number}", f"blocks.{number}"
            attention = f"{block}.attention.attention"
            state[f"{ours}.attn.qkv.{part}"] = np.concatenate(
                [theirs[f"{attention}.{n}.{part}"] for n in ("query", "key", "value")]
            )
            output = theirs[f"{block}.attention.output.dense.{part}"]
            state[f"{ours}.attn.proj.{part}"] = output
            for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                state[f"{ours}.{name}.{part}"] = theirs[f"{block}.{name}.{part}"]
    for number in range(SHAPE["num_hidden_layers"]):
        for n in "12":
            scale = theirs[f"encoder.layer.{number}.layer_scale{n}.lambda1"]
            state[f"blocks.{number}.ls{n}.gamma"] = scale
    return state


def save(state, file):
    safetensors.numpy.save_file(state, file)
    return str(file)


@functools.partial(jax.jit, static_argnums=0)
def run(graph, params, pixels):
    tower = nnx.merge(graph, params)
    return tower(pixels, levels=tuple(range(1, len(tower.blocks) + 1)))


def features(name, config, pixels):
    graph, _ = nnx.split(
        nnx.eval_shape(lambda: VisionTower(config, COMPUTE, rngs=nnx.Rngs(0))),
        nnx.Param,
    )
    params = starts.load_vision(str(name), config)
    return run(graph, jax.tree.map(jnp.asarray, params), pixels)


def errors(torch, relative_error, model, name, side, *, num_images=2):
    """Of the patches of each block, and of [CLS] behind the last LayerNorm."""
    pixels = np.random.default_rng(side).normal(size=(num_images, side, side, 3))
    pixels = pixels.astype(np.float32)
    config = starts.read_vision_config(
        str(name), dataclasses.replace(BASE, image_size=side)
    )
    ours = features(name, config, pixels)
    with torch.no_grad():
        given = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        theirs = model(pixel_values=given, output_hidden_states=True)
    blocks = zip(ours.levels, theirs.hidden_states[1:], strict=True)
    found = [relative_error(our, their[:, 1:]) for our, their in blocks]
    return [*found, relative_error(ours.class_feature, theirs.pooler_output)]


@pytest.mark.parametrize("side", [42, 56])
def test_tower_equals_dinov2_in_torch(side, tiny, folder, torch, relative_error):
    """Also at a larger size, to which both resize the position embeddings."""
    found = errors(torch, relative_error, tiny, folder, side)
    assert len(found) == 4 and max(found) <= 1e-5


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("side", [126, 224, 518])
def test_published_weights_equal_torch(side, torch, relative_error, shared_folder):
    from transformers import Dinov2Model

    folder = shared_folder / "weights" / "dinov2-small"
    if not folder.is_dir():
        pytest.skip(f"no real weights: {folder} is missing")
    model = Dinov2Model.from_pretrained(folder, attn_implementation="eager").eval()
    found = errors(torch, relative_error, model, folder, side, num_images=1)
    assert len(found) == 13 and max(found) <= 1e-4


def test_authors_names_are_the_same_tower(folder, authors_state, tmp_path):
    name = save(authors_state, tmp_path / "dinov2_vits14_pretrain.safetensors")
    config = starts.read_vision_config(name, BASE)
    assert config == starts.read_vision_config(str(folder), BASE)
    ours, theirs = (starts.load_vision(n, config) for n in (name, str(folder)))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_an_import_is_a_dinov2_for_torch(
    folder, authors_state, tmp_path, torch, relative_error, capsys
):
    from transformers import Dinov2Model

    name = save(authors_state, tmp_path / "vit.safetensors")
    out = tmp_path / "out"
    arguments = ["weights", "import", name, f"--out={out}", "--vision-heads=4"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "as Hugging Face's Dinov2Model" in said.out and "LayerScale" in said.err
    model, report = Dinov2Model.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert max(errors(torch, relative_error, model.eval(), folder, 42)) <= 1e-5
    config = starts.read_vision_config(name, BASE)
    ours, theirs = (starts.load_vision(str(n), config) for n in (out, folder))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"register_tokens": (1, 4, 64)}, r"with register tokens \(register_tokens\)"),
        ({"blocks.0.mlp.w12.weight": (8, 64)}, r"with a SwiGLU MLP \(blocks\.0\.mlp"),
        ({"blocks.1.ls2.gamma": None}, r"lacks the tensor blocks\.1\.ls2\.gamma"),
        ({"blocks.1.ls2.gamma": (3,)}, r"ls2\.gamma in .* is \[3\], but .*fc2\.weight"),
        ({"blocks.2.attn.proj.bias": None}, r"lacks blocks\.2\.attn\.proj\.bias"),
        ({"blocks.0.ls3.gamma": (64,)}, r"holds blocks\.0\.ls3\.gamma, which"),
    ],
    ids=str,
)
def test_what_is_refused(change, message, authors_state, tmp_path):
    for name, shape in change.items():
        if shape is None:
            del authors_state[name]
        else:
            authors_state[name] = np.ones(shape, np.float32)
    name = save(authors_state, tmp_path / "vit.safetensors")
    with pytest.raises(UserError, match=message):
        starts.load_vision(name, starts.read_vision_config(name, BASE))


def test_a_swiglu_of_hugging_face_is_refused(torch, tmp_path):
    from transformers import Dinov2Config, Dinov2Model

    Dinov2Model(Dinov2Config(**SHAPE, use_swiglu_ffn=True)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="a DINOv2 with a SwiGLU MLP"):
        starts.read_vision_config(str(tmp_path), BASE)


# ---- the normalization of images ----


def completed(workdir, *, augment=None, **vision):
    """`config.augment` of a run; its patches of 16 are not those of the start."""
    settings = {
        "model": {"vision": {"image_size": 42, **vision}, "num_proofread_layers": 2},
        "loss": dict.fromkeys(
            ("local_detect", "local_correct", "global_detect", "global_correct"), False
        ),
        "augment": augment or {},
    }
    return starting.complete(freeze(settings), workdir).augment


def test_normalization_comes_with_the_tower(folder, tmp_path):
    start = {"start_from": str(folder)}
    augment = completed(tmp_path, **start)
    assert (augment.mean, augment.std) == (MEAN, STD)
    assert augment == dataclasses.replace(AugmentConfig(), mean=MEAN, std=STD)
    # A choice of the config stays, and another format brings none.
    half = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert completed(tmp_path, augment=half, **start).mean == (0.5,) * 3
    assert completed(tmp_path, patch_size=14) == AugmentConfig()


def test_preprocessor_config_decides_and_is_imported(folder, tmp_path):
    file = folder / "preprocessor_config.json"
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    file.write_text(json.dumps(values))
    out = tmp_path / "out"
    assert main(["weights", "import", str(folder), f"--out={out}"]) == 0
    for name in (folder, out):
        augment = completed(tmp_path, start_from=str(name))
        assert (augment.mean, augment.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    file.write_text(json.dumps({"image_mean": [0.1, 0.2]}))
    with pytest.raises(UserError, match=r"image_mean must be three numbers, not \[0"):
        completed(tmp_path, start_from=str(folder))

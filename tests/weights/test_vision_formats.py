"""Image towers from timm, DeiT and AugReg against references in torch and NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from vilem_jax.config.schema import ComputeConfig, VisionConfig
from vilem_jax.errors import UserError
from vilem_jax.models.vision import VisionTower
from vilem_jax.weights import positions, starts

COMPUTE = ComputeConfig(dtype="float32")
SHAPE = dict(
    side=24, patch_size=8, width=64, depth=3, num_heads=4, mlp_width=96
)  # one head by the usual rule, so a config has to say it
BASE = VisionConfig(image_size=24, width=64, num_heads=4)


@functools.partial(jax.jit, static_argnums=0)
def run(graph, params, pixels):
    return nnx.merge(graph, params)(pixels).class_feature


def class_feature(name, config, pixels, **options):
    graph, _ = nnx.split(
        nnx.eval_shape(lambda: VisionTower(config, COMPUTE, rngs=nnx.Rngs(0))),
        nnx.Param,
    )
    params = starts.load_vision(str(name), config, **options)
    return run(graph, jax.tree.map(jnp.asarray, params), pixels)


def noise(side=24):
    pixels = np.random.default_rng(5).normal(size=(2, side, side, 3))
    return pixels.astype(np.float32)


def to_torch(torch, pixels):
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


@pytest.fixture(scope="module", params=[False, True], ids=["vit", "deit_distilled"])
def timm(request, torch, randomize):
    from tests.weights.torch_models import ViT

    model = randomize(ViT(**SHAPE, distilled=request.param), seed=3)
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    heads = ("head", "head_dist") if request.param else ("head", "pre_logits.fc")
    for head in heads:
        state |= {f"{head}.weight": torch.ones(5, 64), f"{head}.bias": torch.ones(5)}
    return model, state


def save(state, file):
    arrays = {name: value.detach().numpy() for name, value in state.items()}
    safetensors.numpy.save_file(arrays, file)
    return file


def test_timm_in_all_its_files(timm, torch, relative_error, tmp_path):
    model, state = timm
    pixels = noise()
    with torch.no_grad():
        theirs = model(to_torch(torch, pixels))
    (tmp_path / "hub").mkdir()
    save(state, tmp_path / "hub" / "model.safetensors")
    torch.save({"model": state, "epoch": 3}, tmp_path / "deit.pth")
    save(state, tmp_path / "bare.safetensors")
    wrapped = {f"module.{name}": value for name, value in state.items()}
    torch.save({"state_dict": wrapped}, tmp_path / "parallel.pt")
    for file in ("hub", "deit.pth", "bare.safetensors", "parallel.pt"):
        name, options = str(tmp_path / file), {"allow_pickle": True}
        config = starts.read_vision_config(name, BASE, **options)
        assert (config.width, config.num_layers, config.patch_size) == (64, 3, 8)
        assert (config.num_heads, config.mlp_width) == (4, 96)
        ours = class_feature(name, config, pixels, **options)
        assert relative_error(ours, theirs) <= 1e-4, file


def test_comparison_finds_query_and_key_exchanged(
    timm, torch, relative_error, tmp_path
):
    model, state = timm
    pixels = noise()
    with torch.no_grad():
        theirs = model(to_torch(torch, pixels))
    name = "blocks.1.attn.qkv.weight"
    query, key, value = state[name].chunk(3)
    state = state | {name: torch.cat([key, value, query])}
    file = save(state, tmp_path / "wrong.safetensors")
    config = starts.read_vision_config(str(file), BASE)
    assert relative_error(class_feature(file, config, pixels), theirs) > 1e-2


def test_half_precision_in_a_pickle(timm, torch, tmp_path):
    _, state = timm
    halved = {name: value.to(torch.bfloat16) for name, value in state.items()}
    torch.save(halved, tmp_path / "half.pth")
    config = starts.read_vision_config(
        str(tmp_path / "half.pth"), BASE, allow_pickle=True
    )
    ours = starts.load_vision(str(tmp_path / "half.pth"), config, allow_pickle=True)
    wanted = halved["norm.weight"].float().numpy()
    np.testing.assert_array_equal(ours["norm"]["scale"], wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.norm1.bias"), r"lacks blocks\.1\.norm1\.bias"),
        (lambda s: s.pop("cls_token"), "lacks cls_token"),
        (lambda s: s.pop("patch_embed.proj.weight"), "names of no format"),
        (
            lambda s: s.update({f"blocks.0.ls{n}.gamma": s["norm.bias"] for n in "12"}),
            r"lacks the tensor blocks\.1\.ls1\.gamma",
        ),
        (
            lambda s: s.update({"blocks.2.norm1.bias": s["cls_token"][0, 0, :3]}),
            r"blocks\.2\.norm1\.bias in .* is \[3\], but .* needs \[64\]",
        ),
        (
            lambda s: s.update({"blocks.0.attn.qkv.bias": s["cls_token"][0, 0]}),
            r"qkv\.bias in .* is \[64\], but .* needs \[192\]",
        ),
        (lambda s: s.update({"pos_embed": s["pos_embed"][:, :7]}), "square grid"),
        (
            lambda s: s.update({"blocks.7.norm1.bias": s["cls_token"]}),
            r"lacks blocks\.2.* and 66 more",
        ),
    ],
)
def test_wrong_tensors_are_named(timm, change, message, tmp_path):
    state = dict(timm[1])
    change(state)
    if "2" in message and "more" in message:
        for name in [n for n in state if n.startswith("blocks.2.")]:
            del state[name]
    file = save(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message):
        config = starts.read_vision_config(str(file), BASE)
        starts.load_vision(str(file), config)


def test_an_unknown_number_of_heads(timm, tmp_path):
    state = {n: v[..., :60] if n == "cls_token" else v for n, v in timm[1].items()}
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:60]
    file = save(
        {n: v.contiguous() for n, v in state.items()}, tmp_path / "a.safetensors"
    )
    with pytest.raises(UserError, match=r"width 60 has.*--vision-heads.*width=60"):
        starts.read_vision_config(str(file), VisionConfig(image_size=24))


@pytest.mark.parametrize("number", [0, 1])
def test_deit_of_hugging_face(number, torch, randomize, relative_error, tmp_path):
    """Without the distillation token, which ours has not, in DeiT's own layers."""
    from transformers import (
        DeiTConfig,
        DeiTForImageClassificationWithTeacher,
        DeiTModel,
    )

    kind = (DeiTModel, DeiTForImageClassificationWithTeacher)[number]
    config = DeiTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=24,
        patch_size=8,
        layer_norm_eps=1e-12,
    )
    model = randomize(kind(config), seed=number)
    model.save_pretrained(tmp_path)
    base = model if number == 0 else model.deit
    pixels = noise()
    with torch.no_grad():
        table = base.embeddings.position_embeddings
        grid = base.embeddings.patch_embeddings(to_torch(torch, pixels))
        first = base.embeddings.cls_token.expand(2, -1, -1) + table[:, :1]
        hidden = torch.cat([first, grid + table[:, 2:]], dim=1)
        for layer in base.layers:
            hidden = layer(hidden)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        theirs = base.layernorm(hidden)[:, 0]
    ours = starts.read_vision_config(str(tmp_path), VisionConfig(image_size=24))
    assert ours.layer_norm_eps == 1e-12 and ours.num_heads == 2
    assert relative_error(class_feature(tmp_path, ours, pixels), theirs) <= 1e-4


# ---- AugReg ----


def augreg_arrays(width=32, heads=4, depth=2, mlp=48, patch=8, side=24):
    """The names and shapes of the original ViTs' files, with noise in them."""
    rng = np.random.default_rng(8)
    head = width // heads
    shapes = {
        "cls": (1, 1, width),
        "embedding/kernel": (patch, patch, 3, width),
        "embedding/bias": (width,),
        "Transformer/posembed_input/pos_embedding": (
            1,
            1 + (side // patch) ** 2,
            width,
        ),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
        "head/kernel": (width, 10),
        "head/bias": (10,),
        "pre_logits/kernel": (width, width),
        "pre_logits/bias": (width,),
    }
    for number in range(depth):
        block = f"Transformer/encoderblock_{number}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            shapes[f"{attention}/{part}/kernel"] = (width, heads, head)
            shapes[f"{attention}/{part}/bias"] = (heads, head)
        shapes |= {
            f"{attention}/out/kernel": (heads, head, width),
            f"{attention}/out/bias": (width,),
            f"{block}/MlpBlock_3/Dense_0/kernel": (width, mlp),
            f"{block}/MlpBlock_3/Dense_0/bias": (mlp,),
            f"{block}/MlpBlock_3/Dense_1/kernel": (mlp, width),
            f"{block}/MlpBlock_3/Dense_1/bias": (width,),
        }
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes[f"{block}/{norm}/scale"] = shapes[f"{block}/{norm}/bias"] = (width,)
    return {
        name: (0.3 * rng.normal(size=shape) + name.endswith("scale")).astype(np.float32)
        for name, shape in shapes.items()
    }


def augreg_reference(arrays, pixels):
    """The ViT of Dosovitskiy et al., Eqs. (1)-(4), in NumPy and float64."""
    a = {name: value.astype(np.float64) for name, value in arrays.items()}
    patch, width = a["embedding/kernel"].shape[0], a["cls"].shape[-1]
    count = pixels.shape[1] // patch

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
        return x * a[f"{name}/scale"] + a[f"{name}/bias"]

    features = []
    for image in pixels.astype(np.float64):
        rows = [a["cls"][0, 0]]
        for y in range(count):
            for x in range(count):
                cut = image[y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]
                row = np.einsum("hwc,hwco->o", cut, a["embedding/kernel"])
                rows.append(row + a["embedding/bias"])
        hidden = np.stack(rows) + a["Transformer/posembed_input/pos_embedding"][0]
        number = 0
        while f"Transformer/encoderblock_{number}/LayerNorm_0/scale" in a:
            block = f"Transformer/encoderblock_{number}"
            attention = f"{block}/MultiHeadDotProductAttention_1"
            normed = norm(hidden, f"{block}/LayerNorm_0")
            query, key, value = (
                np.einsum("lw,whd->lhd", normed, a[f"{attention}/{p}/kernel"])
                + a[f"{attention}/{p}/bias"]
                for p in ("query", "key", "value")
            )
            scores = np.einsum("lhd,shd->hls", query, key) / math.sqrt(query.shape[-1])
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            scores /= scores.sum(-1, keepdims=True)
            mixed = np.einsum("hls,shd->lhd", scores, value)
            hidden = hidden + (
                np.einsum("lhd,hdw->lw", mixed, a[f"{attention}/out/kernel"])
                + a[f"{attention}/out/bias"]
            )
            normed = norm(hidden, f"{block}/LayerNorm_2")
            mlp = f"{block}/MlpBlock_3/Dense_"
            inner = normed @ a[f"{mlp}0/kernel"] + a[f"{mlp}0/bias"]
            erf = np.vectorize(math.erf)(inner / math.sqrt(2))
            inner = inner * 0.5 * (1 + erf)
            hidden = hidden + inner @ a[f"{mlp}1/kernel"] + a[f"{mlp}1/bias"]
            number += 1
        features.append(norm(hidden, "Transformer/encoder_norm")[0])
    assert number == 2 and len(features[0]) == width
    return np.stack(features)


@pytest.mark.parametrize("prefix", ["", "opt/target/"])
def test_augreg(prefix, relative_error, tmp_path):
    arrays, pixels = augreg_arrays(), noise()
    stored = {prefix + name: value for name, value in arrays.items()}
    np.savez(tmp_path / "vit.npz", **stored)
    name = str(tmp_path / "vit.npz")
    config = starts.read_vision_config(name, VisionConfig(image_size=24))
    assert (config.num_heads, config.width, config.num_layers) == (4, 32, 2)
    theirs = augreg_reference(arrays, pixels)
    assert relative_error(class_feature(name, config, pixels), theirs) <= 1e-4


def test_a_corrupt_augreg_file(tmp_path):
    arrays = augreg_arrays()
    file = tmp_path / "vit.npz"
    del arrays["Transformer/encoderblock_1/LayerNorm_2/scale"]
    arrays["Transformer/extra"] = np.zeros(2, np.float32)
    np.savez(file, **arrays)
    config = starts.read_vision_config(str(file), VisionConfig(image_size=24))
    with pytest.raises(UserError, match=r"lacks .*LayerNorm_2.* and holds .*extra"):
        starts.load_vision(str(file), config)
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(UserError, match=r"vit\.npz cannot be read"):
        starts.read_vision_config(str(file), VisionConfig(image_size=24))


# ---- positions ----


def test_positions_from_224_to_256_to_384_and_back(torch, relative_error):
    """Each step as torch's `interpolate`, for the online and the momentum table."""
    rng = np.random.default_rng(2)
    online, momentum = rng.normal(size=(2, 1 + 14 * 14, 6)).astype(np.float32)
    for table in (online, momentum):
        params = {"vision": {"position_embedding": table, "other": np.ones(2)}}
        old = 14
        for new in (16, 24, 16, 14):
            stored = params["vision"]["position_embedding"]
            grid = torch.from_numpy(stored[1:].reshape(1, old, old, 6)).double()
            theirs = torch.nn.functional.interpolate(
                grid.permute(0, 3, 1, 2), size=(new, new), mode="bicubic"
            )
            theirs = theirs.permute(0, 2, 3, 1).reshape(new * new, 6)
            params = positions.resize_vision(params, new)
            ours = params["vision"]["position_embedding"]
            np.testing.assert_array_equal(ours[0], table[0])
            assert relative_error(ours[1:], theirs) <= 1e-6
            np.testing.assert_array_equal(params["vision"]["other"], np.ones(2))
            old = new


@pytest.mark.parametrize(("old", "new"), [(3, 5), (14, 24), (24, 14), (14, 7)])
def test_positions_equal_cubic_convolution_in_float64(old, new):
    """Against the kernel written out, to the last bit of float32; needs no torch."""
    a = -0.75

    def cubic(d):  # 1 at 0, 0 at 1 and from 2 on
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        return near if d <= 1 else far if d < 2 else 0.0

    shares = np.zeros((new, old))  # of each old position in each new one
    for row in range(new):
        center = (row + 0.5) * old / new - 0.5
        for index in range(math.floor(center) - 1, math.floor(center) + 3):
            shares[row, min(max(index, 0), old - 1)] += cubic(abs(center - index))
    table = np.random.default_rng(3).normal(size=(1 + old * old, 6)).astype(np.float32)
    grid = table[1:].reshape(old, old, 6).astype(np.float64)
    expected = np.einsum("yr,xc,rcw->yxw", shares, shares, grid).reshape(-1, 6)
    resized = positions.resize(table, new)
    np.testing.assert_array_equal(resized[0], table[0])
    error = np.abs(resized[1:] - expected).max()
    assert error <= np.spacing(np.float32(np.abs(expected).max()))


def test_start_at_another_size(timm, torch, relative_error, tmp_path):
    model, state = timm
    file = save(state, tmp_path / "model.safetensors")
    base = VisionConfig(image_size=40, width=64, num_heads=4)
    config = starts.read_vision_config(str(file), base)
    assert config.image_size == 40
    ours = starts.load_vision(str(file), config)["position_embedding"]
    extra = model.num_extra
    grid = model.pos_embed[:, extra:].reshape(1, 3, 3, 64).permute(0, 3, 1, 2)
    theirs = torch.nn.functional.interpolate(grid, size=(5, 5), mode="bicubic")
    theirs = theirs.permute(0, 2, 3, 1).reshape(25, 64).detach()
    assert relative_error(ours[1:], theirs) <= 1e-5
    with pytest.raises(UserError, match="42 pixels do not divide"):
        starts.read_vision_config(str(file), VisionConfig(image_size=42))

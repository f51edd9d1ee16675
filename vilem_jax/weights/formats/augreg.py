"""The original ViTs' .npz, as the papers' JAX code and AugReg store them, in."""

import dataclasses
from collections.abc import Collection

from vilem_jax.config.schema import VisionConfig
from vilem_jax.weights import positions, tables
from vilem_jax.weights.folders import Tensors
from vilem_jax.weights.formats.vision_names import read_tower, stored_config
from vilem_jax.weights.tables import FIRST_OF_ONE, FIRST_OF_ONE_TWICE, SAME, Entry, Form

POSITIONS = "Transformer/posembed_input/pos_embedding"
PATCH = "embedding"
PREFIXES = (("opt/target/", ""), ("params/", ""))  # of a whole state of training
BLOCK = "Transformer/encoderblock_"
ATTENTION = "MultiHeadDotProductAttention_1"
EPS = 1e-6  # Flax's

# Left out on purpose: our feature is [CLS] itself, without classifier, and without
# what stands between the two in models of ImageNet-21k; and the optimizer's state.
DROPPED = ("head/", "pre_logits/", "opt/state/")


def matches(names: Collection[str]) -> bool:
    """Whether arrays of these names are in this format."""
    spelt = {tables.replace_prefix(name, PREFIXES) for name in names}
    return f"{BLOCK}0/LayerNorm_0/scale" in spelt


def _reshaped(stored: tuple[int, ...], ours: tuple[int, ...]) -> Form:
    return Form(lambda array: array.reshape(ours), lambda array: array.reshape(stored))


def vision_table(config: VisionConfig) -> list[Entry]:
    """The original ViT -> `VisionTower`."""
    width, patch = config.width, config.patch_size
    heads = (config.num_heads, width // config.num_heads)
    patches = _reshaped((patch, patch, 3, width), (patch * patch * 3, width))
    kernel = _reshaped((width, *heads), (width, width))
    bias = _reshaped(heads, (width,))
    output = _reshaped((*heads, width), (width, width))

    def both(
        name: str, path: tables.TreePath, kernel: Form = SAME, bias: Form = SAME
    ) -> list[Entry]:
        first = "scale" if str(path[-1]).endswith("norm") else "kernel"
        return [
            Entry(f"{name}/{first}", (*path, first), kernel),
            Entry(f"{name}/bias", (*path, "bias"), bias),
        ]

    table = [
        Entry("cls", ("class_token",), FIRST_OF_ONE_TWICE),
        Entry(POSITIONS, ("position_embedding",), FIRST_OF_ONE),
        *both(PATCH, ("patch_embedding",), patches),
        *both("Transformer/encoder_norm", ("norm",)),
    ]
    for number in range(config.num_layers):
        name, path = f"{BLOCK}{number}", ("blocks", number)
        attention = f"{name}/{ATTENTION}"
        table += both(f"{name}/LayerNorm_0", (*path, "attention_norm"))
        for part in ("query", "key", "value"):
            table += both(f"{attention}/{part}", (*path, part), kernel, bias)
        table += both(f"{attention}/out", (*path, "output"), output)
        table += both(f"{name}/LayerNorm_2", (*path, "mlp_norm"))
        table += both(f"{name}/MlpBlock_3/Dense_0", (*path, "mlp", "expand"))
        table += both(f"{name}/MlpBlock_3/Dense_1", (*path, "mlp", "contract"))
    return table


def read_vision_config(
    source: Tensors, base: VisionConfig, *, num_heads: int = 0
) -> VisionConfig:
    """The shape as the arrays have it, heads too; the image's side from `base`."""
    files = tables.spell(source, PREFIXES)

    def shape(name: str, rank: int) -> tuple[int, ...]:
        return tables.shape_of(files, name, rank=rank)

    patch_size, _, _, width = shape(f"{PATCH}/kernel", 4)
    positions.check_divides(base.image_size, patch_size, source.path)
    return dataclasses.replace(
        base,
        patch_size=patch_size,
        width=width,
        num_layers=tables.depth(files.names, BLOCK),
        num_heads=shape(f"{BLOCK}0/{ATTENTION}/query/kernel", 3)[1],
        mlp_width=shape(f"{BLOCK}0/MlpBlock_3/Dense_0/kernel", 2)[1],
        layer_norm_eps=EPS,
        activation="gelu",
    )


def load_vision(source: Tensors, config: VisionConfig) -> dict:
    """Parameters of `VisionTower`, the grid of positions resized to `config`'s.

    Raises:
      UserError: arrays that are missing, unknown, or of another shape than `config`.
    """
    files = tables.spell(source, PREFIXES)
    stored = stored_config(files, config, POSITIONS)
    return read_tower(vision_table(config), files, config, stored, DROPPED)

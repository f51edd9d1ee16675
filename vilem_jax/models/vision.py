"""The image tower: a pre-norm ViT that returns the patches of chosen layers."""

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vilem_jax.config.schema import AugmentConfig, ComputeConfig, VisionConfig
from vilem_jax.models import layers


class ImageFeatures(NamedTuple):
    """What the text tower and the losses read of an image."""

    class_feature: jax.Array  # [B, W], [CLS] after the final LayerNorm
    raw_class_feature: jax.Array  # [B, W], before it
    levels: tuple[jax.Array, ...]  # per level [B, P, W], patches without [CLS]


class StartedImage(NamedTuple):
    """The tower after its locked layers, or after the embedding if none are locked."""

    hidden: jax.Array  # [B, L, W]; [B, 1, W], [CLS] alone, if all are locked
    patches: dict[int, jax.Array]  # by the number of the block: [B, P, W]


class VisionBlock(nnx.Module):
    """x + attention(LN(x)), then x + MLP(LN(x))."""

    def __init__(self, config: VisionConfig, compute: ComputeConfig, *, rngs):
        width = config.width
        self.attention_norm = layers.layer_norm(config, compute, rngs)
        self.query = layers.linear(width, width, compute, rngs)
        self.key = layers.linear(width, width, compute, rngs)
        self.value = layers.linear(width, width, compute, rngs)
        self.output = layers.linear(width, width, compute, rngs)
        self.mlp_norm = layers.layer_norm(config, compute, rngs)
        self.mlp = layers.MLP(config, compute, rngs=rngs)
        self.num_heads = config.num_heads
        # XLA's runs everywhere, also if no run has replaced "auto".
        uses_cudnn = compute.attention == "cudnn"
        self.implementation: Literal["xla", "cudnn"] = "cudnn" if uses_cudnn else "xla"
        self.num_tokens = config.num_patches + 1

    def __call__(self, hidden: jax.Array, *, cls_only: bool = False) -> jax.Array:
        """[B, L, W] -> the same, or [B, 1, W] with `cls_only`.

        L is P + 1, or more with padding, to which no token attends.
        """
        normed = self.attention_norm(hidden)
        # [CLS] still attends to all patches: keys and values are of all of them.
        queries = normed[:, :1] if cls_only else normed
        hidden = hidden[:, :1] if cls_only else hidden
        query, key, value = (
            layers.split_heads(part, self.num_heads)  # [B, L, H, W / H]
            for part in (self.query(queries), self.key(normed), self.value(normed))
        )
        # cuDNN's kernel needs a full query; one [CLS] row is cheap in any kernel.
        kernel = "xla" if cls_only else self.implementation
        lengths = None
        if hidden.shape[1] > self.num_tokens:
            lengths = jnp.full(hidden.shape[0], self.num_tokens, jnp.int32)
        mixed = jax.nn.dot_product_attention(
            query, key, value, key_value_seq_lengths=lengths, implementation=kernel
        )
        hidden = hidden + self.output(layers.merge_heads(mixed))
        return hidden + self.mlp(self.mlp_norm(hidden))


class VisionTower(nnx.Module):
    """ViT: pixels -> [CLS] feature and the patches of the requested levels."""

    def __init__(self, config: VisionConfig, compute: ComputeConfig, *, rngs):
        width = config.width
        # A convolution whose stride is its kernel is a linear map of each patch; as a
        # matrix product it is fast on every device.
        num_pixels = 3 * config.patch_size**2
        self.patch_embedding = layers.linear(num_pixels, width, compute, rngs)
        self.class_token = nnx.Param(layers.NORMAL_INIT(rngs.params(), (width,)))
        shape = (config.num_patches + 1, width)
        self.position_embedding = nnx.Param(layers.NORMAL_INIT(rngs.params(), shape))
        # A list, not stacked arrays: weights keep one name per layer.
        self.blocks = nnx.List(
            VisionBlock(config, compute, rngs=rngs) for _ in range(config.num_layers)
        )
        self.norm = layers.layer_norm(config, compute, rngs)
        self.config, self.compute = config, compute
        self.num_tokens = config.num_patches + 1
        # JAX refuses the gradient of cuDNN's attention for an odd number of tokens, as
        # the paper's 257 are. One more row costs 0.4 % of the blocks' products; padding
        # queries, keys and values in each block instead would copy them.
        self.num_padding = self.num_tokens % 2 if compute.attention == "cudnn" else 0

    def __call__(
        self, pixels: jax.Array, *, levels: tuple[int, ...] = ()
    ) -> ImageFeatures:
        """Runs all blocks.

        Args:
          pixels: [B, R, R, 3], normalized.
          levels: 1-based block numbers, ascending, whose patches are returned.

        Raises:
          ValueError: the side of the pixels is not the config's.
        """
        return self.finish(self.start(pixels, levels=levels), levels=levels)

    def start(self, pixels: jax.Array, *, levels: tuple[int, ...] = ()) -> StartedImage:
        """The embedding and the locked blocks: what needs no gradient."""
        hidden, stop = self._embed(pixels), self.config.num_locked_layers
        if self.num_padding:
            hidden = jnp.pad(hidden, ((0, 0), (0, self.num_padding), (0, 0)))
        hidden, patches = self._run(hidden, 0, stop, levels)
        # `finish` reads nothing else then.
        hidden = hidden[:, :1] if stop == self.config.num_layers else hidden
        return StartedImage(hidden, patches)

    def finish(
        self, started: StartedImage, *, levels: tuple[int, ...] = ()
    ) -> ImageFeatures:
        """The other blocks, and the final LayerNorm; `start` had these levels, too."""
        start, stop = self.config.num_locked_layers, self.config.num_layers
        hidden, patches = self._run(started.hidden, start, stop, levels)
        patches = started.patches | patches
        raw = hidden[:, 0]  # [B, W]
        # Levels are the blocks' outputs; the final LayerNorm is for [CLS] alone.
        at_levels = tuple(patches[number] for number in levels)
        return ImageFeatures(self.norm(raw), raw, at_levels)

    def _run(self, hidden, start: int, stop: int, levels):
        """Blocks start..stop (0-based, stop excluded): hidden, patches by number."""
        if start == stop:
            return hidden, {}
        # The losses read nothing but [CLS] of the last block, unless it is a level.
        last = self.config.num_layers
        cls_only = self.compute.cls_only_last_layer and last not in levels
        cls_only = cls_only and stop == last
        run = self._scan if self.compute.scan_blocks else self._loop
        hidden, patches = run(hidden, start, stop - cls_only, levels)
        if cls_only:
            hidden = hidden[:, : self.num_tokens]
            hidden = self._runner(self.blocks[-1], cls_only=True)(hidden)
        return hidden, patches

    def _loop(self, hidden, start: int, stop: int, levels):
        """The blocks one by one: hidden [B, L, W], patches of the levels."""
        patches = {}
        blocks = list(self.blocks)[start:stop]
        for number, block in enumerate(blocks, start=start + 1):
            hidden = self._runner(block)(hidden)
            if number in levels:
                patches[number] = hidden[:, 1 : self.num_tokens]
        return hidden, patches

    def _scan(self, hidden, start: int, stop: int, levels):
        """The same with one compiled block: less to compile, the parameters copied."""
        if start == stop:
            return hidden, {}
        # All blocks have one graph; their parameters get a leading axis of blocks.
        graph, _ = nnx.split(self.blocks[0], nnx.Param)
        params = [nnx.state(block, nnx.Param) for block in self.blocks]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *params[start:stop])

        def step(hidden, block_params):
            hidden = self._runner(nnx.merge(graph, block_params))(hidden)
            # Patches of every block are kept, if any level is: [N, B, P, W].
            return hidden, hidden[:, 1 : self.num_tokens] if levels else None

        hidden, patches = jax.lax.scan(step, hidden, stacked)
        if patches is None:
            return hidden, {}
        numbers = [n for n in levels if start < n <= stop]
        return hidden, {n: patches[n - 1 - start] for n in numbers}

    def _runner(self, block: VisionBlock, *, cls_only: bool = False):
        run = partial(block, cls_only=cls_only)
        return jax.checkpoint(run) if self.compute.recompute else run

    def _embed(self, pixels: jax.Array) -> jax.Array:
        """[B, R, R, 3] -> [B, P + 1, W]: patches row by row, after [CLS]."""
        side, patch = self.config.image_size, self.config.patch_size
        if pixels.ndim != 4 or pixels.shape[1:] != (side, side, 3):
            raise ValueError(
                f"pixels must be [B, {side}, {side}, 3], not {pixels.shape}"
            )
        grid = side // patch
        batch = pixels.shape[0]
        # [B, rows, p, columns, p, 3] -> [B, P, p p 3]: the pixels of a patch, in the
        # order of the kernels that `weights/` converts.
        patches = pixels.reshape(batch, grid, patch, grid, patch, 3)
        patches = patches.swapaxes(2, 3).reshape(batch, grid * grid, -1)
        embedded = self.patch_embedding(patches)
        class_token = self.class_token[...].astype(embedded.dtype)
        class_token = jnp.broadcast_to(class_token, (batch, 1, embedded.shape[-1]))
        hidden = jnp.concatenate([class_token, embedded], axis=1)
        return hidden + self.position_embedding[...].astype(hidden.dtype)[None]


def normalize(pixels: jax.Array, config: AugmentConfig) -> jax.Array:
    """Pixels 0..255 [B, R, R, 3] -> float32, about zero mean and unit variance."""
    mean = jnp.asarray(config.mean, jnp.float32)[None, None, None]
    std = jnp.asarray(config.std, jnp.float32)[None, None, None]
    return (pixels.astype(jnp.float32) / 255.0 - mean) / std

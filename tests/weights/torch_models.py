"""References in torch under the names of timm, ALBEF and BLIP, written for the tests.

Only what the papers say of these networks, in torch's own modules; none of their code.
"""

import torch
from torch import nn


class Block(nn.Module):
    """Pre-norm: x + attention(LN(x)), x + MLP(LN(x)); one map for query, key, value."""

    class Attention(nn.Module):
        def __init__(self, width, num_heads):
            super().__init__()
            self.qkv = nn.Linear(width, 3 * width)
            self.proj = nn.Linear(width, width)
            self.num_heads = num_heads

        def forward(self, hidden):
            parts = self.qkv(hidden).chunk(3, dim=-1)
            query, key, value = (
                part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
                for part in parts
            )
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
            return self.proj(mixed.transpose(1, 2).flatten(2))

    class Mlp(nn.Module):
        def __init__(self, width, mlp_width):
            super().__init__()
            self.fc1 = nn.Linear(width, mlp_width)
            self.fc2 = nn.Linear(mlp_width, width)

        def forward(self, hidden):
            return self.fc2(nn.functional.gelu(self.fc1(hidden)))

    def __init__(self, width, num_heads, mlp_width):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Block.Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Block.Mlp(width, mlp_width)

    def forward(self, hidden):
        hidden = hidden + self.attn(self.norm1(hidden))
        return hidden + self.mlp(self.norm2(hidden))


class Patches(nn.Module):
    def __init__(self, width, patch_size):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch_size, patch_size)

    def forward(self, pixels):
        return self.proj(pixels).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """timm's names; `forward` gives [CLS] after the last norm, without distillation."""

    def __init__(
        self, side, patch_size, width, depth, num_heads, mlp_width, *, distilled=False
    ):
        super().__init__()
        num_extra = 1 + distilled
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        rows = num_extra + (side // patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, width))
        self.patch_embed = Patches(width, patch_size)
        self.blocks = nn.Sequential(
            *(Block(width, num_heads, mlp_width) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.num_extra = num_extra

    def forward(self, pixels):
        first = self.cls_token.expand(len(pixels), -1, -1)
        grid = self.patch_embed(pixels) + self.pos_embed[:, self.num_extra :]
        hidden = torch.cat([first + self.pos_embed[:, :1], grid], dim=1)
        return self.norm(self.blocks(hidden))[:, 0]


def momentum_names(state: dict, prefixes) -> dict:
    """{name with _m after its first part: another tensor} of what momentum copies."""
    return {
        name.replace(".", "_m.", 1): tensor * 0.5 + 0.01
        for name, tensor in state.items()
        if name.startswith(prefixes)
    }


def queues(width, length, pointer, *, name="queue_ptr", owners=None) -> dict:
    """Queues [E, Q] whose columns hold their index, and the index of the next one."""
    index = torch.arange(length, dtype=torch.float32)
    stored = {
        "image_queue": index.repeat(width, 1) + 0.25,
        "text_queue": index.repeat(width, 1) + 0.5,
        name: torch.tensor([pointer]),
    }
    return stored if owners is None else stored | {"idx_queue": torch.tensor([owners])}

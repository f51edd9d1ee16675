"""Makes bert.npz and vit.npz: what Hugging Face's torch modules computed once.

    python tests/golden/make_golden.py

For machines without torch: `tests/weights/test_golden.py` compares our towers with
these files. They hold the config.json, the weights under their names on the hub, in
float16 (which the models were given before they ran in float64), inputs and results.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import safetensors.numpy
import torch
from transformers import BertConfig, BertForMaskedLM, ViTConfig, ViTModel

HERE = Path(__file__).parent
SHAPE = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    hidden_act="gelu",
)


def fill(model):
    """Weights that float16 holds; embeddings small, all else large, as in parity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_embedding = "embeddings" in name and "LayerNorm" not in name
            is_scale = "norm" in name.lower() and name.endswith("weight")
            value = noise * (0.02 if is_embedding else 0.3) + is_scale
            parameter.copy_(value.half())
    return model.eval()


def save(name, model, **arrays):
    """Names and config as `save_pretrained` writes them, arrays beside them."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tensors = safetensors.numpy.load_file(f"{folder}/model.safetensors")
        config = json.loads(Path(folder, "config.json").read_text())
    weights = {f"weights/{key}": np.float16(value) for key, value in tensors.items()}
    path = HERE / f"{name}.npz"
    np.savez_compressed(path, config=np.array(json.dumps(config)), **weights, **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes")


def make_bert():
    config = BertConfig(
        vocab_size=31, max_position_embeddings=9, layer_norm_eps=1e-12, **SHAPE
    )
    model = fill(BertForMaskedLM(config))
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 31, (3, 8))
    attention_mask = np.arange(8)[None] < np.array([8, 3, 6])[:, None]
    with torch.no_grad():
        given = {
            "input_ids": torch.from_numpy(tokens),
            "attention_mask": torch.from_numpy(attention_mask).long(),
        }
        model.double()
        hidden = model.bert(**given).last_hidden_state
        logits = model(**given).logits
    save(
        "bert",
        model.float(),
        tokens=tokens.astype(np.int32),
        attention_mask=attention_mask,
        hidden=np.float32(hidden.numpy()),
        logits=np.float32(logits.numpy()),
    )


def make_vit():
    config = ViTConfig(image_size=8, patch_size=4, layer_norm_eps=1e-6, **SHAPE)
    model = fill(ViTModel(config, add_pooling_layer=False))
    pixels = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float16)
    with torch.no_grad():
        model.double()
        given = torch.from_numpy(np.float64(pixels.transpose(0, 3, 1, 2)))
        hidden = model(pixel_values=given).last_hidden_state
    save("vit", model.float(), pixels=pixels, class_feature=np.float32(hidden[:, 0]))


if __name__ == "__main__":
    make_bert()
    make_vit()

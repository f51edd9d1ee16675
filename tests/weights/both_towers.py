"""Small whole models for the tests of ALBEF and BLIP, and what ours make of inputs."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vilem_jax.models.vilem import ViLEM

WIDTH, EMBEDDING, VOCABULARY, POSITIONS = 64, 16, 30, 12
QUEUE, POINTER = 5, 2
HEADS = {"vision_heads": 4, "text_heads": 4}


def text_shape(depth):
    return dict(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=depth,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=POSITIONS,
    )


def words():
    """Tokens [3, 7] with 7, 4 and 2 real ones."""
    tokens = np.random.default_rng(4).integers(0, VOCABULARY, (3, 7)).astype(np.int32)
    return tokens, np.arange(7)[None] < np.array([7, 4, 2])[:, None]


def images(side=24):
    pixels = np.random.default_rng(5).normal(size=(2, side, side, 3))
    return pixels.astype(np.float32)


@functools.partial(jax.jit, static_argnums=0)
def both(graph, params, pixels, tokens, attention_mask):
    model = nnx.merge(graph, params)
    return model.encode_image(pixels), model.encode_text(tokens, attention_mask)


def embeddings(config, params):
    """Our image and text embeddings of `images()` and `words()`, in float32."""
    compute = replace(config.compute, dtype="float32")
    model = nnx.eval_shape(lambda: ViLEM(config.model, compute, rngs=nnx.Rngs(0)))
    graph, _ = nnx.split(model, nnx.Param)
    params = jax.tree.map(jnp.asarray, params)
    return both(graph, params, images(), *words())


def projected(torch, linear, feature):
    return torch.nn.functional.normalize(linear(feature), dim=-1)


def albef_state(torch, randomize, *, is_pretrained):
    """A state dict of 5 text layers, 3 of them before fusion, and what it computes."""
    from transformers import BertConfig, BertModel
    from transformers.models.bert.modeling_bert import BertAttention

    from tests.weights.torch_models import ViT, momentum_names, queues

    vision = randomize(ViT(24, 8, WIDTH, 2, 4, 96), seed=1)
    bert = randomize(
        BertModel(BertConfig(**text_shape(5)), add_pooling_layer=False), seed=2
    )
    linears = [randomize(torch.nn.Linear(WIDTH, EMBEDDING), seed=s) for s in (3, 4)]
    inner = "bert." if is_pretrained else ""
    state = {f"visual_encoder.{n}": t for n, t in vision.state_dict().items()}
    state |= {f"text_encoder.{inner}{n}": t for n, t in bert.state_dict().items()}
    for number in (3, 4):  # what makes a layer one of fusion
        attention = BertAttention(BertConfig(**text_shape(1)))
        prefix = f"text_encoder.{inner}encoder.layer.{number}.crossattention"
        state |= {f"{prefix}.{n}": t for n, t in attention.state_dict().items()}
    for name, linear in zip(("vision_proj", "text_proj"), linears, strict=True):
        state |= {f"{name}.{n}": t for n, t in linear.state_dict().items()}
    prefixes = ("visual_encoder.", "text_encoder.", "vision_proj.", "text_proj.")
    state |= momentum_names(state, prefixes)
    state |= {
        f"text_encoder.{inner}embeddings.position_ids": torch.arange(POSITIONS)[None],
        "itm_head.weight": torch.zeros(2, WIDTH),
        "itm_head.bias": torch.zeros(2),
        "temp": torch.tensor(0.0625),
    }
    if is_pretrained:
        state |= {
            "text_encoder.cls.predictions.bias": torch.zeros(VOCABULARY),
            "text_encoder_m.cls.predictions.bias": torch.zeros(VOCABULARY),
        }
    owners = None if is_pretrained else [7, 8, 9, -100, 7]
    state |= queues(EMBEDDING, QUEUE, POINTER, owners=owners)

    tokens, attention_mask = words()
    with torch.no_grad():
        first_layers = bert(
            input_ids=torch.from_numpy(tokens).long(),
            attention_mask=torch.from_numpy(attention_mask).long(),
            output_hidden_states=True,
        ).hidden_states[3]
        theirs = (
            projected(
                torch,
                linears[0],
                vision(torch.from_numpy(images()).permute(0, 3, 1, 2)),
            ),
            projected(torch, linears[1], first_layers[:, 0]),
        )
    return state, theirs

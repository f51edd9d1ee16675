"""all-MiniLM-L6-v2's real weights as a start: sentences as transformers has them."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from vilem_jax.config.schema import ComputeConfig, TextConfig
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.models.text import TextTower
from vilem_jax.weights import starts

SENTENCES = (
    "a red dog runs over the grass",
    "two people on a bench, under a tree with white blossoms, look at the sea",
    "snow",
    "A man is not riding a horse; the horse is riding nothing at all.",
)


@functools.partial(jax.jit, static_argnums=0)
def sentence_embeddings(graph, params, tokens, attention_mask):
    """The mean of the last layer over the real tokens, of length 1: [B, W]."""
    tower = nnx.merge(graph, params)
    hidden = tower.run(tower.embed(tokens), attention_mask)
    mean = (
        jnp.sum(hidden * attention_mask[..., None], axis=1)
        / attention_mask.sum(1)[:, None]
    )
    return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)


@pytest.mark.realdata
def test_sentences_of_minilm(minilm_folder, torch, relative_error):
    from transformers import BertModel

    tokens = Tokenizer(minilm_folder).encode(SENTENCES, 24)
    attention_mask = tokens != 0
    assert (
        sorted(attention_mask.sum(1))[0] == 3 and sorted(attention_mask.sum(1))[-1] > 14
    )
    with torch.no_grad():
        mask = torch.from_numpy(attention_mask).long()
        hidden = BertModel.from_pretrained(minilm_folder).eval()(
            input_ids=torch.from_numpy(tokens).long(), attention_mask=mask
        )
        summed = (hidden.last_hidden_state * mask[..., None]).sum(1)
        theirs = torch.nn.functional.normalize(summed / mask.sum(1)[:, None], dim=1)
    config = starts.read_text_config(str(minilm_folder), TextConfig())
    params, head = starts.load_text(str(minilm_folder), config)
    assert head is None
    tower = nnx.eval_shape(
        lambda: TextTower(config, ComputeConfig(dtype="float32"), rngs=nnx.Rngs(0))
    )
    graph, _ = nnx.split(tower, nnx.Param)
    params = jax.tree.map(jnp.asarray, params)
    ours = sentence_embeddings(graph, params, tokens, attention_mask)
    assert relative_error(ours, theirs) <= 1e-5

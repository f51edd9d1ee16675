"""Our BERT against Hugging Face's, in float32: 1e-5 a block, 1e-4 a tower."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vilem_jax.config.schema import ComputeConfig, TextConfig
from vilem_jax.models.editor import MaskedLanguageModel
from vilem_jax.models.text import TextTower
from vilem_jax.weights.formats.huggingface_bert import (
    load_masked_language_model,
    load_text,
    read_text_config,
    save_masked_language_model,
)

COMPUTE = ComputeConfig(dtype="float32")
SHAPES = (
    dict(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        layer_norm_eps=1e-12,
        hidden_act="gelu",
    ),
    dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=80,
        layer_norm_eps=1e-6,
        hidden_act="gelu_new",
    ),
    dict(
        hidden_size=40,
        num_hidden_layers=4,
        num_attention_heads=5,
        intermediate_size=64,
        layer_norm_eps=1e-5,
        hidden_act="gelu",
    ),
)


def merged(build, params):
    graph, _ = nnx.split(nnx.eval_shape(build), nnx.Param)
    return nnx.merge(graph, jax.tree.map(jnp.asarray, params))


def text_tower(folder, config):
    return merged(
        lambda: TextTower(config, COMPUTE, rngs=nnx.Rngs(0)),
        load_text(folder, config),
    )


def random_text(seed, vocab_size):
    """Tokens [4, 11] with 2 to 11 real ones."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab_size, (4, 11)).astype(np.int32)
    attention_mask = np.arange(11)[None] < np.array([11, 2, 7, 10])[:, None]
    return tokens, attention_mask


@pytest.fixture(params=range(len(SHAPES)))
def saved(request, torch, randomize, tmp_path):
    """A random BertForMaskedLM and the folder it was saved to."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=61, max_position_embeddings=16, **SHAPES[request.param]
    )
    model = randomize(BertForMaskedLM(config), seed=request.param)
    model.save_pretrained(tmp_path)
    return model, tmp_path


@functools.partial(jax.jit, static_argnums=0)
def run_block(graph, params, hidden, attention_mask):
    return nnx.merge(graph, params)(hidden, attention_mask)


@functools.partial(jax.jit, static_argnums=0)
def run_tower(graph, params, tokens, attention_mask):
    tower = nnx.merge(graph, params)
    hidden = tower.embed(tokens)
    return (
        hidden,
        tower.run(hidden, attention_mask),
        tower.encode(tokens, attention_mask),
    )


def compare_tower(torch, record, relative_error, bert, tower, tokens, attention_mask):
    """Errors of the embedding, of each block, and of the whole tower."""
    given = torch.from_numpy(tokens).long()
    mask = torch.from_numpy(attention_mask).long()
    with torch.no_grad():
        seen = record(
            [bert.embeddings, *bert.encoder.layer],
            lambda: bert(input_ids=given, attention_mask=mask),
        )
    blocks = []
    for layer, (hidden, result) in zip(tower.layers, seen[1:], strict=True):
        ours = run_block(*nnx.split(layer), hidden, attention_mask)
        blocks.append(relative_error(ours, result))
    embedded, last, class_feature = run_tower(*nnx.split(tower), tokens, attention_mask)
    theirs = seen[-1][1]
    return (
        [relative_error(embedded, seen[1][0]), *blocks],
        [relative_error(last, theirs), relative_error(class_feature, theirs[:, 0])],
    )


def test_tower(saved, torch, record, relative_error):
    model, folder = saved
    config = read_text_config(folder, TextConfig())
    tokens, attention_mask = random_text(1, config.vocab_size)
    blocks, towers = compare_tower(
        torch,
        record,
        relative_error,
        model.bert,
        text_tower(folder, config),
        tokens,
        attention_mask,
    )
    assert max(blocks) <= 1e-5
    assert max(towers) <= 1e-4


@pytest.mark.parametrize(
    "mistake",
    [{"activation": "gelu_tanh"}, {"layer_norm_eps": 1e-6}, {"num_heads": 8}],
    ids=str,
)
def test_comparison_finds_a_mistake(
    mistake, torch, randomize, record, relative_error, tmp_path
):
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=61, max_position_embeddings=16, **SHAPES[0])
    model = randomize(BertModel(config), seed=0)
    model.save_pretrained(tmp_path)
    config = read_text_config(tmp_path, TextConfig())
    tower = text_tower(tmp_path, dataclasses.replace(config, **mistake))
    tokens, attention_mask = random_text(1, 61)
    blocks, _ = compare_tower(
        torch, record, relative_error, model, tower, tokens, attention_mask
    )
    assert max(blocks) > 1e-5


def test_masked_language_model(saved, torch, relative_error):
    model, folder = saved
    config = read_text_config(folder, TextConfig())
    tokens, attention_mask = random_text(2, config.vocab_size)
    with torch.no_grad():
        theirs = model(
            input_ids=torch.from_numpy(tokens).long(),
            attention_mask=torch.from_numpy(attention_mask).long(),
        ).logits.numpy()
    editor = merged(
        lambda: MaskedLanguageModel(config, COMPUTE, rngs=nnx.Rngs(0)),
        load_masked_language_model(folder, config),
    )
    positions = np.broadcast_to(np.arange(11, dtype=np.int32), tokens.shape)
    ours = jax.jit(editor.logits_at)(tokens, attention_mask, positions)
    assert relative_error(ours, theirs) <= 1e-4


def test_saved_folder_is_the_same_model_in_torch(saved, tmp_path):
    """Our params -> Hugging Face's files -> torch, which must not notice."""
    from transformers import BertForMaskedLM

    model, folder = saved
    config = read_text_config(folder, TextConfig())
    words = ["[PAD]", *(f"word{number}" for number in range(60))]
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "vocab.txt").write_text("\n".join(words) + "\n")
    params = load_masked_language_model(folder, config)
    save_masked_language_model(tmp_path / "ours", params, config, tokenizer)
    again = BertForMaskedLM.from_pretrained(tmp_path / "ours").eval()
    theirs, ours = model.state_dict(), again.state_dict()
    assert theirs.keys() == ours.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name].numpy(), array.numpy(), err_msg=name)
    assert again.config.layer_norm_eps == model.config.layer_norm_eps
    assert again.config.pad_token_id == 0
    assert read_text_config(tmp_path / "ours", TextConfig()) == config


@pytest.mark.realdata
def test_minilm(minilm_folder, torch, record, relative_error):
    from transformers import BertModel

    model = BertModel.from_pretrained(minilm_folder).eval()
    config = read_text_config(minilm_folder, TextConfig())
    assert (config.num_layers, config.width, config.vocab_size) == (6, 384, 30522)
    tokens, attention_mask = random_text(4, config.vocab_size)
    blocks, towers = compare_tower(
        torch,
        record,
        relative_error,
        model,
        text_tower(minilm_folder, config),
        tokens,
        attention_mask,
    )
    assert max(blocks) <= 1e-5
    assert max(towers) <= 1e-4

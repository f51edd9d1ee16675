"""What a run measures on validation."""

import types

import numpy as np

from vilem_jax.config.schema import Config, DataConfig, EvaluationConfig
from vilem_jax.config.sources import ScenesConfig
from vilem_jax.data.scenes.source import ScenesSource
from vilem_jax.data.tokenizer import Tokenizer, train_vocabulary
from vilem_jax.training import editor_step, tasks


def test_every_caption_counts_if_the_last_chunk_is_not_full(tmp_path, monkeypatch):
    source = ScenesSource("validation", num_images=3)
    captions = [text for index in range(3) for text in source.captions(index)]
    train_vocabulary(captions, 120, tmp_path)
    tokenizer = Tokenizer(tmp_path)
    pad = tokenizer.vocabulary.pad_id
    chunks = []

    def make_counter(*_, **__):
        def count(editor, tokens, key):
            tokens = np.asarray(tokens)
            is_real = (tokens != pad).any(axis=1)
            chunks.append(tokens[is_real])
            return is_real[:1].sum(), is_real.sum()

        return count

    monkeypatch.setattr(editor_step, "make_masked_accuracy", make_counter)
    monkeypatch.setattr(tasks.jax, "jit", lambda function: function)
    config = Config(
        data=DataConfig(
            validation=(ScenesConfig(name="mine", split="validation", num_images=3),)
        ),
        evaluation=EvaluationConfig(batch_size=4),
    )
    task = tasks.EditorTask(config, tokenizer, lambda step: 0.0, tmp_path)
    metrics = task.evaluate(types.SimpleNamespace(params={}))
    assert metrics == {"mine": {"masked_top1": 4 / 15}}
    expected = tokenizer.encode(captions, config.data.text_length)
    np.testing.assert_array_equal(np.concatenate(chunks), expected)

"""From settings to a `Config`: unknown keys, wrong types, contradictions, resuming."""

import dataclasses
import json

import pytest
from ml_collections import ConfigDict

from tests.tiny import tiny_config
from vilem_jax.config.freeze import differences, flatten, freeze, to_dict
from vilem_jax.config.schema import Config, EditorConfig
from vilem_jax.config.sources import ScenesConfig
from vilem_jax.errors import UserError


def test_no_settings_are_the_paper_s():
    config = freeze({})
    assert config == Config()
    assert config.train.batch_size == 2048 and config.train.num_epochs == 20
    assert config.optimizer.learning_rate == 3e-4
    assert config.optimizer.final_learning_rate == 1e-5
    assert config.optimizer.warmup_steps == 2000
    assert config.optimizer.weight_decay == 0.02
    assert config.loss.queue_length == 65536 and config.loss.momentum == 0.995
    assert (config.loss.local_weight, config.loss.global_weight) == (0.8, 0.2)
    assert config.editor.edit_rate == 0.15
    assert config.model.num_proofread_layers == 6
    assert config.model.initial_temperature == 0.07
    assert config.model.vision.image_size == 256


def test_a_config_dict_freezes():
    settings = ConfigDict({"loss": {"momentum": 0.9}, "train": {"batch_size": 64}})
    settings.loss.queue_length = 128
    config = freeze(settings)
    assert config.loss.momentum == 0.9 and config.train.batch_size == 64
    assert config.loss.queue_length == 128


def test_what_was_frozen_freezes_to_the_same():
    source = {"kind": "scenes", "split": "train", "seed": 3}
    config = tiny_config(data={"train": {"a": source, "b": {"path": "x.json"}}})
    assert config.data.train[0] == ScenesConfig(name="a", split="train", seed=3)
    assert freeze(json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"los": {}}, ["config.los ", "'loss'"]),
        ({"loss": {"momentun": 0.9}}, ["config.loss.momentun", "'momentum'"]),
        (
            {"model": {"vision": {"pach_size": 8}}},
            ["config.model.vision.pach_size", "'patch_size'"],
        ),
        ({"train": {"zzz": 1}}, ["config.train.zzz", "batch_size"]),
        (
            {"data": {"train": {"coco": {"pth": "x"}}}},
            ["config.data.train.coco.pth", "'path'"],
        ),
        (
            {"data": {"train": {"cc3m": {"kind": "webdataset", "images": "x"}}}},
            ["config.data.train.cc3m.images is not a setting"],
        ),
        (
            {"data": {"train": {"coco": {"seed": 1}}}},
            ["config.data.train.coco.seed is not a setting"],
        ),
    ],
)
def test_an_unknown_key_is_refused_by_name(settings, words):
    with pytest.raises(UserError) as error:
        freeze(settings)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"loss": 3}, ["config.loss", "section"]),
        ({"loss": {"momentum": "0.9"}}, ["config.loss.momentum", "a number"]),
        ({"train": {"batch_size": 2.5}}, ["config.train.batch_size", "whole number"]),
        ({"train": {"batch_size": True}}, ["config.train.batch_size"]),
        ({"loss": {"local_detect": 1}}, ["config.loss.local_detect", "True or False"]),
        ({"task": "pretrain"}, ["config.task", "vilem", "editor"]),
        ({"model": {"levels": ["uniform"]}}, ["config.model.levels"]),
        ({"data": {"crop_scale": [0.5]}}, ["config.data.crop_scale", "2 values"]),
        ({"data": {"crop_scale": [0.5, "x"]}}, ["config.data.crop_scale[1]"]),
        ({"data": {"train": ["coco.json"]}}, ["config.data.train", "name"]),
        ({"data": {"train": {"a": "coco.json"}}}, ["config.data.train.a", "section"]),
        (
            {"data": {"train": {"a": {"kind": "jsn"}}}},
            ["config.data.train.a.kind", "'json', 'csv', 'webdataset'", "'jsn'"],
        ),
        ({"data": {"tokenizer": None}}, ["config.data.tokenizer", "text"]),
        (
            {"compute": {"text_lengths": 16}},
            ["config.compute.text_lengths", "any"],
        ),
        ({"compute": {"text_lengths": [16.5]}}, ["config.compute.text_lengths[0]"]),
    ],
)
def test_a_value_of_another_type_is_refused(settings, words):
    with pytest.raises(UserError) as error:
        freeze(settings)
    assert all(word in str(error.value) for word in words)


def test_a_whole_number_is_a_number():
    config = freeze({"loss": {"momentum": 1}})
    assert config.loss.momentum == 1.0 and isinstance(config.loss.momentum, float)


@pytest.mark.parametrize(
    "settings, words",
    [
        (
            {"model": {"vision": {"image_size": 250}}},
            ["image_size=250", "patch_size=16"],
        ),
        ({"model": {"text": {"num_heads": 7}}}, ["text.width=768", "num_heads=7"]),
        ({"model": {"vision": {"num_heads": 0}}}, ["vision.num_heads=0"]),
        (
            {"model": {"num_proofread_layers": 13}},
            ["num_proofread_layers=13", "(12)"],
        ),
        (
            {"train": {"num_microbatches": 3}},
            ["batch_size=2048", "num_microbatches=3"],
        ),
        ({"loss": {"queue_length": 100}}, ["queue_length=100", "batch_size=2048"]),
        ({"loss": {"queue_length": -1}}, ["queue_length=-1"]),
        ({"data": {"text_length": 600}}, ["text_length=600", "max_positions=512"]),
        ({"data": {"text_length": 2}}, ["text_length=2"]),
        ({"editor": {"min_edits": 9}}, ["min_edits=9", "max_edits=8"]),
        (
            {"loss": {"momentum": 1.5}},
            ["momentum=1.5", "at least 0 and at most 1"],
        ),
        ({"loss": {"momentum": float("nan")}}, ["loss.momentum=nan"]),
        ({"train": {"batch_size": 0}}, ["batch_size=0", "more than 0"]),
        ({"train": {"num_microbatches": 0}}, ["num_microbatches=0"]),
        ({"log": {"every_steps": 0}}, ["log.every_steps=0"]),
        ({"data": {"crop_scale": [0.9, 0.2]}}, ["crop_scale=(0.9, 0.2)"]),
        ({"model": {"initial_temperature": 0}}, ["initial_temperature=0"]),
        ({"model": {"init_std": -0.1}}, ["init_std=-0.1", "at least 0"]),
        ({"optimizer": {"muon_rms": 0.0}}, ["muon_rms=0.0", "more than 0"]),
        ({"model": {"vision": {"patch_size": 0}}}, ["patch_size=0"]),
        (
            {"optimizer": {"learning_rate": float("nan")}},
            ["optimizer.learning_rate=nan"],
        ),
        ({"optimizer": {"learning_rate": -1}}, ["optimizer.learning_rate=-1"]),
        ({"seed": -1}, ["seed=-1"]),
        ({"seed": 2**31}, ["seed=2147483648"]),
        ({"data": {"num_workers": -1}}, ["data.num_workers=-1"]),
        ({"evaluation": {"text_length": 2}}, ["evaluation.text_length=2"]),
        (
            {"loss": {"max_temperature": 1e-4}},
            ["min_temperature=0.001", "max_temperature=0.0001"],
        ),
        ({"model": {"text": {"num_layers": 0}}}, ["text.num_layers=0"]),
        ({"optimizer": {"beta1": 2}}, ["optimizer.beta1=2"]),
        ({"checkpoint": {"keep": 0}}, ["checkpoint.keep=0"]),
        ({"model": {"text": {"dropout_rate": 1}}}, ["dropout_rate=1", "below 1"]),
        ({"compute": {"text_lengths": [24, 16]}}, ["text_lengths=(24, 16)", "rise"]),
        ({"compute": {"text_lengths": [16, 30]}}, ["(16, 30)", "text_length=30"]),
        ({"compute": {"text_lengths": [0, 16]}}, ["(0, 16)", "above 0"]),
        (
            {"task": "editor", "compute": {"sharding": "zero1"}},
            ["compute.sharding has no meaning", "editor", "'replicated'"],
        ),
        (
            {"task": "editor", "train": {"num_microbatches": 4}},
            ["train.num_microbatches has no meaning", "editor", "leave it at 1"],
        ),
        (
            {"compute": {"attention": "cudnn", "dtype": "float32"}},
            ["attention='cudnn'", "float32", "dtype='bfloat16'"],
        ),
        (
            {"editor": {"mask_rate": 80}},
            ["mask_rate=80", "at most 1"],
        ),
        ({"augment": {"std": [0.2, 0.0, 0.2]}}, ["std=(0.2, 0.0, 0.2)"]),
        ({"augment": {"std": [0.2, float("nan"), 0.2]}}, ["nan", "finite"]),
        (
            {"data": {"train": {"a": {"weight": -1}}}},
            ["data.train.a.weight=-1.0", "at least 0"],
        ),
        ({"augment": {"level": 11}}, ["augment.level=11", "at most 10"]),
    ],
)
def test_settings_that_cannot_work_are_refused_with_both_values(settings, words):
    with pytest.raises(UserError) as error:
        freeze(settings)
    assert all(word in str(error.value) for word in words)


def test_an_editor_s_run_needs_no_queue():
    freeze({"task": "editor", "loss": {"queue_length": 8}})


def test_what_may_differ_on_resuming():
    before = tiny_config()
    now = tiny_config(
        data={"num_workers": 2, "prefetch": 5},
        train={"num_steps": 10, "num_epochs": 3},
        log={"every_steps": 1},
        checkpoint={"keep": 5},
        evaluation={"every_steps": 3},
    )
    assert differences(before, now) == []


def test_what_may_not_differ_is_listed_with_both_values():
    before = tiny_config()
    now = tiny_config(loss={"momentum": 0.9}, train={"batch_size": 8}, seed=1)
    found = differences(before, now)
    assert found == [
        "config.loss.momentum was 0.995 and is now 0.9",
        "config.seed was 0 and is now 1",
        "config.train.batch_size was 16 and is now 8",
    ]


def test_another_source_is_another_run():
    before = tiny_config(data={"train": {"a": {"path": "x.json"}}})
    renamed = tiny_config(data={"train": {"b": {"path": "x.json"}}})
    assert differences(before, renamed)


def test_every_setting_has_a_flat_name():
    flat = flatten(Config())
    assert flat["model.vision.width"] == 768 and flat["task"] == "vilem"
    sections = [f for f in dataclasses.fields(Config) if f.name not in ("task", "seed")]
    assert {key.split(".")[0] for key in flat} >= {f.name for f in sections}


def test_evaluation_has_an_edit_rate_of_its_own():
    config = freeze({"editor": {"edit_rate": 0.3, "max_edits": 5}})
    assert config.evaluation_editor == EditorConfig(edit_rate=0.15, max_edits=5)

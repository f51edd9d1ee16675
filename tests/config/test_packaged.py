"""Every packaged config freezes; overrides and mistakes get what they deserve."""

import ast
import tomllib
from functools import cache
from pathlib import Path

import jax
import pytest

from vilem_jax.config.files import config_names, default_config, load_config
from vilem_jax.config.freeze import freeze, to_dict
from vilem_jax.config.schema import ComputeConfig, Config, ModelConfig
from vilem_jax.config.sources import ScenesConfig, TfdsConfig
from vilem_jax.errors import UserError
from vilem_jax.training.state import init_params

ROOT = Path(__file__).resolve().parents[2]
NAMES = config_names()


def test_all_files_are_found():
    assert sorted(file.stem for file in (ROOT / "configs").glob("*.py")) == NAMES
    assert {"scenes", "editor", "flickr8k", "pretrain_cc4m"} <= set(NAMES)


@cache
def trace(model: ModelConfig, compute: ComputeConfig) -> list:
    config = Config(model=model, compute=compute)
    key = jax.random.key(0)
    return jax.tree.leaves(jax.eval_shape(lambda k: init_params(config, k), key))


@pytest.mark.parametrize("name", NAMES)
def test_config_freezes_and_its_state_traces(name):
    config = load_config(name)
    assert config.data.train and config.data.validation
    assert freeze(to_dict(config)) == config
    if config.task == "vilem":
        assert trace(config.model, config.compute)


@pytest.mark.parametrize("name", NAMES)
def test_config_says_command_hardware_and_result(name):
    text = ast.get_docstring(ast.parse((ROOT / "configs" / f"{name}.py").read_text()))
    assert f"--config={name}" in text
    assert "Hardware:" in text and "Expected result:" in text


@pytest.mark.parametrize("name", ["pretrain_cc4m", "pretrain_cc13m"])
def test_pretraining_has_the_papers_values(name):
    config = load_config(name)
    assert config.train.batch_size == 2048 and config.train.num_epochs == 20
    assert config.optimizer.learning_rate == 3e-4
    assert config.optimizer.final_learning_rate == 1e-5
    assert config.optimizer.warmup_steps == 2000
    assert config.optimizer.weight_decay == 0.02
    assert config.loss.queue_length == 65536 and config.loss.momentum == 0.995
    assert (config.loss.local_weight, config.loss.global_weight) == (0.8, 0.2)
    assert config.model.initial_temperature == 0.07
    assert config.model.vision.image_size == 256
    assert config.model.num_proofread_layers == 6
    assert config.editor.edit_rate == 0.15


def test_the_default_is_the_default():
    assert freeze(default_config()) == Config()


def test_overrides_take_the_type_of_what_they_replace():
    config = load_config(
        "flickr8k",
        [
            ("data.train.flickr8k.path", "a.json"),
            ("optimizer.learning_rate", "1e-4"),
            ("optimizer.clip_norm", "1"),
            ("train.num_steps", "7"),
            ("loss.local_detect", "false"),
            ("data.crop_scale", "(0.5, 1)"),
            ("compute.dtype", "float32"),
            ("seed", "3"),
        ],
    )
    assert config.data.train[0].path == "a.json"
    assert config.data.train[0].name == "flickr8k"
    assert config.data.train[0].split == "train"
    assert config.optimizer.learning_rate == 1e-4
    assert config.optimizer.clip_norm == 1.0
    assert config.train.num_steps == 7
    assert config.loss.local_detect is False
    assert config.data.crop_scale == (0.5, 1.0)
    assert config.compute.dtype == "float32"
    assert config.seed == 3


def test_overriding_the_kind_of_a_source_brings_the_keys_of_that_kind():
    overrides = [
        ("data.train.mine.seed", "3"),
        ("data.train.mine.kind", "scenes"),
        ("data.validation.mine.kind", "tfds"),
    ]
    data = load_config("one_gpu_24gb", overrides).data
    assert data.train == (ScenesConfig(name="mine", split="train", seed=3),)
    assert data.validation == (TfdsConfig(name="mine", split="val"),)
    with pytest.raises(UserError, match=r"mine\.kind must be one of .*not 'jsn'"):
        load_config("one_gpu_24gb", [("data.train.mine.kind", "jsn")])
    images = ("data.train.mine.images", "x")
    with pytest.raises(UserError, match=r"mine\.images is not a setting"):
        load_config("one_gpu_24gb", [images, ("data.train.mine.kind", "webdataset")])


def test_a_config_file_leaves_no_cache_beside_it(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def get_config():\n    return {'seed': 4}\n")
    assert load_config(str(file)).seed == 4
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_overrides_reach_sources_that_a_file_gives_as_dicts(tmp_path, part):
    file = tmp_path / "mine.py"
    data = {part: {"mine": {"kind": "scenes", "split": "test"}}}
    file.write_text(f"def get_config():\n    return {{'data': {data}}}\n")
    key = f"data.{part}.mine.num_images"
    config = load_config(str(file), [(key, "7")])
    assert [s.num_images for s in getattr(config.data, part)] == [7]


@pytest.mark.parametrize(
    "key, text, sentence",
    [
        ("optimizer.learnin_rate", "1", "did you mean 'learning_rate'"),
        ("modle.levels", "last", "config.modle is not a setting; did you mean 'model'"),
        ("data.train.flikr8k.path", "x", "did you mean 'flickr8k'"),
        ("data.train.flickr8k.pat", "x", "did you mean 'path'"),
        ("seed", "1.5", "config.seed must be a whole number, not '1.5'"),
        ("seed.x", "1", "config.seed is one value"),
        ("optimizer.learning_rate", "fast", "must be a number, not 'fast'"),
        ("loss.local_detect", "no", "must be True or False, not 'no'"),
        ("data.crop_scale", "x", "must have 2 values, in brackets"),
        ("data.crop_scale", "(1,)", "config.data.crop_scale must have 2 values"),
        ("compute.dtype", "float16", "config.compute.dtype must be one of"),
        ("model", "x", "config.model is a section"),
        ("train.num_microbatches", "3", "does not divide .*: use 255 pairs a step"),
        ("model.num_proofread_layers", "7", "because Eq.* a level: use 3"),
        ("loss.queue_length", "8", "is shorter than config.train.batch_size"),
    ],
)
def test_overrides_that_cannot_be_are_refused(key, text, sentence):
    with pytest.raises(UserError, match="(?s)" + sentence.replace("(", r"\(")):
        load_config("flickr8k", [(key, text)])


def test_names_and_paths_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="did you mean 'scenes'"):
        load_config("scene")
    with pytest.raises(UserError, match="there is no config file"):
        load_config(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("def get_config(:", r"mine\.py:1: SyntaxError"),
        ("import no_such_module", r"mine\.py:1: ModuleNotFoundError"),
        ("def get_config():\n    return 1 / 0", r"mine\.py:2: ZeroDivisionError"),
        ("x = 1", r"has no get_config"),
        ("def get_config():\n    return 3", "not a ConfigDict"),
        (
            "from vilem_jax.config.files import default_config\n"
            "def get_config():\n"
            "    config = default_config()\n"
            "    config.train.batchsize = 3\n"
            "    return config",
            "config.train.batchsize is not a setting; did you mean 'batch_size'",
        ),
        (
            "from vilem_jax.config.files import default_config\n"
            "def get_config():\n"
            "    config = default_config()\n"
            "    config.train.batch_size = 'many'\n"
            "    return config",
            r"mine\.py:4: TypeError",
        ),
        (
            "def get_config():\n    return {'data': {'train': 'coco.json'}}",
            "config.data.train must map a name to a source",
        ),
        ("def get_config():\n    return {'data': 3}", "config.data must be a section"),
    ],
)
def test_mistakes_in_a_file_name_the_file(tmp_path, text, sentence):
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_config(str(file))


def test_a_file_may_name_a_few_keys_only(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "def get_config():\n"
        "    return {'seed': 4, 'data': {'train': {'a': {'path': 'a.json'}}}}\n"
    )
    config = load_config(str(file), [("data.train.a.split", "train"), ("seed", "5")])
    assert config.seed == 5
    assert config.data.train[0].split == "train"


def test_the_wheel_holds_every_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = set(settings["tool"]["setuptools"]["packages"])
    folders = {file.parent for file in (ROOT / "vilem_jax").rglob("*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert listed == found | {"vilem_jax.configs"}


def test_the_wheel_holds_every_template():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["*"]
    files = [*(ROOT / "vilem_jax").rglob("*.css"), *(ROOT / "vilem_jax").rglob("*.j2")]
    assert len(files) > 3
    assert all(any(file.match(pattern) for pattern in patterns) for file in files)

"""Which data a command line means, and arguments in any order."""

import argparse
import dataclasses
from pkgutil import resolve_name

import pytest

from vilem_jax.cli import train
from vilem_jax.cli.main import main
from vilem_jax.cli.options import add_data, expand_home, kind_of, source_config
from vilem_jax.config.freeze import freeze
from vilem_jax.config.schema import Config, DataConfig
from vilem_jax.config.sources import (
    SOURCE_KINDS,
    JsonConfig,
    ScenesConfig,
    SourceConfig,
)
from vilem_jax.errors import UserError
from vilem_jax.evaluation.benchmark import describe_split
from vilem_jax.runs.workdir import claim_workdir


def run_with(folder, *validation: SourceConfig) -> str:
    claim_workdir(folder, Config(data=DataConfig(validation=validation)))
    return str(folder)


def choose(model: str, *arguments: str) -> SourceConfig:
    parser = argparse.ArgumentParser()
    add_data(parser)
    options = parser.parse_args(arguments)
    options.model = model
    return source_config(options)


def test_another_split_of_the_run_s_own_data(tmp_path):
    scenes = ScenesConfig(name="scenes", split="validation", seed=4, num_images=9)
    model = run_with(tmp_path, scenes)
    assert choose(model) == scenes
    whole_test = dataclasses.replace(scenes, split="test", num_images=0)
    assert choose(model, "--split=test") == whole_test
    assert choose(model, "--num-images=3") == dataclasses.replace(scenes, num_images=3)
    json = JsonConfig(name="coco", path="a.json", images="b", split="val")
    model = run_with(tmp_path / "json", json)
    assert choose(model, "--split=test") == dataclasses.replace(json, split="test")


@pytest.mark.parametrize("option", ["--images=folder", "--kind=json"])
def test_options_that_would_be_ignored(tmp_path, option):
    model = run_with(tmp_path, ScenesConfig(name="scenes"))
    with pytest.raises(UserError, match=f"{option} belongs to --data"):
        choose(model, option)


def test_pairs_in_a_file_have_no_split(capsys, tmp_path):
    arguments = ["evaluate", "pairs", f"--model={tmp_path}", "--data=swap.json"]
    for option in ("--split=test", "--num-images=5"):
        assert main([*arguments, option]) == 2
        assert f"{option} has no meaning for pairs" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["INDEX", "--model=RUN", "red dog"],
        ["INDEX", "red dog", "--model=RUN"],
        ["--model=RUN", "INDEX", "red dog"],
        ["INDEX", "red", "dog", "--model=RUN"],
        ["INDEX", "red", "--model=RUN", "dog"],
    ],
)
def test_the_words_of_a_search_stand_anywhere(monkeypatch, arguments):
    seen = []

    def search(index, model, **options):
        seen.append((index, options["words"]))
        return []

    monkeypatch.setattr("vilem_jax.search.query.search", search)
    monkeypatch.setattr("vilem_jax.cli.options.open_model", lambda options: None)
    assert main(["search", *arguments]) == 0
    assert seen == [("INDEX", "red dog")]


@pytest.mark.parametrize("number", ["zero", "0", "1.5"])
def test_counts_are_whole_numbers(capsys, number):
    with pytest.raises(SystemExit):
        main(["search", "INDEX", "red", "--model=RUN", f"--top={number}"])
    assert f"{number} is not a whole number of 1 or more" in capsys.readouterr().err


def test_an_option_is_no_word(capsys):
    with pytest.raises(SystemExit):
        main(["search", "INDEX", "--model=RUN", "a", "--tpo=3"])
    assert "unrecognized arguments: --tpo=3" in capsys.readouterr().err


def test_the_split_of_scenes_names_its_seed(tmp_path):
    """Without --seed --data=scenes has seed 0, for any seed of the run."""
    model = run_with(tmp_path)
    assert describe_split(choose(model, "--data=scenes")) == "test, seed 0"
    drawn = choose(model, "--data=scenes", "--seed=4", "--split=validation")
    assert describe_split(drawn) == "validation, seed 4"
    assert describe_split(choose(model, "--data=a.json", "--split=val")) == "val"


@pytest.mark.parametrize(
    "data, kind",
    [
        ("a/captions.json", "json"),
        ("data.zip/captions.json", "json"),
        ("cc3m/*.tar", "webdataset"),
        ("scenes", "scenes"),
    ],
)
def test_data_is_recognized_by_its_name(data, kind):
    assert kind_of(data) == kind
    kinds = "imagefolder or huggingface or json or csv or webdataset or tfds or scenes"
    with pytest.raises(UserError, match=rf"give --kind={kinds}$"):
        kind_of("coco_captions/2014")


@pytest.mark.parametrize("kind, cls", SOURCE_KINDS.items())
def test_a_kind_of_source_is_declared_once(tmp_path, kind, cls):
    assert callable(resolve_name(cls.reader))
    chosen = choose(run_with(tmp_path), "--data=a/b", f"--kind={kind}", "--images=c")
    assert type(chosen) is cls and chosen.kind == kind and chosen.name == "b"
    assert freeze({"data": {"train": {"b": {"kind": kind}}}}).data.train == (
        cls(name="b"),
    )


def test_home_is_expanded_in_every_path_and_in_no_text(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    options = argparse.Namespace(
        out="~/x",
        sources=["train=~/a.json", "~"],
        caption="~/c",
        words=["~/w"],
        shard=(0, 1),
        beam_options="--temp=~/x",
        data="~nobody-of-that-name/x",
        top=None,
    )
    expand_home(options)
    assert vars(options) == {
        "out": "/home/me/x",
        "sources": ["train=/home/me/a.json", "/home/me"],
        "caption": "~/c",
        "words": ["~/w"],
        "shard": (0, 1),
        "beam_options": "--temp=~/x",
        "data": "./~nobody-of-that-name/x",
        "top": None,
    }


def test_workdir_is_below_home(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(train, "_train", lambda options: seen.append(options.workdir))
    assert main(["train", "--config=scenes", "--workdir=~/runs/x"]) == 0
    assert seen == [f"{tmp_path}/runs/x"]

"""A benchmark is one module and one line of the list."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest

from tests.evaluation.colours import colour_encoder
from vilem_jax import api
from vilem_jax.cli.main import main
from vilem_jax.evaluation.benchmark import Benchmark, DataSet, Opened, Table, option
from vilem_jax.evaluation.suite import BENCHMARKS, load_benchmark
from vilem_jax.evaluation.timing import measured


def evaluate(encoder, words):
    protocol = {"data": "words", "text_length": encoder.text_length}
    conditions = measured(encoder.timed())
    return {"words": len(words), "protocol": protocol, "measured": conditions}


COUNTING = Benchmark(
    options=("model", option("--words", required=True), "text_length", "out"),
    open=lambda options, _: Opened((options.words.split(),)),
    evaluate=evaluate,
    tabulate=lambda metrics: [Table(("count", "words"), [["all", metrics["words"]]])],
    warnings=lambda metrics: ["few words"] if metrics["words"] < 3 else [],
    data_sets=(DataSet("counting", "Counting", ("counting/*.txt",), ("counting",)),),
    open_data_set=lambda data_set, files, images, allow_missing: Opened(
        (files[0].read_text().split(),), protocol={"split": "test"}
    ),
    summarize=lambda title, metrics: Table(
        ("Data", "words"), [[title, str(metrics["words"])]], title="Counted words"
    ),
)


@pytest.fixture(autouse=True)
def counting(monkeypatch):
    """A benchmark that is in the list, and a model."""
    module = SimpleNamespace(BENCHMARK=COUNTING)
    monkeypatch.setitem(sys.modules, "vilem_jax.evaluation.counting", module)
    monkeypatch.setitem(BENCHMARKS, "counting", "how many words?")
    model = SimpleNamespace(encoder=colour_encoder())
    monkeypatch.setattr(api, "load", lambda *_, **__: model)


def test_a_listed_benchmark_is_a_verb(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    assert "how many words?" in capsys.readouterr().out
    out = tmp_path / "counting.json"
    arguments = ["--model=RUN", "--words=a dog", "--text-length=7", f"--out={out}"]
    assert main(["evaluate", "counting", *arguments]) == 0
    printed = capsys.readouterr()
    assert "count  words" in printed.out and "vilem: few words" in printed.err
    metrics = json.loads(out.read_text())
    assert metrics["words"] == 2
    assert metrics["protocol"] == {
        **{"model": "RUN", "weights": "online", "step": "last"},
        **{"data": "words", "text_length": 7},
    }


def test_the_protocol_may_come_with_the_data_alone(tmp_path, monkeypatch):
    def evaluate_alone(*arguments, **settings):
        metrics = evaluate(*arguments, **settings)
        return {name: metrics[name] for name in ("words", "measured")}

    benchmark = dataclasses.replace(
        COUNTING,
        open=lambda options, _: Opened((["a"],), protocol={"data": "one word"}),
        evaluate=evaluate_alone,
    )
    module = SimpleNamespace(BENCHMARK=benchmark)
    monkeypatch.setitem(sys.modules, "vilem_jax.evaluation.counting", module)
    out = tmp_path / "counting.json"
    assert (
        main(["evaluate", "counting", "--model=RUN", "--words=a", f"--out={out}"]) == 0
    )
    assert json.loads(out.read_text())["protocol"]["data"] == "one word"


def test_a_listed_benchmark_is_in_the_suite_and_on_its_page(tmp_path, capsys):
    folder, out = tmp_path / "data", tmp_path / "out"
    (folder / "counting").mkdir(parents=True)
    (folder / "counting" / "words.txt").write_text("a red dog")
    arguments = ["--model=RUN", f"--data={folder}", f"--out={out}"]
    assert main(["evaluate", "suite", *arguments]) == 0
    page = capsys.readouterr().out
    assert "## Counted words" in page and "| Counting | 3 |" in page
    metrics = json.loads((out / "counting.json").read_text())
    assert metrics["words"] == 3 and metrics["protocol"]["split"] == "test"


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "counting"])
def test_every_benchmark_of_the_list_has_a_declaration(name):
    benchmark = load_benchmark(name)
    assert isinstance(benchmark, Benchmark)
    assert (benchmark.open_data_set is not None) == bool(benchmark.data_sets)


def test_a_data_set_takes_the_first_files_and_the_first_folder(tmp_path):
    names = ("d/first.json", "d/*.json"), ("d/images", "d")
    assert DataSet("d", "D", *names).find(tmp_path) is None
    (tmp_path / "d").mkdir()
    for name in ("a", "b"):
        (tmp_path / "d" / f"{name}.json").touch()
    both = (tmp_path / "d" / "a.json", tmp_path / "d" / "b.json")
    assert DataSet("d", "D", *names).find(tmp_path) == (both, tmp_path / "d")
    (tmp_path / "d" / "first.json").touch()
    (tmp_path / "d" / "images").mkdir()
    first, images = tmp_path / "d" / "first.json", tmp_path / "d" / "images"
    assert DataSet("d", "D", *names).find(tmp_path) == ((first,), images)
    patterns = ("d/first.json", "d/a.json")
    everything = DataSet("d", "D", patterns, names[1], all_files=True)
    assert everything.find(tmp_path) == ((first, both[0]), images)

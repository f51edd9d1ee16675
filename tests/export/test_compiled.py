"""Towers as StableHLO and ONNX: equal for any number of rows, without the heads."""

import builtins
import json

import jax
import jax.export
import numpy as np
import pytest

from tests.export.conftest import CAPTIONS
from vilem_jax.errors import UserError
from vilem_jax.export import onnx_graph, stablehlo, towers
from vilem_jax.export.model import export_model


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports") / "stablehlo"
    sentences = export_model(run, folder, "stablehlo")
    assert len(sentences) == 2 and "differs from the model by" in sentences[0]
    return folder


def rows_of(stored, pixels, count, length):
    tokens = stored.tokenizer.encode((CAPTIONS * 2)[:count], length)
    return {"image": pixels[:count], "text": tokens}


def assert_equal_embeddings(run_of, stored, pixels, embeddings, tolerance):
    """For several numbers of rows, and lengths of the longest caption and more."""
    for count, length in ((1, 10), (2, 16), (4, 10), (5, 10)):
        rows = rows_of(stored, pixels, count, length)
        for name, expected in zip(("image", "text"), embeddings, strict=True):
            found = np.asarray(run_of[name](rows[name]))
            assert found.shape == (count, 8) and found.dtype == np.float32
            wanted = np.concatenate([expected, expected])[:count]
            np.testing.assert_allclose(found, wanted, atol=tolerance, rtol=0)


def test_stablehlo_equals_the_model(exported, stored, pixels, embeddings):
    run_of = {
        name: jax.export.deserialize(
            bytearray((exported / f"{name}.stablehlo").read_bytes())
        )
        for name in ("image", "text")
    }
    for program in run_of.values():
        assert program.platforms == ("cpu", "cuda", "tpu")
    calls = {name: program.call for name, program in run_of.items()}
    assert_equal_embeddings(calls, stored, pixels, embeddings, 1e-5)
    with pytest.raises(ValueError):
        calls["text"](np.zeros((2, 17), np.int32))  # longer than the tower
    with pytest.raises(ValueError):
        calls["image"](np.zeros((2, 8, 8, 3), np.uint8))


def test_stablehlo_is_a_plain_dual_encoder(exported, left_out, kept):
    everything = b"".join(file.read_bytes() for file in exported.iterdir())
    assert not [name for name, content in left_out.items() if content in everything]
    assert all(content in everything for content in kept.values())


def test_towers_json_describes_input_and_output(exported, stored):
    described = json.loads((exported / "towers.json").read_text())
    assert described["image"]["input"]["shape"] == ["B", 16, 16, 3]
    assert described["text"]["input"] == described["text"]["input"] | {
        "dtype": "int32",
        "shape": ["B", "L"],
        "constraints": ["L >= 2", "L <= 16"],
    }
    assert described["text"]["output"]["shape"] == ["B", 8]
    assert described["image"]["largest_difference"] < 1e-5
    assert described["format"]["platforms"] == ["cpu", "cuda", "tpu"]
    assert described["tokenizer"]["pad_id"] == stored.tokenizer.vocabulary.pad_id


def test_a_tower_that_is_not_the_model_is_refused(stored):
    tower = towers.make_towers(stored.config, stored.params, stored.tokenizer)["text"]

    def wrong(rows):
        return np.asarray(tower.function(rows)) + 2e-4

    with pytest.raises(UserError, match=r"would differ .* by 2\.0e-04.*nothing is"):
        towers.largest_difference(tower, wrong, "text.onnx")
    with pytest.raises(UserError, match="would differ"):  # NaN is refused too
        towers.largest_difference(tower, lambda rows: np.full((3, 8), np.nan), "x")


@pytest.mark.filterwarnings("default")  # of jax2onnx
def test_onnx_equals_the_model(
    run, stored, pixels, embeddings, left_out, kept, tmp_path
):
    for package in ("jax2onnx", "onnxruntime"):
        pytest.importorskip(package, reason="no jax2onnx: ONNX is NOT tested here")
    export_model(run, tmp_path / "onnx", "onnx")
    files = {name: tmp_path / "onnx" / f"{name}.onnx" for name in ("image", "text")}
    run_of = {n: onnx_graph.runner(file.read_bytes()) for n, file in files.items()}
    assert_equal_embeddings(run_of, stored, pixels, embeddings, 1e-4)
    everything = b"".join(file.read_bytes() for file in files.values())
    assert not [name for name, content in left_out.items() if content in everything]
    assert all(content in everything for content in kept.values())


@pytest.mark.parametrize(
    ("maker", "package", "words"),
    [
        (onnx_graph, "jax2onnx", r"pip install 'vilem-jax\[onnx\]'"),
        (stablehlo, "flatbuffers", "pip install flatbuffers"),
    ],
)
def test_a_missing_package_is_refused(
    maker, package, words, run, tmp_path, monkeypatch
):
    real = builtins.__import__

    def without(name, *args, **options):
        if name == package:
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=words):
        export_model(run, tmp_path / "out", maker.ENDING)
    assert not (tmp_path / "out").exists()

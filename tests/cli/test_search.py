"""The verbs `embed` and `vectors export`: what they pass on and what they print."""

import pytest
from PIL import Image

from tests.search.test_embed import MeanColour
from vilem_jax import api
from vilem_jax.cli.main import main


@pytest.fixture(autouse=True)
def model(monkeypatch):
    monkeypatch.setattr(api, "load", lambda *_, **__: MeanColour())


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "white")):
        Image.new("RGB", (6, 5), colour).save(folder / f"{name}.png")
    (folder / "d.png").write_bytes(b"no image")
    return folder


def run(*arguments):
    return main([str(argument) for argument in arguments])


def refused(capsys, *arguments) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("vilem: ") and said.count("\n") == 1, said
    return said


def test_embed_search_export(photos, tmp_path, capsys):
    pytest.importorskip("faiss", reason="faiss is missing: [search]")
    out = tmp_path / "out"
    embed = ["embed", photos, "--model=run", f"--out={out}", "--images-per-shard=2"]
    assert run(*embed, "--shard=1/2") == 0
    printed = capsys.readouterr()
    assert "1 of 2 shards written now, 1 missing" in printed.out
    assert run(*embed) == 0
    printed = capsys.readouterr()
    assert "all complete: 3 images, 1 not readable" in printed.out
    assert "1 images left out" in printed.err and "corrupt.jsonl" in printed.err
    assert run("search", out, "blue", "--model=run", "--top=1") == 0
    assert capsys.readouterr().out.endswith(f"  {photos / 'b.png'}\n")
    texts = tmp_path / "texts.txt"
    texts.write_text("red\n\nblue\n", encoding="utf-8-sig")
    export = ["vectors", "export", out, "--to=faiss", f"--queries={texts}"]
    assert run(*export, "--model=run", f"--out={tmp_path / 'faiss'}") == 0
    assert "100.00 % of the exact top 3 for 2 texts" in capsys.readouterr().out
    said = refused(capsys, *export, f"--out={tmp_path / 'more'}")
    assert "give the --model" in said
    texts.write_text("\n")
    said = refused(capsys, *export, "--model=run", f"--out={tmp_path / 'more'}")
    assert "texts.txt is empty" in said


def test_mistakes_get_a_sentence(photos, tmp_path, capsys):
    out = f"--out={tmp_path / 'out'}"
    common = ("--model=run", out)
    assert "no folder" in refused(capsys, "embed", tmp_path / "none", *common)
    said = refused(capsys, "embed", photos, "--split=test", *common)
    assert "--split=test has no meaning for a folder" in said
    said = refused(capsys, "embed", tmp_path / "images.lmdb", *common)
    assert "cannot recognise the kind of data" in said
    said = refused(capsys, "vectors", "export", photos, "--to=lancedb", out)
    assert "no embeddings" in said or "not installed" in said
    assert not (tmp_path / "out" / "plan.json").exists()
    for shard in ("2/2", "1", "-1/2", "a/b"):
        with pytest.raises(SystemExit, match="2"):
            run("embed", photos, f"--shard={shard}", *common)
        assert "is not I/N" in capsys.readouterr().err

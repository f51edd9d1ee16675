"""The command line: what it passes on, what it prints, and errors of wrong input."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vilem_jax import api
from vilem_jax.cli.main import main, split_overrides
from vilem_jax.config.files import load_config
from vilem_jax.data.scenes.source import ScenesSource
from vilem_jax.data.tokenizer import Tokenizer, train_vocabulary
from vilem_jax.runs.checkpoints import Checkpoints
from vilem_jax.runs.workdir import claim_workdir
from vilem_jax.training import editor_step, starting
from vilem_jax.training.state import abstract_state
from vilem_jax.weights.formats.huggingface_bert import save_masked_language_model

TINY = """
from vilem_jax.config.files import default_config, source


def get_config():
    config = default_config()
    config.data.train.scenes = source(kind="scenes", split="train", num_images=24)
    config.data.validation.scenes = source(
        kind="scenes", split="validation", num_images=8
    )
    config.data.tokenizer = {vocabulary!r}
    config.data.text_length = 16
    config.model.text.vocab_size = {size}
    config.model.text.max_positions = 24
    for tower in (config.model.text, config.model.vision):
        tower.width, tower.num_layers, tower.num_heads, tower.mlp_width = 16, 1, 2, 16
    config.model.vision.image_size, config.model.vision.patch_size = 32, 16
    config.model.embedding_width = 8
    config.model.num_proofread_layers = 1
    config.augment.num_ops = 0
    config.loss.queue_length = 8
    config.train.batch_size, config.train.num_steps = 8, 2
    config.optimizer.warmup_steps = 1
    config.compute.dtype = "float32"
    config.evaluation.batch_size = 8
    config.evaluation.text_length = 16
    return config
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    source = ScenesSource("train", num_images=24)
    captions = [text for i in range(24) for text in source.captions(i)]
    vocabulary = str(folder / "vocabulary")
    size = train_vocabulary(captions, 120, vocabulary)
    if not isinstance(size, int):
        size = len((folder / "vocabulary" / "vocab.txt").read_text().splitlines())
    file = folder / "tiny.py"
    file.write_text(TINY.format(vocabulary=vocabulary, size=size))
    return str(file)


def noise(tree):
    """Arrays of the shapes in `tree`: quicker than compiling an initialisation."""
    rng = np.random.default_rng(0)

    def draw(leaf):
        values = 0.05 * rng.standard_normal(leaf.shape)
        return jnp.asarray(values if leaf.shape else abs(values) + 0.1, leaf.dtype)

    return jax.tree.map(draw, tree)


@pytest.fixture(scope="module")
def run(tmp_path_factory, config_file):
    """A run with a checkpoint, its editor and its tokenizer, trained by nobody."""
    folder = tmp_path_factory.mktemp("runs")
    plain = load_config(config_file)
    tokenizer = Tokenizer(plain.data.tokenizer)
    tokenizer.save(folder / "run" / "tokenizer")
    shapes = jax.eval_shape(
        lambda key: editor_step.init_editor_params(plain, key),
        jax.random.key(0),
    )
    save_masked_language_model(
        folder / "editor",
        jax.tree.map(np.asarray, noise(shapes)),
        plain.model.text,
        folder / "run" / "tokenizer",
    )
    config = load_config(config_file, [("editor.path", str(folder / "editor"))])
    claim_workdir(folder / "run", starting.complete(config, folder / "run"))
    with Checkpoints(folder / "run") as checkpoints:
        checkpoints.save(2, noise(abstract_state(config)))
    return folder / "run"


@pytest.fixture(autouse=True, scope="module")
def load_once():
    """A model is loaded, and its programs are compiled, once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "load", functools.cache(api.load))
        yield


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    Image.fromarray(ScenesSource("test").read_image(0)).save(folder / "photo.png")
    return folder / "photo.png"


def refused(capsys, *arguments: str) -> str:
    """The one line that a mistake gets."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.startswith("vilem: ") and said.count("\n") == 1, said
    return said


# ---- arguments ----


def test_overrides_in_all_their_spellings():
    rest, overrides = split_overrides(
        [
            "train",
            "--config=scenes",
            "--config.optimizer.learning_rate=1e-4",
            "--config.data.train.a.path",
            "a=b.json",
            "--config.loss.local_detect",
            "--noconfig.loss.local_correct",
            "--config.seed",
            "3",
            "--workdir=x",
            "--",
            "--config.not.this=1",
        ]
    )
    assert rest == [
        "train",
        "--config=scenes",
        "--workdir=x",
        "--",
        "--config.not.this=1",
    ]
    assert overrides == [
        ("optimizer.learning_rate", "1e-4"),
        ("data.train.a.path", "a=b.json"),
        ("loss.local_detect", "True"),
        ("loss.local_correct", "False"),
        ("seed", "3"),
    ]


def test_train_passes_its_options_on(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "vilem_jax.training.with_editor.train_with_editor",
        lambda *args, **options: seen.append((args, options)),
    )
    arguments = ["train", "--config=scenes", "--workdir=RUN", "--max-hours=0.5"]
    assert main([*arguments, "--dry-run", "--config.seed=9"]) == 0
    ((config, workdir), options) = seen[0]
    assert (config.seed, workdir) == (9, "RUN")
    assert options.pop("at_end")
    assert options == {"max_hours": 0.5, "dry_run": True, "stop_code": 0}


def test_demo_passes_its_options_on(monkeypatch):
    seen = []
    monkeypatch.setattr(
        "vilem_jax.report.demo.run_demo",
        lambda *args, **options: seen.append((args, options)),
    )
    assert main(["demo", "--quick", "--seed=5", "--out=x"]) == 0
    assert seen == [(("x",), {"seed": 5, "quick": True})]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian"],
        ["train", "--config=scenes"],
        ["train", "--config=scenes", "--workdir=x", "--max-hours=0"],
        ["train", "--config=scenes", "--workdir=x", "--max-hours=long"],
        ["train", "--conf=scenes", "--workdir=x"],
        ["search", "index", "words", "--model=x", "--config.seed=1"],
        ["search", "index", "words", "--model=x", "--top=0"],
    ],
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "error:" in capsys.readouterr().err


def test_help_of_every_verb(capsys):
    for verb in (
        ["demo"],
        ["train"],
        ["evaluate"],
        ["evaluate", "retrieval"],
        ["evaluate", "pairs"],
        ["evaluate", "proofread"],
        ["proofread"],
        ["index"],
        ["search"],
        ["data", "check"],
        ["data", "show"],
    ):
        with pytest.raises(SystemExit) as caught:
            main([*verb, "--help"])
        assert caught.value.code == 0
        assert "usage: vilem" in capsys.readouterr().out


# ---- mistakes ----


def test_mistakes_in_settings_leave_nothing_behind(tmp_path, capsys, config_file):
    workdir = tmp_path / "run"
    train = ["train", f"--config={config_file}", f"--workdir={workdir}"]
    for override, sentence in (
        ("seeed=1", "config.seeed is not a setting; did you mean 'seed'?"),
        ("loss.queue_length=4", "is shorter than"),
        ("train.batch_size=six", "must be a whole number"),
        ("editor.path=/no/such/folder", "/no/such/folder"),
        ("data.tokenizer=/no/such/folder", "/no/such/folder"),
    ):
        options = ["--config.task=editor"] if "tokenizer" in override else []
        assert sentence in refused(capsys, *train, *options, f"--config.{override}")
    assert "config.editor.path is empty" in refused(capsys, *train)
    assert not workdir.exists()


def test_a_run_of_other_settings_is_kept(run, config_file, capsys):
    before = (run / "config.json").read_bytes()
    train = ["train", f"--config={config_file}", f"--workdir={run}"]
    start = json.loads(before)["editor"]["path"]
    path = f"--config.editor.path={start}"
    said = refused(capsys, *train, path, "--config.seed=4")
    assert "config.seed was 0 and is now 4" in said
    assert (run / "config.json").read_bytes() == before


def test_models_and_data_that_are_not_there(run, tmp_path, capsys, photo):
    model = f"--model={run}"
    nothing = tmp_path / "nothing"
    for arguments, sentence in (
        (["proofread", f"--model={nothing}", str(photo), "x"], "holds no run"),
        (["proofread", model, str(nothing), "x"], "nothing"),
        (["proofread", model, str(photo), "..."], "no word"),
        (["search", str(nothing), "red", model], "no index"),
        (["index", str(nothing), model, "--out=i.npz"], "no folder"),
        (["evaluate", "retrieval", model, f"--data={nothing}"], "--kind"),
        (["evaluate", "retrieval", model, f"--data={nothing}.json"], "does not exist"),
        (["evaluate", "retrieval", model, "--text-length=99"], "between 3 and 24"),
        (["evaluate", "pairs", model, f"--data={nothing}.json"], "nothing.json"),
        (["evaluate", "retrieval", model, "--data=scenes", "--split=x"], "no split"),
        (["data", "check", "--config=flickr8k"], "needs a `path`"),
    ):
        assert sentence in refused(capsys, *arguments)


# ---- every verb that uses a model ----


def test_evaluate_retrieval(run, tmp_path, capsys):
    out = tmp_path / "metrics.json"
    arguments = ["evaluate", "retrieval", f"--model={run}", f"--out={out}"]
    assert main([*arguments, "--data=scenes", "--num-images=6"]) == 0
    assert "R@1" in capsys.readouterr().out
    metrics = json.loads(out.read_text())
    assert (
        set(metrics["t2i"]) == {"r1", "r5", "r10", "median_rank"} == set(metrics["i2t"])
    )
    assert metrics["images"] == 6
    assert metrics["protocol"]["weights"] == "online"
    # Without --data: the validation data of the run.
    assert main([*arguments, "--weights=momentum", "--captions-per-image=1"]) == 0
    metrics = json.loads(out.read_text())
    assert metrics["images"] == metrics["captions"] == 8


def test_evaluate_pairs(run, tmp_path, capsys, photo):
    out = tmp_path / "pairs.json"
    arguments = ["evaluate", "pairs", f"--model={run}", f"--out={out}"]
    assert main([*arguments, "--data=scenes", "--num-images=30"]) == 0
    assert 0 <= json.loads(out.read_text())["accuracy"] <= 100
    pairs = {
        "0": {
            "filename": photo.name,
            "caption": "a red circle",
            "negative_caption": "a blue circle",
        }
    }
    (tmp_path / "swap.json").write_text(json.dumps(pairs))
    mine = [f"--data={tmp_path / 'swap.json'}", f"--images={photo.parent}"]
    assert main([*arguments, *mine]) == 0
    assert json.loads(out.read_text())["pairs"] == 1
    assert "accuracy" in capsys.readouterr().out


def test_evaluate_proofread_stores_its_edits(run, tmp_path, capsys):
    out, edits = tmp_path / "proofread.json", tmp_path / "edits.npz"
    arguments = ["evaluate", "proofread", f"--model={run}", f"--out={out}"]
    for _ in range(2):
        assert main([*arguments, f"--edits={edits}"]) == 0
        metrics = json.loads(out.read_text())
        assert {"local", "global", "shuffled"} <= set(metrics)
    assert edits.is_file()
    assert "F1" in capsys.readouterr().out


def test_proofread(run, photo, tmp_path, capsys):
    out = tmp_path / "words.json"
    caption = "a red circle on grass"
    arguments = ["proofread", f"--model={run}", str(photo), caption, f"--out={out}"]
    assert main(arguments) == 0
    assert "p(wrong)" in capsys.readouterr().out
    judged = json.loads(out.read_text())
    assert [word["word"] for word in judged["words"]][:2] == ["a", "red"]
    assert judged["tokens_not_judged"] == 0
    arguments[3] = " ".join([caption] * 9)
    assert main(arguments) == 0
    printed = capsys.readouterr().err
    cut = json.loads(out.read_text())["tokens_not_judged"]
    assert (
        cut > 0 and f"the last {cut} tokens of the caption were not judged" in printed
    )


def test_index_and_search(run, photo, tmp_path, capsys):
    (photo.parent / "corrupt.png").write_bytes(b"no image")
    index, model = str(tmp_path / "index.npz"), f"--model={run}"
    assert main(["index", str(photo.parent), model, f"--out={index}"]) == 0
    printed = capsys.readouterr()
    assert "1 images" in printed.out and "corrupt.png" in printed.err
    assert main(["search", index, "a red circle", model]) == 0
    found = capsys.readouterr().out
    assert str(photo) in found
    for unquoted in (["a", "red", "circle", model], [model, "a", "red", "circle"]):
        assert main(["search", index, *unquoted]) == 0
        assert capsys.readouterr().out == found
    said = refused(capsys, "search", index, "?!", model)
    assert "no word in '?!' that the model knows" in said
    assert main(["search", index, model, f"--image={photo}", "--top=1"]) == 0
    assert capsys.readouterr().out.startswith("1.000  ")
    for out in (tmp_path / "hits.json", tmp_path / "hits.html"):
        assert main(["search", index, "a red <circle>", model, f"--out={out}"]) == 0
        assert str(photo) in capsys.readouterr().out
    hits = json.loads((tmp_path / "hits.json").read_text())
    assert hits["words"] == "a red <circle>" and hits["image"] is None
    assert [hit["path"] for hit in hits["hits"]] == [str(photo)]
    page = (tmp_path / "hits.html").read_text()
    assert "a red &lt;circle&gt;" in page and page.count('src="data:image/') == 1
    said = refused(capsys, "search", index, "red", model, "--out=hits.txt")
    assert "must end with .json or .html" in said
    assert "one of the two" in refused(capsys, "search", index, model)


def test_data_check(config_file, tmp_path, capsys):
    out = tmp_path / "check.json"
    arguments = ["data", "check", f"--config={config_file}", f"--out={out}"]
    assert main(arguments) == 0
    assert "train: 24 images" in capsys.readouterr().out
    assert json.loads(out.read_text())["splits"]["validation"]["images"] == 8


def test_data_show(run, config_file, tmp_path):
    out = tmp_path / "batch.html"
    arguments = ["data", "show", f"--config={config_file}", f"--out={out}"]
    assert main([*arguments, "--num-pairs=3"]) == 0
    assert out.read_text().count("<img") == 3 and "<mark" not in out.read_text()
    editor = json.loads((run / "config.json").read_text())["editor"]["path"]
    assert main([*arguments, f"--config.editor.path={editor}"]) == 0
    page = out.read_text()
    assert page.count("<img") == 24 and page.count("<mark") >= 24

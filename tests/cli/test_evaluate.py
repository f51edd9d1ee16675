"""`vilem evaluate`: what it prints and writes, with a model that needs no weights."""

import json

import numpy as np
import pytest

from tests.evaluation.colours import colour_model, write_image
from vilem_jax import api
from vilem_jax.cli.main import main

RGB = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
PAIRS = [("red", "green"), ("green", "red"), ("blue", "red"), ("red", "blue")]


@pytest.fixture(autouse=True)
def model(monkeypatch):
    monkeypatch.setattr(api, "load", lambda *_, **__: colour_model())


def evaluate(capsys, *arguments):
    """Runs a verb that must succeed; its standard output and error."""
    assert main(["evaluate", *arguments]) == 0
    return capsys.readouterr()


def refused(capsys, *arguments):
    assert main(["evaluate", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.count("vilem: ") >= 1 and "Traceback" not in printed
    return printed


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_karpathy(folder, name, below=""):
    """Ten images of mixed colours, two captions each; six of them are the test split.

    The captions of the test split are right for their images.
    """
    images = []
    for number in range(10):
        split = "test" if number < 6 else "train"
        shade = 40 * number
        write_image(folder / below / f"{number}.jpg", (255, shade % 256, 3))
        words = ["red"] if number == 0 else ["red", "green"]
        sentences = [{"raw": " ".join(words)}, {"raw": "red thing"}]
        images.append(
            {
                "filename": f"{number}.jpg",
                "filepath": below,
                "split": split,
                "imgid": number,
                "sentences": sentences,
            }
        )
    write(folder / name, {"images": images})


def write_winoground(folder):
    lines = []
    for number, (first, second) in enumerate(PAIRS):
        for index, colour in enumerate((first, second)):
            write_image(folder / "images" / f"{number}_{index}.png", RGB[colour])
        is_right = number < 3
        captions = (first, second) if is_right else (second, first)
        lines.append(
            {
                "id": number,
                "image_0": f"{number}_0",
                "image_1": f"{number}_1",
                "caption_0": f"{captions[0]} thing",
                "caption_1": f"{captions[1]} thing",
                "collapsed_tag": ("Object", "Relation", "Both", "Object")[number],
                "num_main_preds": 1 + number % 2,
            }
        )
    write(folder / "examples.jsonl", "\n".join(map(json.dumps, lines)))


def sugarcrepe(colour, caption, wrong):
    write_name = f"{colour}.jpg"
    return {"filename": write_name, "caption": caption, "negative_caption": wrong}


def test_retrieval_prints_its_protocol(tmp_path, capsys):
    write_karpathy(tmp_path, "dataset.json")
    out = tmp_path / "out" / "r.json"
    options = [f"--data={tmp_path / 'dataset.json'}", "--split=test", f"--out={out}"]
    printed = evaluate(capsys, "retrieval", "--model=RUN", *options, "--folds=3")
    for words in ("R@1", "mean of 3 folds of 2 images", "8 x 8 pixels", "float32"):
        assert words in printed.out
    for words in ("seconds: ", "encode images", "similarity", "ranking", "(test)"):
        assert words in printed.out
    metrics = json.loads(out.read_text())
    assert metrics["images"] == 6 and metrics["captions"] == 12
    assert metrics["folds"]["images"] == 2 and len(metrics["folds"]["each"]) == 3
    protocol = metrics["protocol"]
    assert protocol["split"] == "test" and protocol["weights"] == "online"
    assert protocol["missing_images"] == 0
    assert set(metrics["measured"]) == {
        *("image_size", "dtype", "device", "batch_size", "scores_on", "seconds")
    }


def test_retrieval_with_missing_images(tmp_path, capsys):
    write_karpathy(tmp_path, "dataset.json")
    (tmp_path / "2.jpg").unlink()
    arguments = ["retrieval", "--model=RUN", f"--data={tmp_path / 'dataset.json'}"]
    assert "1 of 10 images" in refused(capsys, *arguments)
    assert "1 of 6 images" in refused(capsys, *arguments, "--split=test")
    printed = evaluate(capsys, *arguments, "--split=test", "--allow-missing")
    assert "1 images were missing and left out, with their 2 captions" in printed.err
    assert "5 images, 10 captions" in printed.out
    assert "into 4 equal folds" in refused(
        capsys, *arguments, "--split=test", "--allow-missing", "--folds=4"
    )


def test_winoground(tmp_path, capsys):
    write_winoground(tmp_path)
    out = tmp_path / "w.json"
    printed = evaluate(
        capsys, "winoground", "--model=RUN", f"--data={tmp_path}", f"--out={out}"
    )
    assert "Relation" in printed.out and "2 predicates" in printed.out
    assert "4 examples, not the benchmark's 400" in printed.err
    metrics = json.loads(out.read_text())
    assert metrics["text"] == metrics["image"] == metrics["group"] == 75.0
    assert metrics["by_tag"]["Object"]["text"] == 50.0
    (tmp_path / "images" / "0_0.png").unlink()
    arguments = ["winoground", "--model=RUN", f"--data={tmp_path}"]
    assert "1 of 8 images of Winoground are missing" in refused(capsys, *arguments)


def test_pairs_of_a_file(tmp_path, capsys):
    write_image(tmp_path / "red.jpg", RGB["red"])
    write(
        tmp_path / "swap.json",
        [sugarcrepe("red", "red", "blue"), sugarcrepe("red", "blue", "red")],
    )
    out = tmp_path / "p.json"
    arguments = ["pairs", "--model=RUN", f"--data={tmp_path / 'swap.json'}"]
    printed = evaluate(capsys, *arguments, f"--images={tmp_path}", f"--out={out}")
    assert "50.0" in printed.out and "seconds: " in printed.out
    metrics = json.loads(out.read_text())
    assert metrics["protocol"]["layouts"] == ["SugarCrepe"]
    assert metrics["by_type"] == {"swap": 50.0}
    assert "--images" in refused(capsys, *arguments)


def test_embeddings_need_no_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(api, "load", None)
    file, out = tmp_path / "f.npz", tmp_path / "e.json"
    np.savez(
        file,
        image_embedding=3 * np.eye(4),
        text_embedding=2 * np.eye(4)[[0, 1, 1, 2, 3]],
        image_of_text=np.array([0, 1, 1, 2, 0]),
    )
    arguments = ["embeddings", f"--features={file}", f"--out={out}"]
    assert "image 3 has no caption" in refused(capsys, *arguments)
    np.savez(
        file,
        image_embedding=3 * np.eye(4),
        text_embedding=2 * np.eye(4)[[0, 1, 1, 2, 0]],
        image_of_text=np.array([0, 1, 1, 2, 3]),
    )
    assert "4 images, 5 captions" in evaluate(capsys, *arguments).out
    metrics = json.loads(out.read_text())
    assert metrics["t2i"]["r1"] == 80.0 and metrics["i2t"]["r1"] == 50.0


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys):
    write_winoground(tmp_path / "data")
    (tmp_path / "file").write_text("")
    printed = refused(
        capsys,
        *("winoground", "--model=RUN", f"--data={tmp_path / 'data'}"),
        f"--out={tmp_path / 'file' / 'w.json'}",
    )
    assert "is a file where a folder is needed" in printed


# ---- the suite ----


@pytest.fixture
def benchmarks(tmp_path):
    """A folder with a little of everything but VALSE and ARO's orders."""
    folder = tmp_path / "data"
    write_karpathy(folder / "coco", "dataset_coco.json", "val2014")
    write_karpathy(folder / "flickr30k", "dataset_flickr30k.json")
    (folder / "flickr30k" / "3.jpg").unlink()
    write_winoground(folder / "winoground")
    write_image(folder / "coco" / "val2017" / "red.jpg", RGB["red"])
    write(folder / "sugarcrepe" / "add.json", [sugarcrepe("red", "red", "blue")])
    write_image(folder / "aro" / "images" / "red.jpg", RGB["red"])
    write(
        folder / "aro" / "visual_genome_relation.json",
        [
            {
                "image_path": "red.jpg",
                "relation_name": "on",
                "true_caption": "red",
                "false_caption": "blue",
            }
        ],
    )
    return folder


def test_the_suite_measures_what_is_there(benchmarks, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["suite", "--model=my/RUN", f"--data={benchmarks}", f"--out={out}"]
    printed = refused(capsys, *arguments)
    assert "1 of 5 benchmarks could not be measured (flickr30k)" in printed
    page = (out / "report.md").read_text()
    assert "could not be measured: 1 of 6 images of Flickr30K are missing" in page
    assert "Flickr30K (1K test set)" in page
    names = {file.name for file in out.iterdir()}
    assert names == {
        *("coco.json", "winoground.json", "sugarcrepe.json", "aro.json", "report.md")
    }
    printed = evaluate(capsys, *arguments, "--allow-missing")
    page = (out / "report.md").read_text()
    assert printed.out.strip() == page.strip()
    assert "1 images were missing and left out" in page
    for absent in ("VALSE: not found (valse/*.json)", "Flickr8K"):
        assert absent in page
    assert "could not be measured" not in page
    metrics = json.loads((out / "coco.json").read_text())
    assert metrics["protocol"]["model"] == "my/RUN" and metrics["images"] == 6
    assert metrics["protocol"]["split"] == "test" and "folds" not in metrics


def rows_of(page, title):
    """The rows of the table below a heading, as lists of cells."""
    part = page.split(f"## {title}")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_page_has_the_papers_rows_beside_ours(benchmarks, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["suite", "--model=RUN", f"--data={benchmarks}", f"--out={out}"]
    page = evaluate(capsys, *arguments, "--allow-missing").out
    coco = json.loads((out / "coco.json").read_text())
    sums = f"{coco['rsum']:.1f}"
    table = rows_of(page, "Table 1")
    assert all(len(row) == 16 for row in table) and len(table) == 2 + 17 + 1
    paper = [row for row in table if row[:2] == ["ViLEM (paper)", "14.1M"]]
    assert paper[0][8] == "566.8" and paper[0][-1] == "484.2"
    assert table[-1][0] == "**RUN**" and table[-1][-1] == sums
    table = rows_of(page, "Table 2")
    assert table[-2][0] == "ViLEM (paper)" and table[-2][-1] == "454.8"
    assert table[-1][-1] == sums
    assert rows_of(page, "Table 3")[-1] == ["**RUN**", "", "-", "-", "-", "-"]
    table = rows_of(page, "Table 4")
    ours = [row for row in table if row[0] == "**RUN**"]
    assert ours == [["**RUN**", "50.0", "100.0", "100.0", "100.0", "50.0", "75.0"]]
    paper = [row for row in table if row[0] == "ViLEM (paper)"]
    assert paper == [["ViLEM (paper)", "35.5", "33.9", "65.4", "38.7", "30.6", "36.5"]]
    assert ["SugarCrepe: add", "1", "100.0", "-"] in rows_of(page, "True against")


def test_a_suite_without_anything_is_refused(tmp_path, capsys):
    arguments = ["suite", "--model=RUN", f"--out={tmp_path / 'out'}"]
    nothing = tmp_path / "nothing"
    assert "is no folder" in refused(capsys, *arguments, f"--data={nothing}")
    nothing.mkdir()
    printed = refused(capsys, *arguments, f"--data={nothing}")
    assert "holds no benchmark" in printed and "coco/dataset_coco.json" in printed
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "what", ["retrieval", "winoground", "pairs", "proofread", "embeddings", "suite"]
)
def test_help(what, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["evaluate", what, "--help"])
    assert caught.value.code == 0
    assert "usage: vilem evaluate" in capsys.readouterr().out

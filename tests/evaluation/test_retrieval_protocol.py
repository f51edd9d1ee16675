"""Folds, missing images, times, and the peer `eccv-caption` on COCO's own ids."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from vilem_jax.config.sources import JsonConfig
from vilem_jax.data.sources.missing import check_complete, present_images
from vilem_jax.data.sources.source import open_source
from vilem_jax.errors import UserError
from vilem_jax.evaluation.recall import TOPS, folded_metrics, retrieval_metrics
from vilem_jax.evaluation.retrieval import evaluate_retrieval


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def recalls_by_counting(score, image_of_text):
    """Recalls in per cent from a matrix [I, T], by counting what is not below."""
    i2t, t2i = [], []
    for image in range(score.shape[0]):
        ranks = [
            1 + sum(score[image, image_of_text != image] >= score[image, text])
            for text in np.flatnonzero(image_of_text == image)
        ]
        i2t.append(min(ranks))
    for text, image in enumerate(image_of_text):
        others = np.delete(score[:, text], image)
        t2i.append(1 + sum(others >= score[image, text]))
    return {
        way: {f"r{top}": 100 * np.mean(np.array(ranks) <= top) for top in TOPS}
        for way, ranks in (("i2t", i2t), ("t2i", t2i))
    }


def adversarial(kind, rng):
    """A similarity matrix [I, T] with uneven numbers of captions, and the truth."""
    image_of_text = np.repeat(np.arange(7), [1, 5, 2, 7, 1, 3, 4])
    rng.shuffle(image_of_text)
    shape = (7, len(image_of_text))
    own = image_of_text[None, :] == np.arange(7)[:, None]
    scores = {
        "random": lambda: rng.normal(size=shape),
        "few values": lambda: rng.integers(-1, 2, shape),
        "all equal": lambda: np.ones(shape),
        "right, tied by one other": lambda: own | (np.arange(7)[:, None] == 3),
        "always wrong": lambda: ~own,
        "one caption draws all": lambda: own + 2 * (np.arange(shape[1]) == 0),
        "one image draws all": lambda: own + 2 * (np.arange(7) == 2)[:, None],
        "nearly equal": lambda: 1 + 1e-9 * rng.normal(size=shape),  # ties in float32
    }
    return scores[kind]().astype(np.float32), image_of_text


KINDS = (
    *("random", "few values", "all equal", "right, tied by one other"),
    *("always wrong", "one caption draws all", "one image draws all"),
    "nearly equal",
)


@pytest.mark.parametrize("kind", KINDS)
def test_recall_of_any_matrix_is_what_counting_gives(kind):
    for seed in range(5):
        score, image_of_text = adversarial(kind, np.random.default_rng(seed))
        expected = recalls_by_counting(score, image_of_text)
        # Images are the axes of a space, captions hold their scores: any matrix.
        found = retrieval_metrics(np.eye(len(score)), score.T, image_of_text)
        for way in ("i2t", "t2i"):
            for top in TOPS:
                assert found[way][f"r{top}"] == pytest.approx(expected[way][f"r{top}"])


def test_folds_are_parts_in_order():
    rng = np.random.default_rng(0)
    image_of_text = rng.permutation(np.repeat(np.arange(12), rng.integers(1, 4, 12)))
    images = unit(rng.normal(size=(12, 5)))
    texts = unit(rng.normal(size=(len(image_of_text), 5)))
    found = folded_metrics(images, texts, image_of_text, folds=3)
    parts = [
        recalls_by_counting(
            (images @ texts.T)[start : start + 4][
                :, (image_of_text >= start) & (image_of_text < start + 4)
            ],
            image_of_text[(image_of_text >= start) & (image_of_text < start + 4)]
            - start,
        )
        for start in (0, 4, 8)
    ]
    for way in ("i2t", "t2i"):
        for top in TOPS:
            mean = np.mean([part[way][f"r{top}"] for part in parts])
            assert found[way][f"r{top}"] == pytest.approx(mean)
    assert found["images"] == 4 and found["captions"] == len(image_of_text)
    assert len(found["each"]) == 3
    with pytest.raises(UserError, match="12 images cannot be cut into 5"):
        folded_metrics(images, texts, image_of_text, folds=5)


# ---- the peer ----


@pytest.fixture(scope="module")
def peer():
    eccv_caption = pytest.importorskip(
        "eccv_caption", reason="the peer's ids are missing: pip install eccv-caption"
    )
    return eccv_caption.Metrics()


def coco_problem(peer, *, spread, num_images=None):
    """Random embeddings of COCO's 5,000 test images and 25,000 captions.

    Returns ids of images and captions in file order, embeddings, and who owns whom.
    """
    caption_ids = peer.coco_ids
    owner = np.array([peer.coco_gts["t2i"][int(one)][0] for one in caption_ids])
    _, first = np.unique(owner, return_index=True)
    image_ids = owner[np.sort(first)]  # as they appear
    rng = np.random.default_rng(1)
    row_of_image = {int(one): row for row, one in enumerate(image_ids)}
    image_of_text = np.array([row_of_image[int(one)] for one in owner])
    images = unit(rng.normal(size=(len(image_ids), 16)).astype(np.float32))
    noise = spread * rng.normal(size=(len(caption_ids), 16)).astype(np.float32)
    texts = unit(images[image_of_text] + noise)
    return image_ids, caption_ids, images, texts, image_of_text


def best_ids(queries, candidates, ids, keep=10):
    """For each query the ids of its best candidates, the best first."""
    found = []
    for start in range(0, len(queries), 500):
        scores = queries[start : start + 500].astype(float) @ candidates.T.astype(float)
        best = np.argpartition(scores, -keep, axis=1)[:, -keep:]
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1)
        found += ids[np.take_along_axis(best, order, 1)].tolist()
    return found


@pytest.mark.slow
def test_recall_on_coco_5k_is_that_of_eccv_caption(peer):
    image_ids, caption_ids, images, texts, image_of_text = coco_problem(
        peer, spread=0.4
    )
    assert (len(image_ids), len(caption_ids)) == (5000, 25000)
    i2t = best_ids(images, texts, caption_ids)
    t2i = best_ids(texts, images, image_ids)
    retrieved = {
        "i2t": dict(zip(image_ids.tolist(), i2t, strict=True)),
        "t2i": dict(zip(caption_ids.tolist(), t2i, strict=True)),
    }
    found = retrieval_metrics(
        images, texts, image_ids[image_of_text], image_ids=image_ids
    )
    for top in TOPS:
        theirs = peer.coco_5k_recalls(retrieved, "all", K=top)
        for way in ("i2t", "t2i"):
            assert 1 < found[way][f"r{top}"] < 99  # neither nothing nor everything
            assert found[way][f"r{top}"] == pytest.approx(100 * theirs[way])


@pytest.mark.slow
def test_recall_on_coco_1k_is_that_of_eccv_caption(peer):
    image_ids, caption_ids, images, texts, image_of_text = coco_problem(
        peer, spread=0.5
    )
    found = folded_metrics(images, texts, image_of_text, folds=5)
    # They walk whole ranked lists; ours of the own fold suffice, and take less memory.
    i2t, t2i = {}, {}
    for start in range(0, 5000, 1000):
        rows = slice(start, start + 1000)
        columns = slice(5 * start, 5 * start + 5000)
        assert set(image_of_text[columns]) == set(range(start, start + 1000))
        lists = best_ids(images[rows], texts[columns], caption_ids[columns])
        i2t |= zip(image_ids[rows].tolist(), lists, strict=True)
        lists = best_ids(texts[columns], images[rows], image_ids[rows])
        t2i |= zip(caption_ids[columns].tolist(), lists, strict=True)
    for top in TOPS:
        theirs = peer.coco_1k_recalls({"i2t": i2t, "t2i": t2i}, "all", K=top)
        for way in ("i2t", "t2i"):
            assert 1 < found[way][f"r{top}"] < 99.9
            assert found[way][f"r{top}"] == pytest.approx(100 * theirs[way])


# ---- missing images ----


@pytest.fixture
def json_source(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    records = []
    for number in range(6):
        name = f"{number}.png"
        captions = ["a red dog", "a blue cat", "a green circle"][: 1 + number % 3]
        records.append({"image": name, "caption": captions})
        if number not in (1, 4):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "test.json").write_text(json.dumps(records))
    return open_source(JsonConfig(path=str(tmp_path / "test.json")))


def test_missing_images_are_counted_and_refused(json_source, encoder):
    with pytest.raises(UserError, match=r"2 of 6 images of test .*first is 1\.png"):
        evaluate_retrieval(encoder, json_source)
    metrics = evaluate_retrieval(encoder, json_source, allow_missing=True, folds=2)
    assert (metrics["images"], metrics["captions"]) == (4, 1 + 3 + 1 + 3)
    protocol = metrics["protocol"]
    assert (protocol["missing_images"], protocol["missing_captions"]) == (2, 4)
    assert metrics["folds"]["images"] == 2
    present, _ = present_images(json_source, allow_missing=True)
    assert [present.image_name(row) for row in range(4)] == [
        *("0.png", "2.png", "3.png", "5.png")
    ]
    assert [len(present.captions(row)) for row in range(4)] == [1, 3, 1, 3]
    for row in range(4):
        assert present.read_image(row) == json_source.read_image((0, 2, 3, 5)[row])


def test_no_image_at_all_is_always_refused(json_source, tmp_path):
    for file in Path(tmp_path).glob("*.png"):
        file.unlink()
    with pytest.raises(UserError, match=r"6 of 6 images .* with --images"):
        present_images(json_source, allow_missing=True)


class Silent:
    """One image, and nothing said of it."""

    name = "mine"

    def __len__(self):
        return 1

    def captions(self, index):
        return ()

    def image_name(self, index):
        return f"{index}.png"


def test_what_a_run_judges_by_must_be_complete(json_source):
    missing = r"2 of 6 images of config\.data\.test\.a are missing, .* 1\.png"
    with pytest.raises(UserError, match=missing):
        check_complete(json_source, "config.data.test.a")
    present, _ = present_images(json_source, allow_missing=True)
    check_complete(present, "config.data.test.a")
    with pytest.raises(UserError, match=r"0\.png of mine has no caption"):
        check_complete(Silent(), "config.data.test.a")


# ---- times ----


def test_times_exclude_compiling(encoder, source):
    encoder = dataclasses.replace(encoder, text_length=11)
    metrics = evaluate_retrieval(encoder, source)
    measured = metrics["measured"]
    assert measured["image_size"] == 16 and measured["dtype"] == "float32"
    assert measured["batch_size"] == 4 and "CPU" in measured["device"]
    seconds = measured["seconds"]
    stages = {"read_images", "encode_images", "encode_texts", "similarity", "ranking"}
    assert stages <= set(seconds) and all(value >= 0 for value in seconds.values())
    # A length that ran nowhere else compiles once, and outside the stage of encoding.
    assert seconds["warm_up"] > seconds["encode_texts"] > 0
    again = evaluate_retrieval(encoder, source)
    assert "warm_up" not in again["measured"]["seconds"]

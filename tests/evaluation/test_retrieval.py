"""Retrieval metrics against a loop written from the definition."""

import numpy as np
import pytest

from vilem_jax.errors import UserError
from vilem_jax.evaluation import recall
from vilem_jax.evaluation.recall import chance_metrics, ranks, retrieval_metrics
from vilem_jax.evaluation.retrieval import encode_source, evaluate_retrieval


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def problem(seed, *, with_ties):
    """Uneven numbers of captions in random order; ties from a grid of few values."""
    rng = np.random.default_rng(seed)
    num_images = int(rng.integers(1, 14))
    image_of_text = np.repeat(
        np.arange(num_images), rng.integers(1, 6, size=num_images)
    )
    rng.shuffle(image_of_text)
    shapes = (num_images, 3), (len(image_of_text), 3)
    if with_ties:
        images, texts = (rng.integers(-1, 2, s).astype(np.float32) for s in shapes)
    else:
        images, texts = (unit(rng.normal(size=s)) for s in shapes)
    return images, texts, image_of_text


def ranks_by_loop(images, texts, image_of_text):
    score = [[float(np.dot(i, t)) for t in texts] for i in images]
    text_ranks = [
        1
        + sum(
            score[other][t] >= score[own][t]
            for other in range(len(images))
            if other != own
        )
        for t, own in enumerate(image_of_text)
    ]
    image_ranks = []
    for i in range(len(images)):
        rank_of_each = [
            1
            + sum(
                score[i][other] >= score[i][t]
                for other in range(len(texts))
                if image_of_text[other] != i
            )
            for t in range(len(texts))
            if image_of_text[t] == i
        ]
        image_ranks.append(min(rank_of_each))
    return image_ranks, text_ranks


@pytest.mark.parametrize("with_ties", [False, True])
@pytest.mark.parametrize("block", [2048, 4, 1])
def test_ranks_are_those_of_the_loop(monkeypatch, with_ties, block):
    monkeypatch.setattr(recall, "BLOCK", block)
    for seed in range(20):
        images, texts, image_of_text = problem(seed, with_ties=with_ties)
        expected = ranks_by_loop(images, texts, image_of_text)
        found = ranks(images, texts, image_of_text)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_metrics_by_hand():
    images = unit(np.eye(3))
    texts = unit([[1, 0, 0], [0, 1, 0], [0.9, 0, 1], [1, 0, 0.5]])
    metrics = retrieval_metrics(images, texts, np.array([0, 1, 2, 2]))
    # The last caption, of image 2, looks like image 0 to the model.
    assert metrics["t2i"] == {"r1": 75.0, "r5": 100.0, "r10": 100.0, "median_rank": 1}
    assert metrics["i2t"] == {"r1": 100.0, "r5": 100.0, "r10": 100.0, "median_rank": 1}
    assert metrics["rsum"] == 575.0
    assert (metrics["images"], metrics["captions"]) == (3, 4)


@pytest.mark.parametrize("seed", range(6))
def test_a_collapsed_model_finds_nothing(seed):
    """However the one score is rounded: compared with itself, it is a tie."""
    rng = np.random.default_rng(seed)
    row = unit(rng.normal(size=(1, 33)))
    images, texts = np.repeat(row, 57, 0), np.repeat(row, 171, 0)
    metrics = retrieval_metrics(images, texts, np.arange(171) % 57)
    assert metrics["rsum"] == 0.0
    assert metrics["t2i"]["median_rank"] == 57
    assert metrics["i2t"]["median_rank"] == 1 + 171 - 3


def test_ids_and_order_do_not_matter():
    images, texts, image_of_text = problem(3, with_ties=False)
    expected = retrieval_metrics(images, texts, image_of_text)
    rng = np.random.default_rng(0)
    ids = rng.permutation(1000)[: len(images)]
    image_order, text_order = rng.permutation(len(images)), rng.permutation(len(texts))
    found = retrieval_metrics(
        images[image_order],
        texts[text_order],
        ids[image_of_text][text_order],
        image_ids=ids[image_order],
    )
    assert found == expected


def test_chance_is_the_mean_of_random_orders():
    rng = np.random.default_rng(0)
    image_of_text = np.repeat(np.arange(12), rng.integers(1, 4, size=12))
    sums = {"i2t": np.zeros(3), "t2i": np.zeros(3)}
    rounds = 600
    for _ in range(rounds):
        found = retrieval_metrics(
            unit(rng.normal(size=(12, 40))),
            unit(rng.normal(size=(len(image_of_text), 40))),
            image_of_text,
        )
        for way in sums:
            sums[way] += [found[way][f"r{top}"] for top in (1, 5, 10)]
    chance = chance_metrics(image_of_text)
    for way, total in sums.items():
        expected = [chance[way][f"r{top}"] for top in (1, 5, 10)]
        np.testing.assert_allclose(total / rounds, expected, atol=2.5)


def test_chance_leaves_out_images_without_a_caption():
    whole = chance_metrics(np.array([0, 0, 1, 2]))
    assert chance_metrics(np.array([0, 0, 2, 5])) == whole
    assert whole["t2i"]["r1"] == pytest.approx(100 / 3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_ids": np.array([4, 5, 4])}, "image id 4 stands for several"),
        ({"image_of_text": np.array([0, 1, 3])}, "caption 2 belongs to image 3"),
        ({"image_of_text": np.array([0, 1, 1])}, "image 2 has no caption"),
        ({"image_ids": np.array([0, 1])}, "2 image ids for 3"),
        ({"text_embedding": np.full((3, 2), np.nan)}, "caption 0 is not finite"),
        ({"text_embedding": np.ones((3, 5))}, "width 2 .* width 5"),
        ({"image_embedding": np.ones((3,))}, "must be"),
    ],
)
def test_wrong_input_is_refused(change, words):
    arguments = {
        "image_embedding": np.ones((3, 2)),
        "text_embedding": np.ones((3, 2)),
        "image_of_text": np.arange(3),
    }
    with pytest.raises(UserError, match=words):
        retrieval_metrics(**(arguments | change))


@pytest.mark.parametrize("captions_per_image", ["all", 1])
def test_a_source_is_encoded_in_order(encoder, source, captions_per_image):
    settings = {"captions_per_image": captions_per_image}
    encoded = encode_source(encoder, source, **settings)
    limit = None if captions_per_image == "all" else 1
    expected = [
        (caption, index)
        for index in range(4)
        for caption in source.captions(index)[:limit]
    ]
    found = zip(encoded.captions, encoded.image_of_text.tolist(), strict=True)
    assert list(found) == expected
    alone = encoder.encode_captions(encoded.captions[2:3])
    np.testing.assert_allclose(encoded.text_embedding[2], alone[0], atol=1e-5)
    metrics = evaluate_retrieval(encoder, source, **settings)
    assert metrics["captions"] == len(expected) and metrics["images"] == 4
    assert metrics["protocol"]["captions_per_image"] == captions_per_image


def test_what_the_metrics_leave_out_is_counted(encoder, source):
    class Odd(type(source)):
        notes = ("3 images without a caption left out",)

        def captions(self, index):
            return ("!!!", "") if index == 2 else ("a dog",)

    protocol = evaluate_retrieval(encoder, Odd())["protocol"]
    assert protocol["notes"] == ["3 images without a caption left out"]
    assert protocol["captions_without_a_word"] == 2


def test_an_image_without_a_caption_is_named(encoder, source):
    class Silent(type(source)):
        def captions(self, index):
            return () if index == 2 else ("a dog",)

    with pytest.raises(UserError, match=r"2\.png of four has no caption"):
        encode_source(encoder, Silent())
    with pytest.raises(UserError, match="captions_per_image is 0"):
        encode_source(encoder, source, captions_per_image=0)

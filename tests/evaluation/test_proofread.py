"""Proofreading metrics: by hand and by loop, stored edits, shuffled images."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vilem_jax.config.schema import Config, EditorConfig, EvaluationConfig, LossConfig
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.editing.editor import FrozenEditor
from vilem_jax.editing.stored_edits import load_edits, make_edits, save_edits
from vilem_jax.errors import UserError
from vilem_jax.evaluation.encoding import Encoder, Proofreading
from vilem_jax.evaluation.proofread import (
    evaluate_proofreading,
    other_images,
    proofread_metrics,
)
from vilem_jax.models.editor import MaskedLanguageModel
from vilem_jax.objectives.editing import TokenTables

EDITING = Config(
    editor=EditorConfig(sha256="abc", max_edits=3, edit_rate=0.9),
    evaluation=EvaluationConfig(text_length=12),
)


@pytest.fixture(scope="module")
def edits(config, tokenizer, source):
    model = MaskedLanguageModel(config.model.text, config.compute, rngs=nnx.Rngs(1))
    graphdef, params = nnx.split(model, nnx.Param)
    vocabulary = tokenizer.vocabulary
    tables = TokenTables(
        is_editable=jnp.asarray(vocabulary.is_editable),
        is_piece=jnp.asarray(vocabulary.is_piece),
        is_side=jnp.zeros(vocabulary.size, bool),
        pad_id=vocabulary.pad_id,
        mask_id=vocabulary.mask_id,
    )
    return make_edits(
        EDITING,
        graphdef,
        FrozenEditor(nnx.to_pure_dict(params), tables),
        tokenizer,
        source,
        seed=5,
    )


def test_metrics_by_loop():
    rng = np.random.default_rng(0)
    for _ in range(20):
        p_wrong = rng.random((3, 6))
        is_wrong, is_editable = rng.random((3, 6)) < 0.3, rng.random((3, 6)) < 0.7
        rank, is_edit = rng.integers(1, 6, (3, 2)), rng.random((3, 2)) < 0.7
        metrics = proofread_metrics(p_wrong, is_wrong, is_editable, rank, is_edit)
        counts = {"tp": 0, "fp": 0, "fn": 0}
        for row in range(3):
            for position in range(6):
                if is_editable[row, position]:
                    says, wrong = p_wrong[row, position] > 0.5, is_wrong[row, position]
                    counts["tp"] += says and wrong
                    counts["fp"] += says and not wrong
                    counts["fn"] += wrong and not says
        tp, fp, fn = counts.values()
        detect = metrics["detect"]
        assert detect["precision"] == pytest.approx(tp / (tp + fp) if tp + fp else 0)
        assert detect["recall"] == pytest.approx(tp / (tp + fn) if tp + fn else 0)
        expected = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0
        assert detect["f1"] == pytest.approx(expected)
        for top in (1, 3):
            hits = [r <= top for r, e in zip(rank.flat, is_edit.flat, strict=True) if e]
            assert metrics["correct"][f"top{top}"] == pytest.approx(np.mean(hits))


def test_half_is_not_called_wrong():
    one = np.ones((1, 1), bool)
    metrics = proofread_metrics(np.full((1, 1), 0.5), one, one, one, one)
    assert metrics["detect"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_another_image_is_never_the_same():
    rng = np.random.default_rng(0)
    for seed in range(30):
        image = rng.choice(rng.permutation(50)[: rng.integers(2, 8)], 20)
        if len(np.unique(image)) < 2:
            continue
        other = other_images(image, seed=seed)
        assert (other != image).all()
        np.testing.assert_array_equal(other, other_images(image, seed=seed))
        pairs = set(zip(image.tolist(), other.tolist(), strict=True))
        assert len(pairs) == len(np.unique(image)) == len(np.unique(other))
    with pytest.raises(UserError, match="two or more"):
        other_images(np.array([3, 3]), seed=0)


def test_edits_are_of_the_captions_and_stored_whole(edits, source, tokenizer, tmp_path):
    assert set(edits.image.tolist()) == {0, 1, 2, 3}
    # Evaluation has its own rate of edits.
    assert json.loads(edits.manner)["edit_rate"] == EDITING.evaluation.edit_rate
    for row, image in enumerate(edits.image):
        options = tokenizer.encode(source.captions(image), 12)
        assert (options == edits.tokens[row]).all(axis=1).any()
    changed = edits.edited != edits.tokens
    np.testing.assert_array_equal(changed.sum(1), edits.is_edit.sum(1))
    assert changed.any(axis=1).all()
    save_edits(edits, tmp_path / "edits.npz")
    loaded = load_edits(tmp_path / "edits.npz", tokenizer)
    for field in dataclasses.fields(edits):
        np.testing.assert_array_equal(
            getattr(edits, field.name), getattr(loaded, field.name)
        )
    assert loaded.source == "four" and loaded.editor == "abc" and loaded.seed == 5
    assert [p.name for p in tmp_path.iterdir()] == ["edits.npz"]


@pytest.mark.parametrize("version", [None, 0, 2])
def test_another_format_version_is_refused(edits, tokenizer, tmp_path, version):
    path = tmp_path / "edits.npz"
    save_edits(edits, path)
    with np.load(path) as stored:
        values = {name: stored[name] for name in stored.files}
    assert values.pop("format_version") == 1
    if version is not None:
        values["format_version"] = version
    np.savez(path, **values)
    with pytest.raises(
        UserError,
        match=r"edits\.npz has .*format_version.* reads format_version 1: .*--edits",
    ):
        load_edits(path, tokenizer)


def test_edits_without_an_array_are_refused(edits, tokenizer, tmp_path):
    path = tmp_path / "edits.npz"
    save_edits(edits, path)
    with np.load(path) as stored:
        values = {name: stored[name] for name in stored.files}
    del values["is_edit"]
    np.savez(path, **values)
    with pytest.raises(UserError, match=r"edits\.npz does not hold 'is_edit'"):
        load_edits(path, tokenizer)
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(path)
    with pytest.raises(UserError, match=r"edits\.npz does not hold stored edits"):
        load_edits(path, tokenizer)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 no", b"text"])
def test_other_files_are_refused(tmp_path, content, tokenizer):
    path = tmp_path / "edits.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=r"edits\.npz"):
        load_edits(path, tokenizer)


def test_right_and_shuffled_images_are_shown(edits, source, tokenizer):
    """A model that only knows which image it is shown and which caption it reads."""
    shown = []

    class Knowing:
        image_size, show_progress = 16, False
        trained = LossConfig().trained
        read_images, progress = Encoder.read_images, Encoder.progress

        def proofread(self, pixels, tokens, positions, labels):
            means = np.array([image.mean() for image in pixels])
            shown.append(means)
            is_right = np.isclose(means, shown[0])[:, None]
            is_wrong = edits.edited != edits.tokens
            # What may not be edited does not count, for or against the model.
            is_editable = tokenizer.vocabulary.is_editable[edits.edited]
            says_wrong = (is_wrong & is_right) | ~is_editable
            judged = Proofreading(
                p_wrong=np.where(says_wrong, 0.9, 0.1),
                rank=np.where(edits.is_edit & is_right, 2, 7),
                best=None,
                p_best=None,
            )
            return {"local": judged, "global": judged}

    knowing = Knowing()
    knowing.tokenizer = tokenizer
    metrics = evaluate_proofreading(knowing, edits, source)
    assert len(shown) == 2
    for branch in ("local", "global"):
        assert metrics[branch]["detect"] == {"precision": 1.0, "recall": 1.0, "f1": 1.0}
        assert metrics[branch]["correct"] == {"top1": 0.0, "top3": 1.0}
        assert metrics["shuffled"][branch]["detect"]["f1"] == 0.0
    assert metrics["edits"] == edits.is_edit.sum()
    special = [tokenizer.vocabulary.pad_id, *tokenizer.encode([""], 2)[0]]
    assert metrics["words"] == np.sum(~np.isin(edits.edited, special))
    assert metrics["captions"] == metrics["images"] == 4


def test_the_real_model_is_measured(edits, source, encoder):
    metrics = evaluate_proofreading(encoder, edits, source)
    assert 0 <= metrics["shuffled"]["global"]["correct"]["top3"] <= 1


def test_edits_of_more_images_are_refused(edits, source, encoder):
    far = dataclasses.replace(edits, image=edits.image + 7)
    with pytest.raises(UserError, match="four has 4"):
        evaluate_proofreading(encoder, far, source)


def test_edits_of_other_captions_are_refused(edits, source, encoder):
    class Other(type(source)):
        name = "other"
        said = (*type(source).said[:3], ("a cat",))

    with pytest.raises(UserError, match=r"captions than those of other \(of four\)"):
        evaluate_proofreading(encoder, edits, Other())


def test_edits_of_another_vocabulary_are_refused(edits, tokenizer, tmp_path):
    save_edits(edits, tmp_path / "edits.npz")
    (tmp_path / "vocab.txt").write_text("\n".join([*tokenizer.pieces, "new"]))
    with pytest.raises(UserError, match="another vocabulary"):
        load_edits(tmp_path / "edits.npz", Tokenizer(tmp_path))


def test_edits_with_sep_are_refused_by_a_model_without(edits, tokenizer, tmp_path):
    save_edits(edits, tmp_path / "edits.npz")
    tokenizer.save(tmp_path)
    without = Tokenizer(tmp_path, keeps_sep=False)
    with pytest.raises(UserError, match=r"with \[SEP\].*keeps_sep is False"):
        load_edits(tmp_path / "edits.npz", without)


def test_edits_do_not_depend_on_company(edits, config, tokenizer, source):
    """The first images get the same edits however many follow."""
    model = MaskedLanguageModel(config.model.text, config.compute, rngs=nnx.Rngs(1))
    graphdef, params = nnx.split(model, nnx.Param)
    vocabulary = tokenizer.vocabulary
    tables = TokenTables(
        *(jnp.asarray(t) for t in (vocabulary.is_editable, vocabulary.is_piece)),
        jnp.zeros(vocabulary.size, bool),
        pad_id=vocabulary.pad_id,
        mask_id=vocabulary.mask_id,
    )
    few = make_edits(
        EDITING,
        graphdef,
        FrozenEditor(jax.tree.map(jnp.asarray, nnx.to_pure_dict(params)), tables),
        tokenizer,
        source,
        seed=5,
        num_images=2,
    )
    np.testing.assert_array_equal(few.edited, edits.edited[:2])


def trained_only(encoder, *switches):
    """The encoder of a run with these of the four losses."""
    names = ("local_detect", "local_correct", "global_detect", "global_correct")
    loss = LossConfig(**{name: name in switches for name in names})
    return dataclasses.replace(
        encoder, config=dataclasses.replace(encoder.config, loss=loss)
    )


def test_an_untrained_branch_has_no_metrics(encoder, edits, source):
    whole = evaluate_proofreading(encoder, edits, source)
    part = trained_only(encoder, "global_correct")
    metrics = evaluate_proofreading(part, edits, source)
    assert "local" not in metrics and "local" not in metrics["shuffled"]
    assert set(metrics["global"]) == {"correct"}
    expected = whole["global"]["correct"]["top1"]
    assert metrics["global"]["correct"]["top1"] == pytest.approx(expected)
    with pytest.raises(UserError, match=r"the local branch .* was not trained"):
        part.proofread(
            [], edits.edited, edits.positions, edits.labels, branches=("local",)
        )
    none = trained_only(encoder)
    with pytest.raises(UserError, match="without ViLEM's losses"):
        evaluate_proofreading(none, edits, source)

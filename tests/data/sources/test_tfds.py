"""TFDS data sets in ArrayRecord, prepared and read without TensorFlow."""

import io
import pickle
import shutil
import sys

import numpy as np
import pytest

from tests.data.make_files import make_image
from vilem_jax.config.sources import TfdsConfig
from vilem_jax.data.images import decode
from vilem_jax.data.sources.source import caption_counts, open_source
from vilem_jax.errors import UserError

EXAMPLE = {"image": lambda i: io.BytesIO(make_image(i)), "text": str}
SPLITS = {"train": 3, "restval": 2, "test": 1}


def make_builder(name: str, features: dict, example, **settings):
    """A TFDS builder whose splits hold `example(i)`, i counting over all splits."""
    tfds = pytest.importorskip("tensorflow_datasets")

    class Examples(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.2.0")
        code_path = None  # TFDS would look for files of its own beside this one

        def _info(self):
            dictionary = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=dictionary)

        def _split_generators(self, _):
            first = 0
            splits = {}
            for split, count in SPLITS.items():
                numbers = range(first, first + count)
                splits[split] = [(i, example(i)) for i in numbers]
                first += count
            return splits

        def _generate_examples(self):
            raise NotImplementedError

    Examples.name = name
    return Examples(file_format="array_record", **settings)


def coco_like(folder):
    """The features of `coco_captions`."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "image/filename": tfds.features.Text(),
        "image/id": np.int64,
        "captions": tfds.features.Sequence(
            {"id": np.int64, "text": tfds.features.Text()}
        ),
    }

    def example(i: int) -> dict:
        captions = [{"id": 10 * i + j, "text": f"ä {i} {j}"} for j in range(1 + i % 2)]
        return {
            "image": io.BytesIO(make_image(i)),
            "image/filename": f"{i}.png",
            "image/id": i,
            "captions": captions,
        }

    return make_builder("coco_like", features, example, data_dir=folder)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    coco_like(folder).download_and_prepare()
    return folder


@pytest.fixture
def root(prepared, tmp_path):
    """A copy to corrupt, without an index of another test."""
    shutil.copytree(prepared, tmp_path / "data")
    return tmp_path / "data"


def config(root, path="coco_like", **settings) -> TfdsConfig:
    return TfdsConfig(name="coco", path=path, images=str(root), **settings)


def test_train_is_train_and_restval(root):
    source = open_source(config(root, split="train"))
    assert [source.image_name(i) for i in range(len(source))] == [
        f"{i}.png" for i in range(5)
    ]
    assert source.captions(1) == ("ä 1 0", "ä 1 1") and source.captions(4) == ("ä 4 0",)
    assert caption_counts(source).tolist() == [1, 2, 1, 2, 1]
    for i in range(5):
        assert isinstance(source.read_image(i), bytes)
        assert decode(source.read_image(i))[0, 0, 0] == i


def test_other_splits(root):
    assert len(open_source(config(root))) == 6
    assert open_source(config(root, split="test")).image_name(0) == "5.png"
    assert len(open_source(config(root, split="train[:2]+test"))) == 3
    assert len(open_source(config(root, split="train", num_images=2))) == 2
    with pytest.raises(
        UserError, match=r"no split 'val' .* train, restval, test|no sp"
    ):
        open_source(config(root, split="val"))


def test_needs_no_tensorflow(root):
    open_source(config(root, split="test")).read_image(0)
    assert "tensorflow" not in sys.modules


def test_a_folder_names_it_too(root):
    folder = root / "coco_like" / "1.2.0"
    source = open_source(TfdsConfig(path=str(folder), split="test"))
    assert source.captions(0) == ("ä 5 0", "ä 5 1")


def test_pickles_to_other_processes_and_is_indexed_once(root, monkeypatch):
    source = open_source(config(root, split="test"))
    source.read_image(0)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read_image(0) == source.read_image(0)
    assert list((root / "coco_like").glob("*.vilem-index.npz"))
    monkeypatch.setattr(type(source), "_build_index", None)  # would fail if called
    assert open_source(config(root, split="test")).captions(0) == source.captions(0)


def test_missing_data_sets_are_refused_in_one_sentence(root):
    with pytest.raises(UserError, match="no prepared data set nothing"):
        open_source(config(root, path="nothing"))
    (root / "coco_like" / "2017").mkdir()
    (root / "coco_like" / "2014").mkdir()
    shutil.move(root / "coco_like" / "1.2.0", root / "coco_like" / "2014" / "1.2.0")
    with pytest.raises(UserError, match=r"holds 2014, 2017; name one"):
        open_source(config(root))
    assert len(open_source(config(root, path="coco_like/2014", split="test"))) == 1


def test_plain_texts_are_captions(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "id": tfds.features.Text(),
        "description": tfds.features.Text(),
    }

    def example(i: int) -> dict:
        content = io.BytesIO(make_image(i))
        return {"image": content, "id": f"n{i}", "description": f"text {i}"}

    builder = make_builder("plain", features, example, data_dir=tmp_path)
    builder.download_and_prepare()
    source = open_source(config(tmp_path, path="plain", split="test"))
    assert (source.image_name(0), source.captions(0)) == ("n5", ("text 5",))


def test_without_captions_or_images_is_refused(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    for name, features in (
        ("no_text", {"image": tfds.features.Image(shape=(None, None, 3))}),
        ("no_image", {"text": tfds.features.Text()}),
    ):
        builder = make_builder(
            name,
            features,
            lambda i, fs=tuple(features): {f: EXAMPLE[f](i) for f in fs},
            data_dir=tmp_path,
        )
        builder.download_and_prepare()
        with pytest.raises(UserError, match=r"has no (caption|image); its features"):
            open_source(config(tmp_path, path=name))


def test_cut_short_never_gives_wrong_images(root):
    whole = open_source(config(root, split="train"))
    expected = [(whole.captions(i), whole.read_image(i)) for i in range(5)]
    folder = root / "coco_like" / "1.2.0"
    (file,) = folder.glob("*train*array_record*")
    content = file.read_bytes()
    for size in range(0, len(content), 512):
        file.write_bytes(content[:size])
        source = open_source(config(root, split="train"))  # by the stored index
        for i, (captions, image) in enumerate(expected):
            assert source.captions(i) == captions
            try:
                assert source.read_image(i) == image
            except OSError:
                continue
    for index in (root / "coco_like").glob("*.vilem-index.npz"):
        index.unlink()
    with pytest.raises(UserError, match=r"cut short|cannot be read"):
        open_source(config(root, split="train"))

"""TFDS's files, read and written without TensorFlow. Only this file imports TFDS.

`vilem data prepare` writes a TFDS data set: ArrayRecord files of encoded images with
captions, and the metadata that `builder_from_directory` reads.
"""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vilem_jax.errors import UserError

if TYPE_CHECKING:
    from tensorflow_datasets.core.features import FeatureConnector, FeaturesDict

VERSION = "1.0.0"  # of prepared data sets, a folder's name
SUFFIX = "array_record"
DESCRIPTION = (
    "Images with captions, prepared by `vilem data prepare`: images above its "
    "short side are resized, others are the files they were."
)
# One record to a chunk: any other makes reading one image decode several.
_WRITER_OPTIONS = "group_size:1"


def read_info(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The names of a prepared data set's splits, and its features by name.

    A feature is an "image"; a "caption", which is a text, a list of texts, or a list of
    structures with a text; or "".
    """
    import tensorflow_datasets as tfds

    def kind(feature: "FeatureConnector") -> str:
        if isinstance(feature, tfds.features.Image):
            return "image"
        inner = getattr(feature, "feature", feature)  # of a Sequence
        if isinstance(inner, tfds.features.FeaturesDict):
            return "caption" if "caption" in map(kind, inner.values()) else ""
        return "caption" if isinstance(inner, tfds.features.Text) else ""

    info = tfds.builder_from_directory(folder).info
    features = info.features
    is_record = isinstance(features, tfds.features.FeaturesDict)
    by_name = features.items() if is_record else ()
    return list(info.splits), {name: kind(feature) for name, feature in by_name}


def open_records(folder: Path, split: str, image: str) -> Sequence[dict[str, Any]]:
    """The records of a split by number, the feature `image` as encoded bytes.

    Raises:
      UserError: the data set is not stored as ArrayRecord.
    """
    import tensorflow_datasets as tfds

    decoders = {image: tfds.decode.SkipDecoding()}
    builder: Any = tfds.builder_from_directory(folder)  # untyped by a decorator
    try:
        return builder.as_data_source(split, decoders=decoders)
    except NotImplementedError:
        raise UserError(
            f"{folder} is not stored as ArrayRecord; prepare it again with "
            "file_format='array_record'"
        ) from None


def caption_features() -> "FeaturesDict":
    """The features of a record that `vilem data prepare` writes."""
    import numpy as np
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "filename": tfds.features.Text(),
            "image_id": np.int64,
        }
    )


def as_example(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the bytes of its image, as `caption_features` encodes it."""
    return {**record, "image": io.BytesIO(record["image"])}


class ShardWriter(contextlib.AbstractContextManager["ShardWriter"]):
    """One ArrayRecord file of records, complete if the `with` block ends without error.

    Raises:
      OSError: the file cannot be written.
    """

    def __init__(self, path: Path):
        # By name: a native module, which type checkers cannot read.
        self._module = import_module("array_record.python.array_record_module")
        self._path, self._count = str(path), 0
        self._features = caption_features()
        with _as_os_error():
            self._writer = self._module.ArrayRecordWriter(self._path, _WRITER_OPTIONS)

    def write(self, record: Mapping[str, Any]) -> None:
        example = _serialized(self._features, record)
        with _as_os_error():
            self._writer.write(example)
        self._count += 1

    def __exit__(self, kind, *_) -> None:
        if kind is not None:
            with contextlib.suppress(RuntimeError):
                self._writer.close()
            return
        with _as_os_error():
            self._writer.close()
            reader = self._module.ArrayRecordReader(self._path)
            found = reader.num_records()
            reader.close()
        if found != self._count:
            raise OSError(f"only {found} of {self._count} records are on the disk")


def _serialized(features: "FeaturesDict", record: Mapping[str, Any]) -> bytes:
    """The same bytes in every process: protobuf orders its maps at random otherwise."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = features.serialize_example(as_example(record))
    # By name: a generated module, which type checkers cannot read.
    parsed = vars(tf_example_pb2)["Example"].FromString(example)
    return parsed.SerializeToString(deterministic=True)


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Raises ArrayRecord's errors as OSError, with the reason only."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).partition(";")[0]
        raise OSError(first.rpartition("failed: ")[2].lower()) from error


def shard_name(name: str, split: str, number: int, count: int) -> str:
    """The file name of shard `number` of `count`, as TFDS expects it."""
    return f"{name}-{split}.{SUFFIX}-{number:05d}-of-{count:05d}"


def write_metadata(
    folder: Path, name: str, splits: Mapping[str, tuple[Sequence[int], int]]
) -> None:
    """dataset_info.json and features.json beside the shards in `folder`.

    Args:
      splits: by name, the number of records of each shard and the bytes of all.
    """
    import tensorflow_datasets as tfds

    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=list(lengths),
            num_bytes=num_bytes,
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=tfds.core.Path(folder),
                dataset_name=name,
                split=split,
                filetype_suffix=SUFFIX,
            ),
        )
        for split, (lengths, num_bytes) in splits.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=caption_features(),
        split_infos=infos,
        version=VERSION,
        check_data=False,  # it would read with TensorFlow
        description=DESCRIPTION,
        disable_shuffling=True,
    )


def build_with_beam(
    folder: Path, name: str, splits: Mapping[str, Callable], runner: str, options: Any
) -> Path:
    """`download_and_prepare` of a data set whose splits are pipelines of Beam.

    Args:
      folder: TFDS's folder; the data set goes to folder/name/`VERSION`.
      splits: by name, a function from a pipeline to a collection of
        (number, example); records are ordered by number.
      options: Beam's `PipelineOptions`.

    Returns:
      the folder of the data set's files.
    """
    import tensorflow_datasets as tfds

    class Captions(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None  # otherwise TFDS looks for its own files beside this one

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=DESCRIPTION,
                features=caption_features(),
                disable_shuffling=True,
            )

        def _split_generators(self, _, pipeline):
            return {split: make(pipeline) for split, make in splits.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Captions.name = name
    builder = Captions(data_dir=folder, file_format=SUFFIX)
    download = tfds.download.DownloadConfig(beam_runner=runner, beam_options=options)
    with contextlib.redirect_stdout(io.StringIO()):  # it reports a download
        builder.download_and_prepare(download_config=download)
    return Path(builder.data_dir)

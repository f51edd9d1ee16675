"""Every kind of data set that image-caption pairs come from, declared once.

A new kind needs its config class here, in `SOURCE_KINDS`, and the file of its reader.
Command line, config files and `open_source` find it by this list.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from vilem_jax.config.bounds import NonNegativeFloat, NonNegativeInt
from vilem_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """What all kinds of sources share.

    A kind is declared twice: its config class below, listed in `SOURCE_KINDS`,
    and the file of its reader. Command line and config files know it from there.
    """

    name: str = ""  # the key under config.data.train, validation or test
    kind: str = ""
    split: str = ""  # Karpathy's or TFDS's name, several joined by "+"; "" takes all
    weight: NonNegativeFloat = 0.0  # share in a mixture; 0: the number of pairs
    num_images: NonNegativeInt = 0  # only the first ones; 0: all
    # Of data without splits, by a hash of the images' names: data/sources/part.py.
    part: Literal["", "train", "val", "test", "train+test"] = ""

    # "module:function" from this config to a `Source`; imported when a source opens.
    reader: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]] = ()  # of what `--data` recognizes

    @classmethod
    def recognizes(cls, data: str) -> bool:
        """Whether `data`, the value of --data, is of this kind.

        A file is by its name alone; a folder by the files in it.
        """
        return data.endswith(cls.suffixes)

    def without_folders(self) -> "SourceConfig":
        """The same source for other machines: no folder of this one is named."""
        return self


@dataclass(frozen=True, kw_only=True)
class ScenesConfig(SourceConfig):
    """The embedded data set, drawn by the program; `num_images` 0: its default."""

    kind: Literal["scenes"] = "scenes"
    seed: NonNegativeInt = 0

    reader = "vilem_jax.data.scenes.source:open_scenes"

    @classmethod
    def recognizes(cls, data: str) -> bool:
        return data == cls.kind


@dataclass(frozen=True, kw_only=True)
class FileSourceConfig(SourceConfig):
    """What the kinds share that read files."""

    path: str = ""

    def without_folders(self) -> "FileSourceConfig":
        return replace(self, path=Path(self.path).name)


@dataclass(frozen=True, kw_only=True)
class JsonConfig(FileSourceConfig):
    """An annotation file `path` with images in `images`."""

    kind: Literal["json"] = "json"
    images: str = ""  # a folder or a zip; "": the one that holds the annotations

    reader = "vilem_jax.data.sources.json_file:JsonSource"
    suffixes = (".json", ".jsonl")

    def without_folders(self) -> "JsonConfig":
        return replace(self, path=Path(self.path).name, images="")


@dataclass(frozen=True, kw_only=True)
class TableConfig(FileSourceConfig):
    """What the kinds share whose rows have named columns; "": by its usual names."""

    image_column: str = ""
    caption_column: str = ""
    split_column: str = ""
    id_column: str = ""


@dataclass(frozen=True, kw_only=True)
class CsvConfig(TableConfig):
    """A table `path` with images in `images`: CSV, or TSV if its name ends so."""

    kind: Literal["csv"] = "csv"
    images: str = ""  # a folder or a zip; "": the one that holds the table
    delimiter: str = ""  # between two fields; "": by the ending of `path`

    reader = "vilem_jax.data.sources.csv_file:CsvSource"
    suffixes = (".csv", ".tsv")

    def without_folders(self) -> "CsvConfig":
        return replace(self, path=Path(self.path).name, images="")


@dataclass(frozen=True, kw_only=True)
class ImageFolderConfig(TableConfig):
    """A folder with images and metadata.jsonl or .csv, as Hugging Face's imagefolder.

    `path` is the folder, or its metadata file. Its folders train, validation and test
    are splits.
    """

    kind: Literal["imagefolder"] = "imagefolder"

    reader = "vilem_jax.data.sources.imagefolder:ImageFolderSource"
    suffixes = ("metadata.jsonl", "metadata.csv")  # of the file

    @classmethod
    def recognizes(cls, data: str) -> bool:
        if Path(data).is_dir():
            folders = ("", "*/")
            files = (f"{below}{name}" for below in folders for name in cls.suffixes)
            return any(any(Path(data).glob(pattern)) for pattern in files)
        return Path(data).name in cls.suffixes


@dataclass(frozen=True, kw_only=True)
class HuggingFaceConfig(TableConfig):
    """A folder that `datasets` saved, or Parquet: a file, a glob, or a folder."""

    kind: Literal["huggingface"] = "huggingface"

    reader = "vilem_jax.data.sources.huggingface:HuggingFaceSource"
    suffixes = (".parquet",)

    @classmethod
    def recognizes(cls, data: str) -> bool:
        if Path(data).is_dir():
            files = ("state.json", "dataset_dict.json", "*.parquet", "*/*.parquet")
            return any(any(Path(data).glob(pattern)) for pattern in files)
        return super().recognizes(data)


@dataclass(frozen=True, kw_only=True)
class TfdsConfig(FileSourceConfig):
    """A TFDS data set `path`, such as "coco_captions/2014", prepared in `images`."""

    kind: Literal["tfds"] = "tfds"
    images: str = ""  # TFDS's folder; "": TFDS_DATA_DIR or ~/tensorflow_datasets

    reader = "vilem_jax.data.sources.tfds:TfdsSource"

    def without_folders(self) -> "TfdsConfig":
        return replace(self, images="")


@dataclass(frozen=True, kw_only=True)
class WebDatasetConfig(FileSourceConfig):
    """Tars that match the glob `path`, as img2dataset writes them."""

    kind: Literal["webdataset"] = "webdataset"

    reader = "vilem_jax.data.sources.webdataset:WebDatasetSource"
    suffixes = (".tar",)


SOURCE_KINDS: dict[str, type[SourceConfig]] = {
    cls.kind: cls
    for cls in (
        *(ImageFolderConfig, HuggingFaceConfig, JsonConfig, CsvConfig),
        *(WebDatasetConfig, TfdsConfig, ScenesConfig),
    )
}


def kind_of(data: str) -> str:
    """The kind that recognizes the name `data`.

    Raises:
      UserError: none does.
    """
    for kind, cls in SOURCE_KINDS.items():
        if cls.recognizes(data):
            return kind
    kinds = " or ".join(SOURCE_KINDS)
    raise UserError(f"cannot recognise the kind of data of {data}; give --kind={kinds}")

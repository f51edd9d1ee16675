"""An intact file of every kind that users give, and how the program reads it."""

import contextlib
import dataclasses
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.data.make_files import (
    image_table,
    img2dataset_members,
    make_image,
    save_to_disk,
    write_tar,
)
from tests.intact_texts import (
    ARO,
    BERT,
    CAPTIONS,
    COCO,
    CSV,
    KARPATHY,
    LINES,
    METADATA,
    METADATA_CSV,
    OWN_PAIRS,
    ROWS,
    SUGARCREPE,
    TABLE,
    VALSE,
    VIDEOS,
    WINOGROUND,
)
from vilem_jax.config.schema import EditorConfig, TextConfig
from vilem_jax.config.sources import (
    CsvConfig,
    HuggingFaceConfig,
    ImageFolderConfig,
    JsonConfig,
    SourceConfig,
    TfdsConfig,
    WebDatasetConfig,
)
from vilem_jax.data.corpus import Corpus
from vilem_jax.data.edit_table import EditTable, StoredEditTable, describe
from vilem_jax.data.sources.packed_text import PackedTexts
from vilem_jax.data.sources.source import Source, open_source
from vilem_jax.data.tokenizer import Tokenizer, train_vocabulary, vocabulary_digest
from vilem_jax.data.video.clips import VideoClips
from vilem_jax.editing.stored_edits import StoredEdits, load_edits, save_edits
from vilem_jax.evaluation.embeddings import read_features
from vilem_jax.evaluation.pair_files import PairImages, read_pairs
from vilem_jax.evaluation.winoground import read_winoground
from vilem_jax.search import vectors
from vilem_jax.search.folder import Entry
from vilem_jax.search.index import Index, load_index, save_index
from vilem_jax.weights import folders, foreign
from vilem_jax.weights.formats.huggingface_bert import read_text_config


@dataclasses.dataclass(frozen=True)
class Parser:
    """How an intact file is made in a folder, and how it is read.

    `read` returns what must not change unnoticed if `is_sealed`.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    is_sealed: bool = False


# ---- how they are made ----


def _text(name: str, content: Any, *, in_lines: bool = False) -> Callable:
    def make(folder: Path) -> Path:
        for number in range(len(CAPTIONS)):
            (folder / f"{number}.png").write_bytes(make_image(number))
        if isinstance(content, str):
            text = content
        elif in_lines:
            text = "\n".join(map(json.dumps, content)) + "\n"
        else:
            text = json.dumps(content)
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        return folder / name

    return make


def _zipped(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("captions.json", json.dumps(ROWS))
        archive.writestr("0.png", make_image(0))
    return folder / "a.zip"


def _tar(folder: Path) -> Path:
    return write_tar(folder / "a.tar", img2dataset_members(range(4)))


def _features(folder: Path) -> Path:
    rows = np.random.default_rng(0).normal(size=(10, 4))
    owner = np.arange(6) % 4
    arrays = {"image_embedding": rows[:4], "text_embedding": rows[4:]}
    np.savez(folder / "a.npz", image_of_text=owner, **arrays)
    return folder / "a.npz"


def _index(folder: Path) -> Path:
    entries = tuple(Entry(f"{i}.png", 10 + i, 20 + i) for i in range(6))
    index = Index("/data", "abc", entries, np.eye(6, 4, dtype=np.float32))
    save_index(index, folder / "a.index")
    return folder / "a.index"


def _vectors(folder: Path) -> vectors.Plan:
    plan = vectors.Plan(1, "abc", 32, 4, "float32", 6, "digest", 4, 2, "/data")
    (folder / "plan.json").write_text(json.dumps(dataclasses.asdict(plan)))
    for number, file in enumerate(plan.files(folder)):
        rows = plan.rows(number)
        names = PackedTexts(f"{row}.png" for row in rows)
        embedding = np.ones((len(rows), 4), np.float32)
        vectors.write_shard(file, plan, vectors.Shard(embedding, names, [("x", "y")]))
    return plan


def _plan(folder: Path) -> Path:
    _vectors(folder)
    return folder / "plan.json"


def _shard(folder: Path) -> Path:
    return _vectors(folder).files(folder)[0]


def _index_about(folder: Path) -> Path:
    with np.load(_index(folder)) as stored:
        (folder / "about.json").write_bytes(bytes(stored["about"]))
    return folder / "about.json"


def _vocabulary(folder: Path) -> Path:
    train_vocabulary(CAPTIONS, 120, folder)
    return folder


def _backend(folder: Path) -> Path:
    Tokenizer(_vocabulary(folder))._wordpiece.save(str(folder / "tokenizer.json"))
    return folder


def _edit_table(folder: Path) -> Path:
    tokenizer = Tokenizer(_vocabulary(folder))
    table = EditTable.empty(12, 2, 3, text_length=12, tokenizer=tokenizer)
    rows = JsonConfig(path=str(_text("captions.json", ROWS)(folder)))
    about = describe(Corpus([open_source(rows)]), tokenizer, 12, EditorConfig())
    table.write(str(folder / "edits.safetensors"), about | {"editor": "abc"})
    return folder / "edits.safetensors"


def _stored_edits(folder: Path) -> Path:
    tokenizer = Tokenizer(_vocabulary(folder))
    tokens = tokenizer.encode(CAPTIONS, 12)
    positions = np.tile(np.array([[1, 2]], np.int32), (6, 1))
    digest = vocabulary_digest(tokenizer)
    edits = StoredEdits(
        *("test", "", digest, "", "{}", 0, np.arange(6, dtype=np.int32)),
        *(tokens, tokens, positions, np.ones((6, 2), bool)),
    )
    save_edits(edits, folder / "edits.npz")
    return folder / "edits.npz"


def _tfds(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        from vilem_jax.data.prepare.local import prepare
        from vilem_jax.data.prepare.records import Settings

        source = JsonConfig(path=str(_text("captions.json", ROWS)(folder)))
        with contextlib.redirect_stderr(io.StringIO()):
            prepare({"train": [source]}, folder / "out", Settings())
        return next((folder / "out").rglob(name))

    return make


def _weights(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        arrays = {f"layer.{i}": np.full((2, 3), i, np.float32) for i in range(3)}
        if name == "weights.npz":
            np.savez(folder / name, **arrays)
            return folder / name
        for number, (key, array) in enumerate(arrays.items()):
            save_file({key: array}, folder / f"part-{number}.safetensors")
        weight_map = {f"layer.{i}": f"part-{i}.safetensors" for i in range(3)}
        (folder / folders.INDEX).write_text(json.dumps({"weight_map": weight_map}))
        return folder / name

    return make


# ---- how they are read ----


def _used(source: Source) -> list[Any]:
    """What a run uses of a source; images may be corrupt."""
    has_image = getattr(source, "has_image", lambda index: True)
    values = []
    for index in range(len(source)):
        with contextlib.suppress(OSError):
            source.read_image(index)
        values.append((source.captions(index), has_image(index)))
    return [values, getattr(source, "notes", ())]


def _captions(file: Path, member: str = "", split: str = "") -> list[Any]:
    path = str(file / member)
    return _used(open_source(JsonConfig(path=path, split=split)))


def _parquet(folder: Path) -> Path:
    from pyarrow import parquet

    parquet.write_table(image_table(CAPTIONS), folder / "a.parquet", row_group_size=3)
    return folder / "a.parquet"


def _saved(name: str) -> Callable[[Path], Path]:
    return lambda folder: save_to_disk(folder / "a", image_table(CAPTIONS)) / name


def _table(cls: type[SourceConfig], *, of_folder: bool = False) -> Callable:
    def read(file: Path) -> list[Any]:
        return _used(open_source(cls(path=str(file.parent if of_folder else file))))

    return read


def _clips(file: Path) -> list[Any]:
    clips = VideoClips(file, None)
    return [clips.file(index) for index in range(len(clips))]


def _tfds_source(file: Path) -> list[Any]:
    for index in file.parent.parent.rglob("*vilem-index*"):
        index.unlink()
    return _used(open_source(TfdsConfig(path=str(file.parent))))


def _tar_source(file: Path) -> list[Any]:
    return _used(open_source(WebDatasetConfig(path=str(file))))


def _table_rows(file: Path) -> Any:
    table = StoredEditTable(str(file))
    table.check({"pairs": 12})
    return table.rows([0, 5], [0, 1])


def _index_with(file: Path) -> Any:
    """An index whose description alone is a mutant: its checksum is right."""
    about = np.frombuffer(file.read_bytes(), np.uint8)
    with open(file.parent / "a.index", "wb") as target:
        np.savez(target, embedding=np.eye(6, 4, dtype=np.float32), about=about)
    found = vectors.open_vectors(file.parent / "a.index")
    return [found.path(row) for row in range(len(found))]


def _tensors(source: folders.Tensors) -> list[np.ndarray]:
    return [source.read(name) for name in source.names]


def _pairs(file: Path) -> Any:
    images = PairImages(file.parent, pairs := read_pairs(file)[0])
    return [images.read_image(pair.image) for pair in pairs]


SAVED = _table(HuggingFaceConfig, of_folder=True)
PARSERS = {
    "rows": Parser(_text("a.json", ROWS), _captions),
    "rows, a split": Parser(
        _text("a.json", ROWS), lambda file: _captions(file, split="test")
    ),
    "rows in lines": Parser(_text("a.json", ROWS, in_lines=True), _captions),
    "karpathy": Parser(_text("a.json", KARPATHY), _captions),
    "coco": Parser(_text("a.json", COCO), _captions),
    "csv": Parser(_text("a.csv", TABLE), _table(CsvConfig)),
    "tsv": Parser(_text("a.tsv", TABLE.replace(",", "\t")), _table(CsvConfig)),
    "metadata.jsonl": Parser(
        _text("metadata.jsonl", METADATA, in_lines=True), _table(ImageFolderConfig)
    ),
    "metadata.csv": Parser(
        _text("metadata.csv", METADATA_CSV), _table(ImageFolderConfig)
    ),
    "parquet": Parser(_parquet, _table(HuggingFaceConfig)),
    "arrow": Parser(_saved("data-00000-of-00001.arrow"), SAVED),
    "state.json": Parser(_saved("state.json"), SAVED),
    "zip": Parser(_zipped, lambda file: _captions(file, "captions.json")[0][1:], True),
    "tar": Parser(_tar, _tar_source),
    "dataset_info.json": Parser(_tfds("dataset_info.json"), _tfds_source),
    "features.json": Parser(_tfds("features.json"), _tfds_source),
    "array_record": Parser(_tfds("*.array_record-*"), _tfds_source),
    "clips in lines": Parser(_text("a.jsonl", LINES, in_lines=True), _clips),
    "clips": Parser(_text("a.json", VIDEOS), _clips),
    "clips, csv": Parser(_text("a.csv", CSV), _clips),
    "own pairs, csv": Parser(_text("a.csv", OWN_PAIRS), _pairs),
    "sugarcrepe": Parser(_text("a.json", SUGARCREPE), _pairs),
    "aro": Parser(_text("a.json", ARO), _pairs),
    "valse": Parser(_text("a.json", VALSE), _pairs),
    "winoground": Parser(
        _text("examples.jsonl", WINOGROUND, in_lines=True),
        lambda file: read_winoground(file.parent),
    ),
    "features.npz": Parser(
        _features, lambda file: dataclasses.astuple(read_features(file)), True
    ),
    "index": Parser(_index, lambda file: dataclasses.astuple(load_index(file)), True),
    "index, description": Parser(_index_about, _index_with),
    "plan.json": Parser(_plan, lambda file: vectors.open_vectors(file.parent)),
    "vectors": Parser(
        _shard, lambda file: vectors.open_vectors(file.parent).parts, True
    ),
    "edit table": Parser(_edit_table, _table_rows),
    "stored edits": Parser(
        _stored_edits,
        lambda file: dataclasses.astuple(load_edits(file, Tokenizer(file.parent))),
        True,
    ),
    "config.json": Parser(
        _text("config.json", BERT),
        lambda file: read_text_config(file.parent, TextConfig()),
    ),
    "vocab.txt": Parser(
        lambda folder: _vocabulary(folder) / "vocab.txt",
        lambda file: Tokenizer(file.parent).encode(CAPTIONS, 12),
    ),
    "tokenizer.json": Parser(
        lambda folder: _backend(folder) / "tokenizer.json",
        lambda file: Tokenizer(file.parent).encode(CAPTIONS, 12),
    ),
    "tokenizer_config.json": Parser(
        lambda folder: _backend(folder) / "tokenizer_config.json",
        lambda file: Tokenizer(file.parent).encode(CAPTIONS, 12),
    ),
    "safetensors": Parser(
        _weights("part-0.safetensors"),
        lambda file: _tensors(foreign.open_checkpoint(file)),
    ),
    "safetensors index": Parser(
        _weights(folders.INDEX),
        lambda file: _tensors(foreign.open_checkpoint(file.parent)),
    ),
    "weights.npz": Parser(
        _weights("weights.npz"), lambda file: _tensors(foreign.open_checkpoint(file))
    ),
}

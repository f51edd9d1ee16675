"""Embeddings of images on disk, with their names, for search and export.

    FOLDER/plan.json                         the images, the model, rows in a shard
    FOLDER/vectors-00000.safetensors, ...    one shard each, written as one change
    FOLDER/manifest.json                     counts, written after the last shard
    FOLDER/corrupt.jsonl                     images left out, and why

`vilem embed` writes such a folder; the file of `vilem index` is read as well.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import safetensors.numpy

from vilem_jax.data.sources.packed_text import PackedTexts
from vilem_jax.errors import UserError
from vilem_jax.files import check_format_version, read_errors, write_bytes
from vilem_jax.integrity import checksum
from vilem_jax.search.index import load_index
from vilem_jax.typing import JsonObject

FORMAT_VERSION = 1
PLAN, MANIFEST, CORRUPT = "plan.json", "manifest.json", "corrupt.jsonl"
_KINDS = {"F32": np.float32, "F16": np.float16, "U8": np.uint8, "I64": np.int64}


@dataclasses.dataclass(frozen=True)
class Plan:
    """FOLDER/plan.json: what all workers on a folder must agree on."""

    format_version: int
    fingerprint: str  # of the model
    image_size: int
    dimension: int  # E
    dtype: str
    images: int
    images_digest: str  # of their names; of files also sizes and times
    images_per_shard: int
    shards: int
    root: str  # the folder of the images; "" if they are no files

    @property
    def digest(self) -> str:
        """What a shard must share with its plan; the images may be moved."""
        compared = dataclasses.asdict(self)
        del compared["root"]
        return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()

    def rows(self, number: int) -> range:
        """The images of a shard."""
        first = number * self.images_per_shard
        return range(first, min(first + self.images_per_shard, self.images))

    def files(self, folder: Path) -> list[Path]:
        """The files of all shards."""
        return [folder / f"vectors-{i:05d}.safetensors" for i in range(self.shards)]


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Embeddings of N images by one model, and the names of the images."""

    fingerprint: str  # of the model
    root: str  # the folder that names are paths below; "" if they are no paths
    names: Sequence[str]  # N
    parts: tuple[np.ndarray, ...]  # float32 or float16 [N_i, E]; memory-mapped

    def __len__(self) -> int:
        return len(self.names)

    def path(self, row: int) -> Path:
        """The file of image `row`, or its name."""
        return Path(self.root) / self.names[row]

    def check_model(self, fingerprint: str) -> None:
        """Raises UserError if another model computed them."""
        if fingerprint != self.fingerprint:
            raise UserError(
                "the index was made with another model (or its other weights, online "
                "or momentum): rebuild it, or give its own model"
            )


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of embeddings."""

    embedding: np.ndarray  # float32 or float16 [N, E]
    names: PackedTexts  # N
    corrupt: list[tuple[str, str]]  # names of images left out, and why


def open_vectors(path: str | Path) -> Vectors:
    """The embeddings that `vilem embed` or `vilem index` wrote to `path`.

    Every shard is read once, to compare its checksum.

    Raises:
      UserError: there are none, shards are missing, corrupt or of another plan, or
        another format version.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        index = load_index(path)
        names = [entry.path for entry in index.entries]
        return Vectors(index.fingerprint, index.folder, names, (index.embedding,))
    plan = read_plan(folder)
    files = plan.files(folder)
    missing = [file for file in files if not file.exists()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(files)} shards of {folder} are missing, the first "
            f"is {missing[0].name}: rerun the same `vilem embed` to write them"
        )
    shards = [read_shard(file, plan) for file in files]
    full = tuple(shard.embedding for shard in shards if len(shard.embedding))
    if not full:
        raise UserError(f"{folder} has no embedding: none of the images can be read")
    names = PackedTexts.joined([shard.names for shard in shards])
    return Vectors(plan.fingerprint, plan.root, names, full)


def read_plan(folder: Path) -> Plan:
    """FOLDER/plan.json; raises UserError if it is missing or not a plan."""
    path = folder / PLAN
    missing = f"there are no embeddings in {folder}, no {PLAN}: `vilem embed` writes it"
    corrupt = f"{path} is not a plan of `vilem embed`, or is cut: name another folder"
    with read_errors(path, missing=missing, corrupt=corrupt):
        stored = json.loads(path.read_text(encoding="utf-8"))
        version = stored.get("format_version")
        rebuild = "rebuild it with `vilem embed` in a new folder"
        check_format_version(version, FORMAT_VERSION, folder, rebuild)
        types = {field.name: field.type for field in dataclasses.fields(Plan)}
        if {name: type(value) for name, value in stored.items()} != types:
            raise ValueError("fields")
        plan = Plan(**stored)
        # A plan of a million million shards would fill the memory with their names.
        if plan.shards != -(-plan.images // plan.images_per_shard):
            raise ValueError("number of shards")
        return plan


def check_manifest(folder: Path, plan: Plan) -> None:
    """Raises UserError if FOLDER/manifest.json does not repeat what the plan says."""
    path = folder / MANIFEST
    corrupt = f"{path} does not agree with {PLAN}: rerun the same `vilem embed`"
    with read_errors(path, corrupt=corrupt):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        for name in ("fingerprint", "images", "dimension", "dtype", "root"):
            if manifest[name] != getattr(plan, name):
                raise ValueError(name)


def write_shard(path: Path, plan: Plan, shard: Shard) -> None:
    """One shard as safetensors, as one change."""
    letters, ends = shard.names.arrays()
    tensors = {"embedding": shard.embedding, "names": letters, "name_ends": ends}
    checksums = {n: checksum(_bytes(t)) for n, t in tensors.items() if t.size}
    checksums["corrupt"] = checksum(json.dumps(shard.corrupt).encode())
    about = {"plan": plan.digest, "checksums": checksums, "corrupt": shard.corrupt}
    write_bytes(path, safetensors.numpy.save(tensors, {"about": json.dumps(about)}))


def is_whole(path: Path, plan: Plan, *, compare: bool) -> bool:
    """Whether a shard exists with all its bytes, which `compare` reads as well."""
    with suppress(UserError), read_errors(path):
        if compare:
            read_shard(path, plan)
        return _header(path)[1]["plan"] == plan.digest
    return False


def read_shard(path: Path, plan: Plan) -> Shard:
    """What `write_shard` wrote, memory-mapped.

    Raises:
      UserError: it is missing, corrupt, or belongs to another plan.
    """
    rerun = "delete it and rerun the same `vilem embed`"
    corrupt_file = f"{path} is corrupt, or not a shard of embeddings: {rerun}"
    with read_errors(path, corrupt=f"{corrupt_file}, which rebuilds it"):
        header, about, start = _header(path)
        tensors = ("embedding", "names", "name_ends")
        arrays = {name: _array(path, header[name], start) for name in tensors}
        contents = {name: _bytes(array) for name, array in arrays.items()}
        contents["corrupt"] = json.dumps(about["corrupt"]).encode()
        found = {name: checksum(each) for name, each in contents.items() if len(each)}
        if about["checksums"] != found:
            raise ValueError("checksums")
        corrupt = [(str(name), str(why)) for name, why in about["corrupt"]]
        names = PackedTexts.from_arrays(arrays["names"], arrays["name_ends"])
        if arrays["embedding"].shape != (len(names), plan.dimension):
            raise ValueError("shapes")
        if about["plan"] != plan.digest:
            raise UserError(
                f"{path} does not belong to {PLAN} beside it: it is of other images, "
                f"or made by another model; {rerun}"
            )
    return Shard(arrays["embedding"], names, corrupt)


def _bytes(array: np.ndarray) -> bytes | memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _header(path: Path) -> tuple[JsonObject, JsonObject, int]:
    """A shard's tensors, its "about", and the byte that tensors are counted from.

    safetensors itself would read the tensors; shards are mapped instead.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if not 2 <= length <= size - 8:
            raise ValueError("length of the header")
        header = json.loads(file.read(length))
    about = json.loads(header.pop("__metadata__")["about"])
    ends = [tensor["data_offsets"][1] for tensor in header.values()]
    if max(ends, default=0) != size - 8 - length:
        raise ValueError("size of the file")
    return header, about, 8 + length


def _array(path: Path, tensor: JsonObject, start: int) -> np.ndarray:
    kind, shape = _KINDS[tensor["dtype"]], tuple(tensor["shape"])
    begin, end = tensor["data_offsets"]
    if end - begin != np.dtype(kind).itemsize * int(np.prod(shape)):
        raise ValueError("shape of a tensor")
    if begin == end:  # nothing to map
        return np.zeros(shape, kind)
    return np.memmap(path, kind, "r", offset=start + begin, shape=shape)

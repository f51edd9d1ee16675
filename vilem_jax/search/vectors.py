"""Embeddings of images on disk, with their names: what is searched and handed over.

    FOLDER/plan.json                         what is embedded, by which model, how cut
    FOLDER/vectors-00000.safetensors, ...    one shard each: whole, or not there
    FOLDER/manifest.json                     counts, written when all shards are there
    FOLDER/corrupt.jsonl                      images left out, and why

`vilem embed` makes such a folder; the one file of `vilem index` is read as well.
"""

import dataclasses
import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy

from vilem_jax.data.sources.packed_text import PackedTexts
from vilem_jax.errors import UserError
from vilem_jax.files import check_format_version, reason, write_bytes
from vilem_jax.search.index import Index, load_index
from vilem_jax.typing import JsonObject

FORMAT_VERSION = 1
PLAN, MANIFEST, CORRUPT = "plan.json", "manifest.json", "corrupt.jsonl"
_KINDS = {"F32": np.float32, "F16": np.float16, "U8": np.uint8, "I64": np.int64}


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Embeddings of N images by one model, and what they are called."""

    fingerprint: str  # of the model
    root: str  # the folder that names are paths below; "" where they are no paths
    names: Sequence[str]  # N
    parts: tuple[np.ndarray, ...]  # float32 or float16 [N_i, E]; memory-mapped

    @classmethod
    def of_index(cls, made: Index) -> "Vectors":
        names = [entry.path for entry in made.entries]
        return cls(made.fingerprint, made.folder, names, (made.embedding,))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def width(self) -> int:
        return self.parts[0].shape[1]

    def path(self, row: int) -> Path:
        """Where image `row` lies, or what it is called."""
        return Path(self.root) / self.names[row]

    def check_model(self, fingerprint: str) -> None:
        """Raises UserError if another model computed them."""
        if fingerprint != self.fingerprint:
            raise UserError(
                "the index was made with another model (or its other weights, online "
                "or momentum): make it again, or give its own model"
            )


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of embeddings."""

    embedding: np.ndarray  # float32 or float16 [N, E]
    names: PackedTexts  # N
    corrupt: list[tuple[str, str]]  # names of images left out, and why


def open_vectors(path: str | Path) -> Vectors:
    """The embeddings that `vilem embed` or `vilem index` left at `path`.

    Every shard is read through once, to compare its checksum.

    Raises:
      UserError: nothing of the kind there, shards missing, corrupt or of another plan.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return Vectors.of_index(load_index(path))
    plan = read_plan(folder)
    there = [shard_file(folder, n) for n in range(plan["shards"])]
    missing = [file for file in there if not file.exists()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(there)} shards of {folder} are not there, the "
            f"first is {missing[0].name}: run the same `vilem embed` again, which "
            "makes what is missing"
        )
    shards = [read_shard(file, plan) for file in there]
    full = tuple(shard.embedding for shard in shards if len(shard.embedding))
    if not full:
        raise UserError(f"{folder} has no embedding: none of the images can be read")
    names = PackedTexts.joined([shard.names for shard in shards])
    return Vectors(plan["fingerprint"], plan["root"], names, full)


def read_plan(folder: Path) -> JsonObject:
    """FOLDER/plan.json; raises UserError if it is none."""
    try:
        plan = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        version = plan.get("format_version")
        rebuild = "rebuild it with `vilem embed` in a new folder"
        check_format_version(version, FORMAT_VERSION, folder, rebuild)
        for key, kind in (("shards", int), ("fingerprint", str), ("root", str)):
            if not isinstance(plan[key], kind):
                raise ValueError(key)
        return plan
    except UserError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"there are no embeddings in {folder}, for it has no {PLAN}; `vilem embed` "
            "makes them"
        ) from None
    except OSError as error:
        raise UserError(f"{folder / PLAN} cannot be read: {reason(error)}") from error
    except (ValueError, KeyError, AttributeError) as error:
        raise UserError(
            f"{folder / PLAN} is not a plan that `vilem embed` wrote, or not a whole "
            "one: name another folder"
        ) from error


def shard_file(folder: Path, number: int) -> Path:
    return folder / f"vectors-{number:05d}.safetensors"


def digest_of(plan: JsonObject) -> str:
    """What a shard must share with its plan; where the images lie is no part."""
    compared = {key: value for key, value in plan.items() if key != "root"}
    return hashlib.sha256(json.dumps(compared, sort_keys=True).encode()).hexdigest()


def write_shard(path: Path, plan: JsonObject, shard: Shard) -> None:
    """One shard as safetensors, whole or not at all."""
    letters, ends = shard.names.arrays()
    tensors = {"embedding": shard.embedding, "names": letters, "name_ends": ends}
    about = {
        "plan": digest_of(plan),
        "checksums": {
            name: zlib.crc32(np.ascontiguousarray(tensor).data.cast("B"))
            for name, tensor in tensors.items()
            if tensor.size
        },
        "corrupt": shard.corrupt,
    }
    write_bytes(path, safetensors.numpy.save(tensors, {"about": json.dumps(about)}))


def is_whole(path: Path, plan: JsonObject) -> bool:
    """Whether a shard is there with all its bytes; they are not read."""
    try:
        header, _ = _header(path)
        return _about(header)["plan"] == digest_of(plan)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_shard(path: Path, plan: JsonObject) -> Shard:
    """What `write_shard` wrote, memory-mapped.

    Raises:
      UserError: it is missing, corrupt, or of another plan.
    """
    try:
        header, start = _header(path)
        about = _about(header)
        arrays = {
            name: _array(path, header[name], start)
            for name in ("embedding", "names", "name_ends")
        }
        for name, checksum in about["checksums"].items():
            if (
                zlib.crc32(np.ascontiguousarray(arrays[name]).data.cast("B"))
                != checksum
            ):
                raise ValueError(f"checksum of {name}")
        corrupt = [(str(name), str(why)) for name, why in about["corrupt"]]
        names = PackedTexts.from_arrays(arrays["names"], arrays["name_ends"])
        if arrays["embedding"].shape != (len(names), plan["dimension"]):
            raise ValueError("shapes")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {reason(error)}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is corrupt, or not a shard of embeddings: delete it and rerun "
            "the same `vilem embed`, which rebuilds it"
        ) from error
    if about["plan"] != digest_of(plan):
        raise UserError(
            f"{path} does not belong to {PLAN} beside it: it is of other images, or "
            "made by another model; delete it and run the same `vilem embed` again"
        )
    return Shard(arrays["embedding"], names, corrupt)


def _header(path: Path) -> tuple[JsonObject, int]:
    """A safetensors file's header, and the byte that tensors are counted from."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if not 2 <= length <= size - 8:
            raise ValueError("length of the header")
        header = json.loads(file.read(length))
    ends = [t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"]
    if max(ends, default=0) != size - 8 - length:
        raise ValueError("size of the file")
    return header, 8 + length


def _about(header: JsonObject) -> JsonObject:
    return json.loads(header["__metadata__"]["about"])


def _array(path: Path, tensor: JsonObject, start: int) -> np.ndarray:
    kind, shape = _KINDS[tensor["dtype"]], tuple(tensor["shape"])
    begin, end = tensor["data_offsets"]
    if end - begin != np.dtype(kind).itemsize * int(np.prod(shape)):
        raise ValueError("shape of a tensor")
    if begin == end:  # nothing to map
        return np.zeros(shape, kind)
    return np.memmap(path, kind, "r", offset=start + begin, shape=shape)

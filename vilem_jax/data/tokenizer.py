"""Captions: cleaning, WordPiece tokens, and which tokens may be edited.

Only this file imports `transformers`; worker processes unpickle the tokenizer without
it.
"""

import contextlib
import hashlib
import json
import os
import re
import socket
import string
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np

from vilem_jax.errors import UserError
from vilem_jax.files import read_errors, read_input, reason, replace_file
from vilem_jax.parsing import decode, encoding_by_mark

if TYPE_CHECKING:
    from tokenizers import Tokenizer as WordPiece

# transformers, used for its tokenizer alone, would advise to install PyTorch when it is
# imported below.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

MAX_VOCABULARY_BYTES = 1 << 30
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

Folder = str | os.PathLike
Cleaning = Literal["albef", "blip"]
# ALBEF drops marks and splits at hyphens; BLIP replaces fewer marks by spaces.
_RULES = {
    "albef": (re.compile(r"[,.'!?\"()*#:;~]"), "", re.compile(r"[-/]")),
    "blip": (re.compile(r"[.!\"()*#:;~]"), " ", None),
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffd]")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The vocabulary as models and losses need it.

    `is_editable` [V] is False for special tokens, [UNK], [unusedN], BLIP's [DEC] and
    [ENC], and tokens without a letter or digit. `is_piece` [V] is True for ## tokens,
    which continue a word.
    """

    size: int
    pad_id: int
    unk_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    is_editable: np.ndarray
    is_piece: np.ndarray


class Tokenizer:
    """BERT's WordPiece over a folder's vocab.txt.

    Args:
      folder: a folder with vocab.txt, or a hub name.
      cleaning: the rule of `clean_caption`.
      keeps_sep: whether [SEP] ends a caption.

    Raises:
      UserError: no such folder or hub repository, no vocab.txt, or one that is not
        BERT's.
    """

    def __init__(
        self, folder: Folder, *, cleaning: Cleaning = "albef", keeps_sep: bool = True
    ):
        file = _find_vocabulary(str(folder))
        self.cleaning: Cleaning = cleaning
        self.keeps_sep = keeps_sep
        self.pieces = _read_vocabulary(file)
        self.vocabulary = make_vocabulary(self.pieces)
        self._wordpiece = _load_wordpiece(file, self.pieces)

    def clean(self, caption: str) -> str:
        return clean_caption(caption, self.cleaning)

    def encode(self, captions: Sequence[str], length: int) -> np.ndarray:
        """Cleaned captions as rows of [CLS], tokens, [SEP], padding.

        Args:
          captions: N raw texts; N may be 0, and texts may be empty.
          length: L, with [CLS] and [SEP]; longer captions are cut before [SEP]. Without
            `keeps_sep` one more token fits.

        Returns:
          int32 [N, L].
        """
        ids = self._token_ids(captions)
        vocabulary = self.vocabulary
        tokens = np.full((len(ids), length), vocabulary.pad_id, np.int32)
        for row, content in zip(tokens, ids, strict=True):
            content = content[: length - 1 - self.keeps_sep]
            row[0] = vocabulary.cls_id
            row[1 : 1 + len(content)] = content
            if self.keeps_sep:
                row[1 + len(content)] = vocabulary.sep_id
        return tokens

    def lengths(self, captions: Sequence[str]) -> np.ndarray:
        """Tokens of each caption before cutting, special tokens included, int64 [N]."""
        counts = [len(content) for content in self._token_ids(captions)]
        return np.array(counts, np.int64) + 1 + self.keeps_sep

    def words(self, tokens_row: Sequence[int]) -> list[tuple[str, int, int]]:
        """Words of one row of tokens [L], ## pieces joined: (word, start, stop).

        A word is tokens_row[start:stop]. [CLS], [SEP] and padding are left out;
        punctuation and [UNK] count as words.
        """
        vocabulary = self.vocabulary
        left_out = (vocabulary.cls_id, vocabulary.sep_id, vocabulary.pad_id)
        words: list[tuple[str, int, int]] = []
        for i, token in enumerate(int(t) for t in tokens_row):
            if token in left_out:
                continue
            piece = self.pieces[token]
            if vocabulary.is_piece[token]:
                piece = piece[2:]
                if words and words[-1][2] == i:
                    word, start, _ = words[-1]
                    words[-1] = (word + piece, start, i + 1)
                    continue
            words.append((piece, i, i + 1))
        return words

    def save(self, folder: Folder) -> None:
        """Writes vocab.txt and the tokenizer's settings in Hugging Face's format."""
        lower_case = getattr(self._wordpiece.normalizer, "lowercase", True)
        write_vocabulary(self.pieces, Path(folder), lower_case=lower_case)

    def _token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        cleaned = [self.clean(caption) for caption in captions]
        encoded = self._wordpiece.encode_batch(cleaned, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]


def read_vocabulary(folder: Folder) -> tuple[str, ...]:
    """The tokens that a folder's vocab.txt lists; errors as of `Tokenizer`."""
    return _read_vocabulary(_find_vocabulary(str(folder)))


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """The digest of the vocabulary: the same ids then mean the same tokens."""
    return hashlib.sha256("\n".join(tokenizer.pieces).encode()).hexdigest()


def clean_caption(text: str, rule: Cleaning = "albef") -> str:
    """Lower case, fewer marks, single spaces.

    "albef" drops ,.'!?"()*#:;~ and turns - and / into spaces; "blip" turns .!"()*#:;~
    into spaces and keeps commas, hyphens, quotes and slashes. Control characters and
    U+FFFD (bytes that were not UTF-8) become spaces; half surrogate pairs are removed.
    """
    text = text.encode("utf-8", "ignore").decode("utf-8")
    text = _CONTROL.sub(" ", text).lower()
    marks, replacement, spaces = _RULES[rule]
    text = marks.sub(replacement, text)
    if spaces:
        text = spaces.sub(" ", text)
    # Conceptual Captions replaces the names of people by <person>.
    return " ".join(text.replace("<person>", "person").split())


def make_vocabulary(pieces: Sequence[str]) -> Vocabulary:
    """The ids of the special tokens, and the properties of each of `pieces`."""
    pad, unk, cls, sep, mask = map(pieces.index, SPECIAL_TOKENS)
    return Vocabulary(
        size=len(pieces),
        pad_id=pad,
        unk_id=unk,
        cls_id=cls,
        sep_id=sep,
        mask_id=mask,
        is_editable=np.array([_is_editable(piece) for piece in pieces]),
        is_piece=np.array([p.startswith("##") and len(p) > 2 for p in pieces]),
    )


def train_vocabulary(captions: Iterable[str], size: int, folder: Folder) -> Path:
    """Learns WordPiece from captions and writes vocab.txt into `folder`.

    Every letter a-z and digit is a token, alone and as ## piece, so no word of them
    becomes [UNK]. The same captions give the same file.

    Args:
      captions: raw texts.
      size: the largest number of tokens; few captions may give fewer.

    Raises:
      UserError: `size` leaves no room for learned tokens.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    letters = string.ascii_lowercase + string.digits
    pieces = [*SPECIAL_TOKENS, *letters, *(f"##{letter}" for letter in letters)]
    if size < len(pieces) + 1:
        raise UserError(f"a vocabulary of {size} is too small; use 100 or more")
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=pieces, show_progress=False, min_frequency=2
    )
    backend.train_from_iterator(map(clean_caption, captions), trainer)
    learned = backend.get_vocab()
    pieces += sorted(set(learned) - set(pieces), key=lambda piece: learned[piece])
    return write_vocabulary(pieces[:size], Path(folder), lower_case=True)


def _is_editable(piece: str) -> bool:
    if piece in SPECIAL_TOKENS or re.fullmatch(r"\[(unused\d+|DEC|ENC)\]", piece):
        return False
    text = piece.removeprefix("##") or piece
    # Letters, numbers, and the marks (M) that are parts of words in Indic scripts.
    return any(unicodedata.category(char)[0] in "LNM" for char in text)


def _find_vocabulary(name: str) -> Path:
    if not name:
        raise UserError(
            "no tokenizer is named: set config.data.tokenizer to a folder or hub name "
            "with vocab.txt"
        )
    folder = Path(name).expanduser()
    if (folder / "vocab.txt").is_file():
        return folder / "vocab.txt"
    if folder.is_file():
        raise UserError(
            f"{name} is a file, not a tokenizer: give a folder or hub name with "
            "vocab.txt (config.data.tokenizer, or --tokenizer)"
        )
    if folder.exists():
        raise UserError(
            f"tokenizer folder {name} has no vocab.txt; give the folder of a BERT, or "
            "the `editor` folder in the run of a `vilem train --config=editor`"
        )
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UserError(f"tokenizer folder {name} does not exist")
    return _fetch_vocabulary(name)


def _fetch_vocabulary(name: str) -> Path:
    """vocab.txt of the hub repository `name`, from the cache or the network."""
    from transformers.utils.hub import cached_file

    # Without network the hub's client retries for half a minute: try the cache first.
    # (`or ""` is for the type: without a file it raises.)
    with contextlib.suppress(OSError, ValueError):
        return Path(cached_file(name, "vocab.txt", local_files_only=True) or "")
    if _hub_is_reachable():
        with contextlib.suppress(OSError, ValueError):
            file = Path(cached_file(name, "vocab.txt") or "")
            with contextlib.suppress(OSError):  # says whether the model is cased
                cached_file(name, "tokenizer_config.json")
            return file
    raise UserError(
        f"tokenizer {name!r} is neither a folder nor available from the hub; download "
        "it on a machine with network and give its folder"
    )


def _hub_is_reachable() -> bool:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    if getproxies().get("https"):  # the proxy resolves the name
        return True
    try:
        socket.getaddrinfo(urlsplit(endpoint).hostname, 443)
    except OSError:
        return False
    return True


def _load_wordpiece(file: Path, pieces: Sequence[str]) -> "WordPiece":
    """The `tokenizers.Tokenizer` for vocab.txt, checked to have the same ids."""
    import transformers

    # Exported lazily; its module has another name in each major version.
    bert = transformers.BertTokenizerFast  # pyright: ignore[reportAttributeAccessIssue]
    try:
        with _without_marks(file) as folder:
            tokenizer = bert.from_pretrained(folder)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # its parser raises plain Exception
        raise UserError(
            f"the tokenizer beside {file} cannot be read ({type(error).__name__}: "
            f"{reason(error)}): is tokenizer.json, tokenizer_config.json or another "
            ".json file there corrupt? Download it again"
        ) from error
    if tokenizer.get_vocab() != {piece: i for i, piece in enumerate(pieces)}:
        raise UserError(f"tokenizer.json beside {file} holds another vocabulary")
    wordpiece = tokenizer.backend_tokenizer
    wordpiece.no_truncation()
    wordpiece.no_padding()
    return wordpiece


@contextlib.contextmanager
def _without_marks(vocabulary: Path) -> Iterator[Path]:
    """The folder of the tokenizer; a copy if a file has a byte-order mark.

    `transformers` would take the mark for a part of the first token, or refuse it.
    """
    files = [vocabulary, *vocabulary.parent.glob("*.json")]
    contents = {file.name: file.read_bytes() for file in files if file.is_file()}
    if not any(map(encoding_by_mark, contents.values())):
        yield vocabulary.parent
        return
    with tempfile.TemporaryDirectory() as copy:
        for name, content in contents.items():
            Path(copy, name).write_bytes(decode(content).encode())
        yield Path(copy)


def _read_vocabulary(file: Path) -> tuple[str, ...]:
    with read_errors(file):
        content = read_input(file, MAX_VOCABULARY_BYTES)
    try:
        lines = content.decode(encoding_by_mark(content) or "utf-8").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text") from None
    pieces = [line.rstrip("\r") for line in lines]
    while pieces and not pieces[-1]:
        pieces.pop()
    if missing := [token for token in SPECIAL_TOKENS if token not in pieces]:
        raise UserError(f"{file} has no {missing[0]}: it is not a BERT's vocabulary")
    if len(set(pieces)) < len(pieces):
        double = next(p for i, p in enumerate(pieces) if p in pieces[:i])
        raise UserError(f"{file} holds the token {double!r} twice")
    return tuple(pieces)


def write_vocabulary(pieces: Sequence[str], folder: Path, *, lower_case: bool) -> Path:
    """Writes vocab.txt and the tokenizer's settings in Hugging Face's format."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower_case}
    text = json.dumps(settings, indent=2) + "\n"
    replace_file(folder / "tokenizer_config.json", text)
    # vocab.txt last: if it exists, the folder is complete.
    file = folder / "vocab.txt"
    replace_file(file, "".join(f"{piece}\n" for piece in pieces))
    return file

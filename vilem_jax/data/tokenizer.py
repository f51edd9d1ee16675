"""Captions: cleaning, WordPiece tokens, and which tokens are words.

The only file that imports `transformers`; worker processes get the tokenizer by pickle
and do without it.
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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np

from vilem_jax.errors import UserError
from vilem_jax.files import replace_file

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# ALBEF drops marks and splits at hyphens; BLIP puts a space for fewer marks.
_RULES = {
    "albef": (re.compile(r"[,.'!?\"()*#:;~]"), "", re.compile(r"[-/]")),
    "blip": (re.compile(r"[.!\"()*#:;~]"), " ", None),
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffd]")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What models and losses know of a vocabulary.

    `is_editable` [V] is False for special tokens, [UNK], [unusedN] and tokens without a
    letter or digit, and BLIP's [DEC] and [ENC]; `is_piece` [V] is True for ## tokens,
    which go on with a word.
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
      folder: a folder that holds vocab.txt, or a hub name.
      cleaning: which captions' marks are dropped, see `clean_caption`.
      keeps_sep: whether [SEP] ends a caption.

    Raises:
      UserError: no such folder or hub repository, no vocab.txt, or one that is not
        BERT's.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        cleaning: Literal["albef", "blip"] = "albef",
        keeps_sep: bool = True,
    ):
        file = _find_vocabulary(str(folder))
        self.cleaning = cleaning
        self.keeps_sep = keeps_sep
        self.pieces = _read_vocabulary(file)
        self.vocabulary = make_vocabulary(self.pieces)
        self._wordpiece = _load_wordpiece(file, self.pieces)

    def clean(self, caption: str) -> str:
        return clean_caption(caption, self.cleaning)

    def encode(self, captions: Sequence[str], length: int) -> np.ndarray:
        """Tokens of cleaned captions: [CLS] words [SEP] padding.

        Args:
          captions: N raw texts; may be empty, or hold nothing that is a word.
          length: L, with [CLS] and [SEP]; longer captions are cut, [SEP] stays. Without
            `keeps_sep` the words have its place.

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
        ids = self._token_ids(captions)
        counts = np.fromiter((len(content) for content in ids), np.int64, len(ids))
        return counts + 1 + self.keeps_sep

    def words(self, tokens_row: Sequence[int]) -> list[tuple[str, int, int]]:
        """Words of one row of tokens [L], ## pieces joined: (word, start, stop).

        A word is tokens_row[start:stop]. [CLS], [SEP] and padding are left out;
        punctuation and [UNK] are words here.
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

    def save(self, folder: str | os.PathLike) -> None:
        """Writes vocab.txt and the tokenizer's settings, as Hugging Face reads them."""
        lower_case = getattr(self._wordpiece.normalizer, "lowercase", True)
        _write_vocabulary(self.pieces, Path(folder), lower_case=lower_case)

    def _token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        cleaned = [self.clean(caption) for caption in captions]
        encoded = self._wordpiece.encode_batch(cleaned, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]


def extended_tokenizer(
    folder: str | os.PathLike,
    extra: Sequence[str],
    *,
    cleaning: Literal["albef", "blip"] = "albef",
    keeps_sep: bool = True,
) -> Tokenizer:
    """The lower-case tokenizer over a folder's vocab.txt with `extra` tokens after it.

    Other files of the folder, which may hold other additions, are not read.

    Raises:
      UserError: as of `Tokenizer`.
    """
    pieces = _read_vocabulary(_find_vocabulary(str(folder)))
    with tempfile.TemporaryDirectory() as longer:
        _write_vocabulary([*pieces, *extra], Path(longer), lower_case=True)
        return Tokenizer(longer, cleaning=cleaning, keeps_sep=keeps_sep)


def vocabulary_size(folder: str | os.PathLike) -> int:
    """How many tokens a folder's vocab.txt lists; errors as of `Tokenizer`."""
    return len(_read_vocabulary(_find_vocabulary(str(folder))))


def vocabulary_digest(tokenizer: Tokenizer) -> str:
    """Tells vocabularies apart, so that no token is taken for another word."""
    return hashlib.sha256("\n".join(tokenizer.pieces).encode()).hexdigest()


def clean_caption(text: str, rule: Literal["albef", "blip"] = "albef") -> str:
    """Lower case, fewer marks, single spaces.

    "albef" drops ,.'!?"()*#:;~ and turns - and / into spaces; "blip" turns .!"()*#:;~
    into spaces and keeps commas, hyphens, quotes and slashes. Control characters and
    U+FFFD (bytes that were not UTF-8) become spaces, half surrogate pairs go.
    """
    text = text.encode("utf-8", "ignore").decode("utf-8")
    text = _CONTROL.sub(" ", text).lower()
    marks, replacement, spaces = _RULES[rule]
    text = marks.sub(replacement, text)
    if spaces:
        text = spaces.sub(" ", text)
    # Conceptual Captions writes people's names so.
    return " ".join(text.replace("<person>", "person").split())


def make_vocabulary(pieces: Sequence[str]) -> Vocabulary:
    """Finds the special tokens and says which of `pieces` are words."""
    ids = [pieces.index(token) for token in SPECIAL_TOKENS]
    is_piece = np.array([p.startswith("##") and len(p) > 2 for p in pieces])
    is_editable = np.array([_is_editable(piece) for piece in pieces])
    return Vocabulary(len(pieces), *ids, is_editable, is_piece)


def train_vocabulary(
    captions: Iterable[str],
    size: int,
    folder: str | os.PathLike,
    *,
    cleaning: Literal["albef", "blip"] = "albef",
) -> Path:
    """Learns WordPiece from captions and writes vocab.txt into `folder`.

    Every letter a-z and digit is a token, alone and as ## piece, so no plain word
    becomes [UNK]. The same captions give the same file.

    Args:
      captions: raw texts.
      size: tokens at most; few captions may give fewer.

    Raises:
      UserError: `size` leaves no room for words.
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
    backend.train_from_iterator((clean_caption(c, cleaning) for c in captions), trainer)
    learned = backend.get_vocab()
    pieces += sorted(set(learned) - set(pieces), key=learned.get)
    return _write_vocabulary(pieces[:size], Path(folder), lower_case=True)


def _is_editable(piece: str) -> bool:
    if piece in SPECIAL_TOKENS or re.fullmatch(r"\[(unused\d+|DEC|ENC)\]", piece):
        return False
    text = piece.removeprefix("##") or piece
    # M: marks of Indian and other scripts are parts of words; So, Sc, P, ... are not.
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
            f"{name} is a file and brings no tokenizer: name a folder or hub name with "
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
    from transformers.utils import cached_file

    # Off line the hub's client tries again for half a minute; ask the cache first.
    for options in ({"local_files_only": True}, {}):
        if not options and not _hub_is_reachable():
            break
        try:
            file = cached_file(name, "vocab.txt", **options)
        except (OSError, ValueError):
            continue
        if not options:
            with contextlib.suppress(OSError):  # says whether the model is cased
                cached_file(name, "tokenizer_config.json")
        return Path(file)
    raise UserError(
        f"tokenizer {name!r} is neither a folder nor to be had from the hub; download "
        "it on a machine with network and give its folder"
    )


def _hub_is_reachable() -> bool:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "TRUE", "YES", "ON"):
        return False
    if getproxies().get("https"):  # a proxy resolves the name for us
        return True
    try:
        socket.getaddrinfo(urlsplit(endpoint).hostname, 443)
    except OSError:
        return False
    return True


def _load_wordpiece(file: Path, pieces: Sequence[str]):
    """The `tokenizers.Tokenizer` for vocab.txt, checked to hold the same ids."""
    from transformers import BertTokenizerFast

    try:
        tokenizer = BertTokenizerFast.from_pretrained(file.parent)
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # whatever it trips over: its parser names no kind
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(
            f"the tokenizer beside {file} cannot be read ({type(error).__name__}: "
            f"{reason}): is a tokenizer.json, tokenizer_config.json or other .json "
            "there corrupt? Take it from its source again"
        ) from error
    if tokenizer.get_vocab() != {piece: i for i, piece in enumerate(pieces)}:
        raise UserError(f"tokenizer.json beside {file} holds another vocabulary")
    wordpiece = tokenizer.backend_tokenizer
    wordpiece.no_truncation()
    wordpiece.no_padding()
    return wordpiece


def _read_vocabulary(file: Path) -> tuple[str, ...]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{file} is not UTF-8 text") from None
    pieces = [line.rstrip("\r") for line in lines]
    while pieces and not pieces[-1]:
        pieces.pop()
    missing = [token for token in SPECIAL_TOKENS if token not in pieces]
    if missing:
        raise UserError(f"{file} has no {missing[0]}: it is not a BERT's vocabulary")
    if len(set(pieces)) < len(pieces):
        double = next(p for i, p in enumerate(pieces) if p in pieces[:i])
        raise UserError(f"{file} holds the token {double!r} twice")
    return tuple(pieces)


def _write_vocabulary(pieces: Sequence[str], folder: Path, *, lower_case: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": lower_case}
    text = json.dumps(settings, indent=2) + "\n"
    replace_file(folder / "tokenizer_config.json", text)
    # vocab.txt last: where it is, the folder is complete.
    file = folder / "vocab.txt"
    replace_file(file, "".join(f"{piece}\n" for piece in pieces))
    return file

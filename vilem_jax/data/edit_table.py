"""Edits made before a run: `vilem data edit` writes them, batches contain them.

One safetensors file: "positions" and "tokens" [pairs, variants, K], and a description.
It is memory-mapped: opening it in a worker process is free, and its gigabytes are not
copied; a compressed archive would be unpacked in each worker. A position is one byte
and a token two: 5 million pairs in 4 variants of 8 positions take 480 MB.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from vilem_jax.config.schema import EditorConfig
from vilem_jax.data.corpus import Corpus
from vilem_jax.data.tokenizer import Tokenizer, vocabulary_digest
from vilem_jax.errors import UserError
from vilem_jax.files import check_format_version, open_input, read_errors, write_bytes
from vilem_jax.typing import JsonObject

FORMAT_VERSION = 1  # raised when a file means something else than before
_ABOUT = "vilem_edits"  # key of the description in the file's metadata


def describe(
    corpus: Corpus, tokenizer: Tokenizer, text_length: int, editor: EditorConfig
) -> JsonObject:
    """What edits depend on: the run that reads them must have the same.

    It reads every caption of the corpus, which takes seconds for millions.
    """
    return {
        "pairs": corpus.num_pairs,
        "captions": _digest(corpus.captions()),
        "vocabulary": vocabulary_digest(tokenizer),
        "data.text_length": text_length,
        "data.cleaning": tokenizer.cleaning,
        "data.keeps_sep": tokenizer.keeps_sep,
    } | {f"editor.{name}": value for name, value in editor.manner.items()}


@dataclasses.dataclass(frozen=True)
class EditTable:
    """Every pair's edits in memory, to be filled and written.

    In the smallest integers that hold them: one byte for positions in texts of up to
    256 tokens, two for vocabularies of up to 65,536. Unused entries of the K have the
    token `no_token`, [PAD].
    """

    positions: np.ndarray  # [pairs, variants, K], all different
    tokens: np.ndarray  # [pairs, variants, K], the editor's choice
    no_token: int

    @classmethod
    def empty(cls, *shape: int, text_length: int, tokenizer: Tokenizer) -> "EditTable":
        vocabulary = tokenizer.vocabulary
        return cls(
            np.zeros(shape, np.min_scalar_type(text_length - 1)),
            np.zeros(shape, np.min_scalar_type(vocabulary.size - 1)),
            vocabulary.pad_id,
        )

    def write(self, path: str, about: JsonObject) -> None:
        """Writes the file at once, with the description `about`.

        Raises:
          UserError: `path` cannot be written.
        """
        about = about | {"no_token": self.no_token, "format_version": FORMAT_VERSION}
        arrays = {"positions": self.positions, "tokens": self.tokens}
        write_bytes(path, save(arrays, metadata={_ABOUT: json.dumps(about)}))


class StoredEditTable:
    """The edits in a file, read row by row; pickled as its path.

    Raises:
      UserError: the file does not exist, is corrupt, or has another format version.
    """

    def __init__(self, path: str):
        self.path, named = path, f"{path} (config.editor.edit_table)"
        missing = f"there is no file {named}: make it with `vilem data edit`"
        corrupt = f"{named} is not a complete file of `vilem data edit`: run it again"
        with read_errors(named, missing=missing, corrupt=corrupt):
            with open_input(Path(path).expanduser()):  # safetensors would wait
                file = safe_open(Path(path).expanduser(), "np")
            self.about = json.loads((file.metadata() or {})[_ABOUT])
            self._arrays = {key: file.get_slice(key) for key in ("positions", "tokens")}
            shape = self._arrays["tokens"].get_shape()
            num_pairs, self.num_variants, _ = shape
            if self._arrays["positions"].get_shape() != shape:
                raise ValueError("as many tokens as positions")
            if num_pairs != self.about["pairs"]:
                raise ValueError("edits of each pair")
            self._no_token, self.made_by = self.about["no_token"], self.about["editor"]
        version = self.about.get("format_version")
        rebuild = "make this config.editor.edit_table again with `vilem data edit`"
        check_format_version(version, FORMAT_VERSION, Path(path), rebuild)

    def __reduce__(self) -> tuple[type["StoredEditTable"], tuple[str]]:
        return StoredEditTable, (self.path,)

    def sha256(self) -> str:
        """The digest of the whole file, which it reads."""
        with Path(self.path).expanduser().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def check(self, expected: JsonObject) -> None:
        """Compares with what `describe` returns for this run.

        Raises:
          UserError: the edits do not fit; it lists every difference.
        """
        different = [
            _difference(key, self.about.get(key), value)
            for key, value in expected.items()
            if self.about.get(key) != value
        ]
        if different:
            raise UserError(
                f"the edits in {self.path} (config.editor.edit_table) do not fit this "
                f"run: {'; '.join(different)}; make others with `vilem data edit` and "
                "this run's --config, or restore the settings they were made with"
            )

    def rows(
        self, sample_id: Iterable[int], variant: Iterable[int]
    ) -> dict[str, np.ndarray]:
        """One variant of each pair's edits.

        Returns:
          "edit_positions" int32 [B, K], all different; "edit_tokens" int32 [B, K], the
          tokens put there; "is_edit" bool [B, K], False for unused entries.
        """
        which = [(int(i), int(v)) for i, v in zip(sample_id, variant, strict=True)]
        positions, tokens = (
            np.stack([self._arrays[name][i, v] for i, v in which]).astype(np.int32)
            for name in ("positions", "tokens")
        )
        is_edit = tokens != self._no_token
        return {"edit_positions": positions, "edit_tokens": tokens, "is_edit": is_edit}


def _difference(key: str, was: object, now: object) -> str:
    if key == "pairs":
        return f"they are of {was} pairs, config.data.train has {now}"
    if key == "captions":
        return "config.data.train has other captions, or in another order"
    if key == "vocabulary":
        return "config.data.tokenizer is another vocabulary"
    return f"config.{key} was {was!r} and is now {now!r}"


def _digest(captions: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for caption in captions:
        # JSON keeps a caption on one line and can encode half a surrogate pair.
        digest.update(f"{json.dumps(caption)}\n".encode())
    return digest.hexdigest()

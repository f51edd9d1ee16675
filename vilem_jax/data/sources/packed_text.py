"""Names and captions of millions of images in a few arrays."""

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np

from vilem_jax.errors import UserError
from vilem_jax.parsing import is_blank

# What `pack_records` counts.
_FAULTS = {
    "num_without_caption": "images without a caption left out",
    "num_blank": "blank captions left out",
}
Arrays = dict[str, np.ndarray]


class PackedTexts(Sequence[str]):
    """Texts concatenated in one byte string.

    14 million captions as Python strings take 1.5 GB, and seconds of pickling for each
    worker process; packed they take the size of their letters.
    """

    def __init__(self, texts: Iterable[str] = ()):
        # JSON may contain half a surrogate pair, which plain UTF-8 refuses.
        encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        self._ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self._letters = b"".join(encoded)

    @classmethod
    def from_arrays(cls, letters: np.ndarray, ends: np.ndarray) -> "PackedTexts":
        texts = cls()
        texts._letters, texts._ends = letters.tobytes(), ends.astype(np.int64)
        return texts

    @classmethod
    def joined(cls, parts: Sequence["PackedTexts"]) -> "PackedTexts":
        """All texts of `parts`, in their order."""
        texts = cls()
        texts._letters = b"".join(part._letters for part in parts)
        starts = np.cumsum([0, *(len(part._letters) for part in parts)])
        ends = [p._ends + start for p, start in zip(parts, starts[:-1], strict=True)]
        texts._ends = np.concatenate([texts._ends, *ends])
        return texts

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Letters, uint8, and where each text ends, int64 [N]."""
        return np.frombuffer(self._letters, np.uint8), self._ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} texts")
        start = self._ends[index - 1] if index else 0
        return self._letters[start : self._ends[index]].decode("utf-8", "surrogatepass")


def pack_records(records: Iterable[tuple[str, Sequence[str]]]) -> Arrays:
    """Names and captions of images as plain arrays, to be stored without pickle.

    Args:
      records: (name, captions) pairs. Blank captions and then images without captions
        are left out and counted in "num_blank" and "num_without_caption"; "kept" has
        the numbers of the others.
    """
    records = list(records)
    filled = [[text for text in texts if not is_blank(text)] for _, texts in records]
    kept = [number for number, captions in enumerate(filled) if captions]
    names, name_ends = PackedTexts(records[number][0] for number in kept).arrays()
    texts = PackedTexts(text for captions in filled for text in captions)
    captions, caption_ends = texts.arrays()
    counts = {
        "num_without_caption": len(records) - len(kept),
        "num_blank": sum(len(texts) for _, texts in records) - len(texts),
    }
    return {
        "names": names,
        "name_ends": name_ends,
        "captions": captions,
        "caption_ends": caption_ends,
        "caption_counts": np.array([len(filled[number]) for number in kept], np.int64),
        "kept": np.array(kept, np.int64),
        **{name: np.array(count, np.int64) for name, count in counts.items()},
    }


class PackedSource:
    """What the sources share that keep their names and captions packed.

    Args:
      name: of the source.
      path: what was read, for messages.
      parts: what `pack_records` returned for its images, joined in this order.
      num_images: how many of the images it has, from the first; 0: all.
      notes: see `Source`.

    Raises:
      UserError: no image has a caption.
    """

    def __init__(
        self,
        name: str,
        path: object,
        parts: Sequence[Arrays],
        num_images: int = 0,
        notes: tuple[str, ...] = (),
    ):

        def joined(text: str, ends: str) -> PackedTexts:
            texts = [PackedTexts.from_arrays(part[text], part[ends]) for part in parts]
            return PackedTexts.joined(texts)

        self.name, self.names = name, joined("names", "name_ends")
        self._captions = joined("captions", "caption_ends")
        counts = np.concatenate([part["caption_counts"] for part in parts])
        self._counts = counts[: num_images or None]
        # Captions of image i are those from _first[i] up to _first[i + 1].
        self._first = np.concatenate([[0], np.cumsum(self._counts, dtype=np.int64)])
        faults = [
            f"{count} {what}"
            for key, what in _FAULTS.items()
            if (count := sum(int(part[key]) for part in parts))
        ]
        if not len(self):
            raise UserError("; ".join([f"{path}: no image has a caption", *faults]))
        self.notes = (*faults, *notes)

    def __len__(self) -> int:
        return len(self._counts)

    def captions(self, index: int) -> tuple[str, ...]:
        first = self._first[self._checked(index)]
        return tuple(self._captions[first : self._first[index + 1]])

    def caption_counts(self) -> np.ndarray:
        return self._counts

    def image_name(self, index: int) -> str:
        return self.names[self._checked(index)]

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has no image {index}, only {len(self)}")
        return index

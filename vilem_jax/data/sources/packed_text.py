"""Many short texts in two arrays: what a source of millions of captions keeps."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np


class PackedTexts(Sequence[str]):
    """Texts end to end in one byte string.

    14 million captions as Python strings take 1.5 GB and seconds of pickling for each
    worker process; packed they take what their letters take.
    """

    def __init__(self, texts: Iterable[str] = ()):
        # JSON may hold half a surrogate pair, which plain UTF-8 refuses.
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
        """All texts of `parts`, one after the other."""
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

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} texts")
        start = self._ends[index - 1] if index else 0
        return self._letters[start : self._ends[index]].decode("utf-8", "surrogatepass")


class PackedRecords:
    """One record an image: its name and its captions, in a fixed order.

    Args:
      records: (name, captions) pairs; an image without captions is left out and
        counted in `num_without_caption`.
    """

    def __init__(self, records: Iterable[tuple[str, Sequence[str]]] = ()):
        kept, self.num_without_caption = [], 0
        for name, captions in records:
            if captions:
                kept.append((name, captions))
            else:
                self.num_without_caption += 1
        self.names = PackedTexts(name for name, _ in kept)
        self._captions = PackedTexts(text for _, texts in kept for text in texts)
        counts = [len(captions) for _, captions in kept]
        self._set_counts(np.array(counts, np.int64))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "PackedRecords":
        """The records that `arrays` came from."""
        records = cls()
        records.names = PackedTexts.from_arrays(arrays["names"], arrays["name_ends"])
        records._captions = PackedTexts.from_arrays(
            arrays["captions"], arrays["caption_ends"]
        )
        records._set_counts(arrays["caption_counts"])
        records.num_without_caption = int(arrays["num_without_caption"])
        return records

    @classmethod
    def joined(cls, parts: Sequence["PackedRecords"]) -> "PackedRecords":
        """All records of `parts`, one after the other."""
        records = cls()
        records.names = PackedTexts.joined([part.names for part in parts])
        records._captions = PackedTexts.joined([part._captions for part in parts])
        counts = [part.caption_counts() for part in parts]
        records._set_counts(np.concatenate([records.caption_counts(), *counts]))
        records.num_without_caption = sum(part.num_without_caption for part in parts)
        return records

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything as plain arrays, to be stored without pickle."""
        names, name_ends = self.names.arrays()
        captions, caption_ends = self._captions.arrays()
        return {
            "names": names,
            "name_ends": name_ends,
            "captions": captions,
            "caption_ends": caption_ends,
            "caption_counts": self.caption_counts(),
            "num_without_caption": np.int64(self.num_without_caption),
        }

    def __len__(self) -> int:
        return len(self.names)

    def captions(self, index: int) -> tuple[str, ...]:
        """All captions of record `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return tuple(
            self._captions[i] for i in range(self._first[index], self._first[index + 1])
        )

    def caption_counts(self) -> np.ndarray:
        """Number of captions of each record, int64 [N]."""
        return np.diff(self._first)

    def _set_counts(self, counts: np.ndarray) -> None:
        # Captions of record i are those from _first[i] up to _first[i + 1].
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

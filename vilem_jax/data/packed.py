"""Many short texts in two arrays: what a source of millions of captions keeps."""

from collections.abc import Iterable, Sequence

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

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} texts")
        start = self._ends[index - 1] if index else 0
        return self._letters[start : self._ends[index]].decode("utf-8", "surrogatepass")


class PackedRecords:
    """One record a picture: its name and its captions, in a fixed order.

    Args:
      records: (name, captions) pairs; a picture without captions is left out and
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
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

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

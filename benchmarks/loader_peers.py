"""The loaders that loader.py compares with: torch's and webdataset's."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import webdataset
from PIL import Image

# CLIP's; any others would take the same time.
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


class Peers:
    """Opens either of them on the data of the benchmark."""

    def __init__(self, data: Path, tokenizer, batch: int, workers: int, crop: Callable):
        self._data, self._tokenizer, self._crop = data, tokenizer, crop
        self._batch, self._workers = batch, workers

    def torch(self, *, to_float: bool) -> "Endless":
        pairs = Pairs(self._data, self._sample(to_float))
        loader = torch.utils.data.DataLoader(
            pairs,
            batch_size=self._batch,
            shuffle=True,
            num_workers=self._workers,
            drop_last=True,
            persistent_workers=True,
            prefetch_factor=2,
        )
        return Endless(loader)

    def webdataset(self, *, to_float: bool) -> "Endless":
        tars = sorted(map(str, self._data.glob("*.tar")))
        pairs = (
            webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
            .shuffle(64)
            .decode("pilrgb")
            .to_tuple("jpg", "txt")
            .map(self._sample(to_float))
            .repeat()
        )
        loader = torch.utils.data.DataLoader(
            pairs,
            batch_size=self._batch,
            num_workers=self._workers,
            prefetch_factor=2,
        )
        return Endless(loader)

    def _sample(self, to_float: bool) -> "Sample":
        return Sample(self._tokenizer, self._crop, to_float)


class Sample:
    """(image, caption) -> (pixels, tokens)."""

    def __init__(self, tokenizer, crop: Callable, to_float: bool):
        self._tokenizer, self._crop, self._to_float = tokenizer, crop, to_float
        self._rng = np.random.default_rng(0)

    def __call__(self, pair: tuple[Image.Image, str]) -> tuple:
        image, caption = pair
        tokens = torch.from_numpy(self._tokenizer.encode([caption], 30)[0])
        pixels = torch.from_numpy(self._crop(image, self._rng).copy())
        if self._to_float:
            pixels = pixels.permute(2, 0, 1).contiguous().float().div_(255)
            pixels = pixels.sub_(MEAN).div_(STD)
        return pixels, tokens


class Pairs(torch.utils.data.Dataset):
    def __init__(self, data: Path, sample: Sample):
        self._records = json.loads((data / "captions.json").read_text())
        self._folder, self._sample = data / "images", sample

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple:
        record = self._records[index]
        with Image.open(self._folder / record["image"]) as image:
            return self._sample((image.convert("RGB"), record["caption"]))


class Endless:
    """Batches of one epoch after another; `close` stops the workers."""

    def __init__(self, loader):
        self._loader = loader
        self._batches: Iterator = iter(loader)

    def __next__(self):
        try:
            return next(self._batches)
        except StopIteration:
            self._batches = iter(self._loader)
            return next(self._batches)

    def close(self) -> None:
        stop = getattr(self._batches, "_shutdown_workers", None)
        if stop:
            stop()
        del self._batches, self._loader

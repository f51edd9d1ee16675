"""Images and captions for the benchmarks that read files: a folder and a tar."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from vilem_jax.data.tokenizer import train_vocabulary

WORDS = ("a", "red", "small", "old", "dog", "cat", "house", "on", "under", "two")
PRE_RESIZED = (384, 288)  # what `vilem data prepare` makes of 500 x 375


def write_pairs(folder: Path, side: tuple[int, int], count: int) -> Path:
    """Writes `folder`: images/, captions.json, 0.tar with both, words/vocab.txt.

    Args:
      side: width and height, pixels.
    """
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    records = []
    with tarfile.open(folder / "0.tar", "w") as tar:
        for i in range(count):
            content = jpeg(photo(rng, *side))
            caption = " ".join(rng.choice(WORDS, 11))
            (folder / "images" / f"{i:05}.jpg").write_bytes(content)
            records.append({"image": f"{i:05}.jpg", "caption": caption})
            for ending, part in (("jpg", content), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{i:05}.{ending}")
                member.size = len(part)
                tar.addfile(member, io.BytesIO(part))
    (folder / "captions.json").write_text(json.dumps(records))
    train_vocabulary([r["caption"] for r in records], 128, folder / "words")
    return folder


def photo(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Noise whose amplitude falls with the frequency, as in photographs."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    channels = []
    for weight in (1.0, 0.4, 0.4):  # brightness varies more than colour
        noise = rng.standard_normal((height, width))
        wave = np.fft.irfft2(np.fft.rfft2(noise) / frequency**1.3, s=(height, width))
        channels.append(128 + 48 * weight * wave / wave.std())
    pixels = np.clip(np.stack(channels, axis=-1), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels, "YCbCr").convert("RGB")


def jpeg(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=90)
    return content.getvalue()

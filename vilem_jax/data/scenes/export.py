"""Writes `scenes` to a folder, for use with other code."""

import json
from pathlib import Path

from PIL import Image

from vilem_jax.data.scenes.hard_pairs import KINDS, hard_pairs
from vilem_jax.data.scenes.layout import CANVAS
from vilem_jax.data.scenes.source import ScenesSource
from vilem_jax.files import new_folder

SPLITS = ("train", "validation", "test")


def export(
    folder: str | Path,
    *,
    seed: int = 0,
    size: int = CANVAS,
    num_train: int = 0,
    num_held_out: int = 0,
) -> Path:
    """Writes images, captions and hard pairs of one seed.

        SPLIT/00000.png ...      the images
        SPLIT.json               [{"image": "SPLIT/00000.png", "caption": [5 strings]}]
        hard_SPLIT/KIND.json     {"0": {"filename", "caption", "negative_caption"}}

    for train, validation and test, with hard pairs for the last two. The annotations
    have ALBEF's format, the hard pairs SugarCrepe's. File names are relative to
    `folder`, which is created only when it is complete.

    Args:
        folder: a new or empty folder.
        size: side of the images in pixels.
        num_train: training images; 0 for 6,000.
        num_held_out: images of validation, and of test; 0 for 500.

    Returns:
        the folder.

    Raises:
        UserError: if the folder is not empty or cannot be written.
    """
    folder = Path(folder)
    num_images = {"train": num_train, "validation": num_held_out, "test": num_held_out}
    sources = [ScenesSource(split, seed, size, num_images[split]) for split in SPLITS]
    with new_folder(folder) as draft:
        for source in sources:
            _write_split(draft, source)
    return folder


def _write_split(folder: Path, source: ScenesSource) -> None:
    (folder / source.split).mkdir()
    annotations = []
    for index in range(len(source)):
        name = source.image_name(index)
        Image.fromarray(source.read_image(index)).save(folder / name)
        annotations.append({"image": name, "caption": list(source.captions(index))})
    _write_json(folder / f"{source.split}.json", annotations)
    if source.split == "train":
        return
    hard_folder = folder / f"hard_{source.split}"
    hard_folder.mkdir()
    pairs = hard_pairs(source)
    for kind in KINDS:
        rows = [
            {
                "filename": source.image_name(pair.image),
                "caption": pair.caption,
                "negative_caption": pair.wrong_caption,
            }
            for pair in pairs
            if pair.kind == kind
        ]
        _write_json(hard_folder / f"{kind}.json", dict(enumerate(rows)))


def _write_json(path: Path, content) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

"""True against wrong caption of one picture: does the model score the true one higher?

Two sources of such pairs: the hard test of scenes, and any JSON in SugarCrepe's layout.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vilem_jax.config import UserError
from vilem_jax.data.captions import Tokenizer
from vilem_jax.data.images import ImageError, decode, resize_square
from vilem_jax.evaluation.encoding import Encoder, progress, read_ahead

LAYOUT = '{"0": {"filename": ..., "caption": ..., "negative_caption": ...}, ...}'


@dataclass(frozen=True)
class CaptionPair:
    """One question: which caption is true of the picture?"""

    image: Any  # what `read_image` understands: a file name, or an index
    caption: str
    wrong_caption: str
    kind: str  # what was changed: "object", "swap", or a file's name


def pairs_metrics(
    score_true: np.ndarray, score_wrong: np.ndarray, kinds: Sequence[str]
) -> dict:
    """How often the true caption scores strictly higher, in per cent.

    Args:
      score_true, score_wrong: [N], similarity of the picture with either caption.
      kinds: [N], the type of each pair.

    Returns:
      {"accuracy", "by_type": {kind: accuracy}, "pairs", "pairs_by_type"}; ties count
      against the model, and the accuracy is over pairs, not the mean over types.
    """
    score_true, score_wrong = np.asarray(score_true), np.asarray(score_wrong)
    if score_true.shape != score_wrong.shape or len(kinds) != len(score_true):
        raise ValueError(
            f"scores {score_true.shape} and {score_wrong.shape}, {len(kinds)} kinds"
        )
    if len(kinds) == 0:
        raise UserError("there is no pair of captions to evaluate")
    if not (np.isfinite(score_true).all() and np.isfinite(score_wrong).all()):
        raise UserError("a score is not finite: has the run diverged?")
    is_right = score_true > score_wrong
    kinds = np.asarray(kinds)
    accuracy = {
        str(kind): 100.0 * float(is_right[kinds == kind].mean())
        for kind in dict.fromkeys(kinds.tolist())
    }
    counts = {kind: int(np.sum(kinds == kind)) for kind in accuracy}
    return {
        "accuracy": 100.0 * float(is_right.mean()),
        "by_type": accuracy,
        "pairs": len(kinds),
        "pairs_by_type": counts,
    }


def pair_scores(
    pairs: Sequence[CaptionPair],
    encode_images: Callable[[list], np.ndarray],
    encode_texts: Callable[[list[str]], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the true and of the wrong captions, float32 [N] each.

    A picture that several pairs ask about is encoded once.

    Args:
      encode_images: the pairs' `image`s, each once -> [M, E], unit rows.
      encode_texts: captions -> [M, E], unit rows.
    """
    images = list(dict.fromkeys(pair.image for pair in pairs))
    row_of = {image: row for row, image in enumerate(images)}
    image_embedding = encode_images(images)
    rows = image_embedding[[row_of[pair.image] for pair in pairs]]
    true = encode_texts([pair.caption for pair in pairs])
    wrong = encode_texts([pair.wrong_caption for pair in pairs])
    return tuple(
        np.einsum("ne,ne->n", rows, text, dtype=np.float64).astype(np.float32)
        for text in (true, wrong)
    )


def evaluate_pairs(
    encoder: Encoder,
    tokenizer: Tokenizer,
    pairs: Sequence[CaptionPair],
    read_image: Callable[[Any], bytes | np.ndarray],
    *,
    text_length: int,
    show_progress: bool = False,
) -> dict:
    """`pairs_metrics` of a model.

    Args:
      pairs: `CaptionPair`s, or others with the same four fields.
      read_image: from a pair's `image` to the bytes of a file or uint8 [H, W, 3].
      text_length: L; longer captions are cut.
      show_progress: a bar on stderr.

    Raises:
      UserError: a picture that is missing or broken, by name.
    """

    def read(image):
        try:
            return resize_square(decode(read_image(image)), encoder.image_size)
        except (OSError, ImageError) as error:
            raise UserError(f"picture {image} cannot be read: {error}") from error

    score_true, score_wrong = pair_scores(
        pairs,
        encode_images=lambda images: encoder.encode_images(
            read_ahead(read, progress(images, "picture", show=show_progress))
        ),
        encode_texts=lambda texts: encoder.encode_texts(
            tokenizer.encode(texts, text_length)
        ),
    )
    return pairs_metrics(score_true, score_wrong, [pair.kind for pair in pairs])


def read_pairs(path: str | Path) -> list[CaptionPair]:
    """Pairs from a JSON file in SugarCrepe's layout, or from a folder of such files.

    The type of a pair is its file's name without `.json`.

    Raises:
      UserError: nothing there, no JSON, or another layout; names file and entry.
    """
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise UserError(f"{path} holds no .json file with caption pairs")
    return [pair for file in files for pair in _read_file(file)]


def _read_file(file: Path) -> list[CaptionPair]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file} is not JSON: {error}") from error
    if isinstance(entries, list):  # some releases number the entries by their place
        entries = {str(number): entry for number, entry in enumerate(entries)}
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"{file} holds no caption pairs; the layout is {LAYOUT}")
    return [_read_entry(file, name, entry) for name, entry in entries.items()]


def _read_entry(file: Path, name: str, entry: Any) -> CaptionPair:
    fields = ("filename", "caption", "negative_caption")
    for field in fields:
        value = entry.get(field) if isinstance(entry, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise UserError(
                f"{file}, entry {name!r}: no text in {field!r}; the layout is {LAYOUT}"
            )
    return CaptionPair(*(entry[field] for field in fields), kind=file.stem)

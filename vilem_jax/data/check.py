"""Counts the faults of data before a long run: `vilem data check`."""

import itertools
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vilem_jax.data.images import ImageError, decode
from vilem_jax.data.sources.annotations import short
from vilem_jax.data.sources.source import Source, notes_of
from vilem_jax.data.tokenizer import Tokenizer
from vilem_jax.progress import counting
from vilem_jax.typing import JsonObject

NUM_EXAMPLES = 5  # listed of each problem
_CHUNK = 256  # images checked together

# The problems that are counted, and their words in the report.
IMAGE_PROBLEMS = {
    "missing_images": "missing",
    "corrupt_images": "corrupt",
    "double_images": "the same as an earlier one",
}
# Those that are faults of any data; the others may be meant.
FAULTS = ("missing_images", "corrupt_images", "empty_captions")
CAPTION_PROBLEMS = {
    "empty_captions": "empty after cleaning",
    "duplicate_captions": "a repetition for the same image",
    "shared_captions": "used for an earlier image",
    "truncated_captions": "cut at the text length",
    "unknown_captions": "with a word that the vocabulary lacks",
    "uneditable_captions": "with nothing to edit",
}


def check(
    sources: Mapping[str, Sequence[Source]],
    tokenizer: Tokenizer,
    text_length: int,
    *,
    max_images: int = 0,
) -> JsonObject:
    """Checks every image and caption and counts the problems.

    Args:
      sources: by split, for example {"train": [...], "validation": [...]}.
      text_length: L, tokens of a caption with [CLS] and [SEP].
      max_images: decode about this many images of each source, spread over it; 0
        decodes all. All captions are read in any case.

    Returns:
      a dict, JSON-ready: "splits", by name: "images", "images_checked" (no more than
      `max_images` of each source), "images_decoded" (those that are intact) and
      "captions", counts; "tokens", mean, 99th percentile and maximum per caption before
      cutting; for each key of `IMAGE_PROBLEMS` and `CAPTION_PROBLEMS` "count" and some
      "examples"; "notes", sentences of the sources. "in_two_splits": for each pair of
      splits "by_name" and "by_content" of their images, with "examples".
    """
    tallies = {
        split: _Tally(split, parts, tokenizer, text_length, max_images)
        for split, parts in sources.items()
    }
    pairs = itertools.combinations(tallies.values(), 2)
    return {
        "text_length": text_length,
        "splits": {split: tally.report() for split, tally in tallies.items()},
        "in_two_splits": [_in_both(first, second) for first, second in pairs],
    }


def format_report(report: JsonObject) -> str:
    """The report of `check` as text for people."""
    lines = []
    for split, counts in report["splits"].items():
        tokens = counts["tokens"]
        lines += [
            f"{split}: {counts['images']:,} images ({counts['images_decoded']:,} "
            f"decoded), {counts['captions']:,} captions of "
            f"{tokens['mean']:.1f} tokens (99 % at most {tokens['p99']:.0f}, longest "
            f"{tokens['max']:,}; cut at {report['text_length']})"
        ]
        for problems, total, what in (
            (IMAGE_PROBLEMS, counts["images_checked"], "images"),
            (CAPTION_PROBLEMS, counts["captions"], "captions"),
        ):
            for key, sentence in problems.items():
                lines += _problem_lines(counts[key], total, f"{what} {sentence}")
        lines += [f"  note: {note}" for note in counts["notes"]]
    for pair in report["in_two_splits"]:
        first, second = pair["splits"]
        for key, how in (("by_name", "the same name"), ("by_content", "the same file")):
            found = {"count": pair[key], "examples": pair["examples"][key]}
            sentence = f"images in {first} and {second} with {how}"
            lines += _problem_lines(found, None, sentence)
    return "\n".join(lines)


def num_faults(report: JsonObject) -> int:
    """Missing and corrupt images, empty captions, and images in two splits."""
    splits = report["splits"].values()
    found = (counts[fault]["count"] for counts in splits for fault in FAULTS)
    return sum(found) + sum(pair["by_content"] for pair in report["in_two_splits"])


class _Tally:
    """One split: its problems, and names and contents of its images."""

    def __init__(
        self,
        split: str,
        sources: Sequence[Source],
        tokenizer: Tokenizer,
        text_length: int,
        max_images: int,
    ):
        self.split, self.tokenizer, self.text_length = split, tokenizer, text_length
        self.notes = notes_of(sources)
        self.num_images = sum(len(source) for source in sources)
        self.num_checked = self.num_decoded = 0
        self.problems: dict[str, JsonObject] = {
            key: {"count": 0, "examples": []}
            for key in (*IMAGE_PROBLEMS, *CAPTION_PROBLEMS)
        }
        self.names: set[str] = set()
        self.content_of: dict[int, str] = {}  # name, by hash of the content
        self._seen: set[int] = set()  # hashes of cleaned captions, to save memory
        self._lengths: list[np.ndarray] = []
        counted = counting(f"checking {split}", self.num_images)
        with counted as advance, ThreadPoolExecutor(os.cpu_count()) as pool:
            for source in sources:
                step = max(1, len(source) // max_images) if max_images else 1
                for start in range(0, len(source), _CHUNK):
                    chunk = range(start, min(start + _CHUNK, len(source)))
                    self._check_images(source, chunk, step, pool)
                    self._check_captions(source, chunk)
                    advance(len(chunk))

    def report(self) -> JsonObject:
        captions = sum(map(len, self._lengths))
        lengths = np.concatenate(self._lengths) if captions else np.zeros(1, np.int64)
        return {
            "images": self.num_images,
            "images_checked": self.num_checked,
            "images_decoded": self.num_decoded,
            "captions": captions,
            "tokens": {
                "mean": float(lengths.mean()),
                "p99": float(np.percentile(lengths, 99)),
                "max": int(lengths.max()),
            },
            **self.problems,
            "notes": self.notes,
        }

    def _check_images(
        self, source: Source, chunk: range, step: int, pool: ThreadPoolExecutor
    ) -> None:
        chosen = [i for i in chunk if i % step == 0]
        self.num_checked += len(chosen)
        states = pool.map(lambda i: _image_state(source, i), chosen)
        for i, (problem, reason, content) in zip(chosen, states, strict=True):
            name = source.image_name(i)
            self.num_decoded += not problem
            if problem:
                self._count(problem, f"{name}: {reason}")
            elif content in self.content_of:
                self._count("double_images", f"{name} = {self.content_of[content]}")
            else:
                self.content_of[content] = name
        self.names.update(map(source.image_name, chunk))

    def _check_captions(self, source: Source, chunk: range) -> None:
        captions_of = [source.captions(i) for i in chunk]
        owners = [i for i, c in zip(chunk, captions_of, strict=True) for _ in c]
        captions = list(itertools.chain(*captions_of))
        cleaned = [list(map(self.tokenizer.clean, each)) for each in captions_of]
        lengths = self.tokenizer.lengths(captions)
        tokens = self.tokenizer.encode(captions, self.text_length)
        vocabulary = self.tokenizer.vocabulary
        found = {
            "empty_captions": [not text for text in itertools.chain(*cleaned)],
            "truncated_captions": lengths > self.text_length,
            "unknown_captions": (tokens == vocabulary.unk_id).any(axis=1),
            "uneditable_captions": ~vocabulary.is_editable[tokens].any(axis=1),
            **self._repeated(cleaned),
        }
        for problem, has_problem in found.items():
            for k in np.flatnonzero(has_problem):
                name = source.image_name(owners[k])
                self._count(problem, f"{name}: {short(captions[k], 80)}")
        self._lengths.append(lengths)

    def _repeated(self, cleaned: Sequence[Sequence[str]]) -> dict[str, list[bool]]:
        """Which captions came before, for the same image or for an earlier one."""
        duplicate, shared = [], []
        for texts in cleaned:  # of one image
            own: set[int] = set()
            for caption in map(hash, texts):
                duplicate.append(caption in own)
                shared.append(caption in self._seen and caption not in own)
                own.add(caption)
            self._seen |= own
        return {"duplicate_captions": duplicate, "shared_captions": shared}

    def _count(self, problem: str, example: str) -> None:
        tally = self.problems[problem]
        tally["count"] += 1
        if len(tally["examples"]) < NUM_EXAMPLES:
            tally["examples"].append(example)


def _image_state(source: Source, index: int) -> tuple[str, str, int]:
    """The problem ("" if none), its reason, and a hash of the content."""
    try:
        encoded = source.read_image(index)
        decode(encoded)
    except (FileNotFoundError, KeyError) as error:
        return "missing_images", str(error), 0
    except (ImageError, OSError) as error:
        return "corrupt_images", str(error), 0
    content = encoded if isinstance(encoded, bytes) else encoded.tobytes()
    return "", "", hash(content)


def _in_both(first: _Tally, second: _Tally) -> JsonObject:
    contents = first.content_of.keys() & second.content_of.keys()
    same = {
        "by_name": sorted(first.names & second.names),
        "by_content": sorted(
            f"{first.content_of[each]} = {second.content_of[each]}" for each in contents
        ),
    }
    return {
        "splits": [first.split, second.split],
        **{how: len(found) for how, found in same.items()},
        "examples": {how: found[:NUM_EXAMPLES] for how, found in same.items()},
    }


def _problem_lines(found: JsonObject, total: int | None, sentence: str) -> list[str]:
    if not found["count"]:
        return []
    share = f" ({found['count'] / total:.2%})" if total else ""
    lines = [f"  {found['count']:,} {sentence}{share}"]
    return lines + [f"      {example}" for example in found["examples"]]

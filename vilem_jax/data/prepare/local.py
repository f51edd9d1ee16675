"""Prepare once: any sources -> ArrayRecord with images no larger than needed.

    FOLDER/1.0.0/            a data set of TFDS, for kind="tfds": shards and metadata
    FOLDER/prepared.json     what went in, what was left out and why
    FOLDER.partial/          while it is made: finished shards, so that a run goes on

What is written depends on the sources and the settings alone, not on the number of
processes, and keeps the order of the sources.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vilem_jax.data.prepare.records import (
    COUNTS,
    NUM_EXAMPLES,
    Settings,
    SplitRecords,
    Splits,
    split_records,
    tally,
)
from vilem_jax.data.sources import tfds_files
from vilem_jax.errors import UserError
from vilem_jax.files import reason, replacing, write_json

REPORT = "prepared.json"
_PLAN, _SHARDS = "plan.json", "shards"
_VERSION = 1  # of what is written: a half-made folder of another is not gone on with


def prepare(
    splits: Splits,
    folder: str | Path,
    settings: Settings,
    *,
    num_workers: int = 1,
) -> dict[str, Any]:
    """Writes the sources as one data set of TFDS, by processes of this machine.

    A run that was stopped goes on when it is called again with the same sources and
    settings; `folder` appears only when all is there.

    Args:
      splits: sources by the split that they make up. An opened source is sent to each
        process whole; one given by its config is opened there.
      folder: must not exist, or be empty.
      num_workers: processes that read, resize and write; 1 takes none but this.

    Returns:
      what `folder`/prepared.json holds: "settings"; "splits", by name: "images",
      "captions", "resized", "kept" (as they were), "left_out", "left_out_examples",
      "image_bytes", "shards", "sources" and "notes".

    Raises:
      UserError: a setting out of range, a folder with something else in it or that
        cannot be written, a split without an image.
    """
    settings.check()
    folder = Path(folder).expanduser()
    partial = claim(folder)
    records = split_records(splits, settings)
    plan = make_plan(records, settings)
    with told(folder):
        _begin(partial, plan)
        tallies = _write_shards(partial, records, settings, num_workers)
        files = _gather(partial, folder, tallies)
        return finish(partial, folder, plan, tallies, records, files)


def claim(folder: Path) -> Path:
    """The folder that is written to before it becomes `folder`.

    Raises:
      UserError: `folder` holds something.
    """
    if (folder / REPORT).is_file():
        raise UserError(f"{folder} is prepared already; delete it to prepare it anew")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} holds something else: give --out=NEW_FOLDER")
    return folder.absolute().with_name(f"{folder.absolute().name}.partial")


def make_plan(records: Mapping[str, SplitRecords], settings: Settings) -> dict:
    """What decides the result: settings, and the sources of every split."""
    described = {split: part.described() for split, part in records.items()}
    return {
        "version": _VERSION,
        "settings": dataclasses.asdict(settings),
        "splits": described,
    }


def finish(
    partial: Path,
    folder: Path,
    plan: dict,
    tallies: Mapping[str, Sequence[dict]],
    records: Mapping[str, SplitRecords],
    files: Mapping[str, int],
) -> dict[str, Any]:
    """Writes the report and gives `partial` its name.

    Args:
      tallies: of each split, as `tally` makes them.
      files: number of shards of each split.
    """
    report = {"settings": plan["settings"], "splits": {}}
    for split, parts in tallies.items():
        total = {key: sum(part[key] for part in parts) for key in COUNTS}
        examples = [example for part in parts for example in part["left_out_examples"]]
        report["splits"][split] = {
            **total,
            "left_out_examples": examples[:NUM_EXAMPLES],
            "shards": files[split],
            "sources": plan["splits"][split],
            "notes": [
                note
                for source in records[split].sources
                for note in getattr(source, "notes", ())
            ],
        }
    write_json(partial / REPORT, report)
    shutil.rmtree(partial / _SHARDS, ignore_errors=True)
    (partial / _PLAN).unlink(missing_ok=True)
    os.replace(partial, folder)
    return report


def _begin(partial: Path, plan: dict) -> None:
    """Makes `partial`, or goes on with one of the same plan."""
    (partial / _SHARDS).mkdir(parents=True, exist_ok=True)
    for inside in partial.iterdir():  # a folder of files that was being put together
        if inside.is_dir() and inside.name != _SHARDS:
            shutil.rmtree(inside)
    file = partial / _PLAN
    if not file.exists():
        write_json(file, plan)
    elif json.loads(file.read_text(encoding="utf-8")) != plan:
        raise UserError(
            f"{partial} is half a preparation of other data or with other settings: "
            "delete it, or give the same again to go on with it"
        )


def _write_shards(
    partial: Path,
    records: Mapping[str, SplitRecords],
    settings: Settings,
    num_workers: int,
) -> dict[str, list[dict]]:
    """Writes the shards that are not there yet; the tally of each shard by split."""
    size = settings.images_per_shard
    jobs = [
        (split, number, range(start, min(start + size, len(part))))
        for split, part in records.items()
        for number, start in enumerate(range(0, len(part), size))
    ]
    done = {}
    total = sum(len(job[2]) for job in jobs)
    with tqdm(total=total, unit=" images", disable=None, leave=False) as bar:
        for job in jobs:
            if (found := _finished(partial, job)) is not None:
                done[job[:2]] = found
                bar.update(len(job[2]))
        waiting = [job for job in jobs if job[:2] not in done]
        for job, found in _run(partial, records, waiting, num_workers):
            done[job[:2]] = found
            bar.update(len(job[2]))
    return {
        split: [done[job[:2]] for job in jobs if job[0] == split] for split in records
    }


def _run(partial, records, jobs, num_workers) -> Iterator[tuple[tuple, dict]]:
    if num_workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield job, _write_shard(partial, records[job[0]], job)
        return
    pool = ProcessPoolExecutor(
        min(num_workers, len(jobs)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_take_records,
        initargs=(partial, dict(records)),
    )
    try:
        futures = {pool.submit(_write_taken, job): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for memory: run the same again, "
            "which goes on, with fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_taken: tuple[Path, dict[str, SplitRecords]] | None = None  # in a worker process


def _take_records(partial: Path, records: dict[str, SplitRecords]) -> None:
    global _taken
    _taken = partial, records


def _write_taken(job: tuple[str, int, range]) -> dict:
    partial, records = _taken
    return _write_shard(partial, records[job[0]], job)


def _write_shard(partial: Path, records: SplitRecords, job) -> dict:
    file, note = _shard_files(partial, job)
    draft = file.with_name(f"{file.name}.draft")
    with tfds_files.ShardWriter(draft) as shard:
        counts = tally(job[2], records, shard.write)
    with open(draft, "rb+") as opened:
        os.fsync(opened.fileno())  # before the note says that it is there
    os.replace(draft, file)
    counts["file_bytes"] = file.stat().st_size
    with replacing(note) as target:
        target.write(json.dumps(counts).encode())
    return counts


def _finished(partial: Path, job) -> dict | None:
    """The tally of a shard that an earlier run wrote whole; None otherwise."""
    file, note = _shard_files(partial, job)
    try:
        counts = json.loads(note.read_text(encoding="utf-8"))
        is_whole = counts["images"] and file.stat().st_size == counts["file_bytes"]
    except (OSError, ValueError, KeyError):
        return None
    return counts if is_whole else None


def _shard_files(partial: Path, job) -> tuple[Path, Path]:
    stem = f"{job[0]}-{job[1]:05d}"
    return partial / _SHARDS / stem, partial / _SHARDS / f"{stem}.json"


def _gather(partial: Path, folder: Path, tallies) -> dict[str, int]:
    """Moves the shards to where TFDS looks for them; how many there are by split."""
    place = partial / tfds_files.VERSION
    place.mkdir()
    name = dataset_name(folder)
    splits = {}
    for split, parts in tallies.items():
        full = [number for number, part in enumerate(parts) if part["images"]]
        if not full:
            shutil.rmtree(partial)  # with the images found it starts anew
            refuse_empty(split, parts[0]["left_out_examples"])
        for place_of, number in enumerate(full):
            file, _ = _shard_files(partial, (split, number))
            target = tfds_files.shard_name(name, split, place_of, len(full))
            os.replace(file, place / target)
        lengths = [parts[number]["images"] for number in full]
        splits[split] = (lengths, sum(parts[number]["file_bytes"] for number in full))
    tfds_files.write_metadata(place, name, splits)
    return {split: len(lengths) for split, (lengths, _) in splits.items()}


def refuse_empty(split: str, left_out: Sequence[dict]) -> None:
    first = f" ({left_out[0]['image']}: {left_out[0]['why']})" if left_out else ""
    raise UserError(
        f"no image of the split {split!r} can be read{first}: say with --images "
        "where the images are"
    )


def dataset_name(folder: Path) -> str:
    """The folder's name as TFDS allows names: small letters, digits and _."""
    words = re.sub(r"[^a-z0-9]+", "_", folder.absolute().name.lower()).strip("_")
    return words if words[:1].isalpha() else f"data_{words}".strip("_")


@contextlib.contextmanager
def told(folder: Path) -> Iterator[None]:
    """What the disk refuses, as a sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {folder}: {reason(error)}") from error

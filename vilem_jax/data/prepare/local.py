"""Packs any sources as ArrayRecord, with images no larger than needed.

    FOLDER/1.0.0/            a data set of TFDS, for kind="tfds": shards and metadata
    FOLDER/prepared.json     the sources, and which images were left out and why
    FOLDER.partial/          finished shards, from which a rerun resumes

The result depends only on the sources and the settings, not on the number of processes.
It has the order of the sources.
"""

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
from typing import NamedTuple, NoReturn

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
from vilem_jax.data.sources.source import notes_of
from vilem_jax.errors import UserError
from vilem_jax.files import replace_file, write_errors, write_json
from vilem_jax.typing import JsonObject

REPORT = "prepared.json"
_PLAN, _SHARDS = "plan.json", "shards"
_VERSION = 1  # of the format: a rerun does not resume from another version

Records = Mapping[str, SplitRecords]  # by split


class _Shard(NamedTuple):
    """One file of a split, before images that cannot be read are left out."""

    split: str
    number: int
    records: range  # numbers of its records in the split


def prepare(
    splits: Splits, folder: str | Path, settings: Settings, *, num_workers: int = 1
) -> JsonObject:
    """Writes the sources as one data set of TFDS, with processes of this machine.

    After an interruption, the same call resumes. `folder` is created only when all is
    complete.

    Args:
      splits: the sources of each split. An opened source is sent to each process; a
        config is opened there.
      folder: a new or empty folder.
      num_workers: processes that read, resize and write; 1 uses only this process.

    Returns:
      the content of `folder`/prepared.json: "settings"; "splits", by name: "images",
      "captions", "resized", "kept" (as they were), "left_out", "left_out_examples",
      "image_bytes", "shards", "sources" and "notes".

    Raises:
      UserError: if the folder has other content or cannot be written, or no image of a
        split can be read.
    """
    folder = Path(folder).expanduser()
    partial = claim(folder)
    records = split_records(splits, settings)
    plan = make_plan(records, settings)
    with write_errors(folder):
        _start_or_resume(partial, plan)
        tallies = _write_shards(partial, records, settings, num_workers)
        _collect_shards(partial, folder, tallies)
        return finish(partial, folder, plan, tallies, records)


def claim(folder: Path) -> Path:
    """The partial folder, which is renamed to `folder` at the end.

    Raises:
      UserError: if `folder` is not empty.
    """
    if (folder / REPORT).is_file():
        raise UserError(f"{folder} is prepared already; delete it to prepare it again")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} holds something else: give --out=NEW_FOLDER")
    return folder.absolute().with_name(f"{folder.absolute().name}.partial")


def make_plan(records: Records, settings: Settings) -> JsonObject:
    """What determines the result: settings, and the sources of each split."""
    return {
        "version": _VERSION,
        "settings": dataclasses.asdict(settings),
        "splits": {split: part.described() for split, part in records.items()},
    }


def finish(
    partial: Path,
    folder: Path,
    plan: JsonObject,
    tallies: Mapping[str, Sequence[dict]],
    records: Records,
) -> JsonObject:
    """Writes the report, and renames `partial` to `folder`.

    Args:
      tallies: of each split, results of `tally`.
    """
    report = {"settings": plan["settings"], "splits": {}}
    for split, parts in tallies.items():
        total = {key: sum(part[key] for part in parts) for key in COUNTS}
        examples = [example for part in parts for example in part["left_out_examples"]]
        shards = (partial / tfds_files.VERSION).glob(f"*-{split}.*")
        report["splits"][split] = {
            **total,
            "left_out_examples": examples[:NUM_EXAMPLES],
            "shards": len(list(shards)),
            "sources": plan["splits"][split],
            "notes": notes_of(records[split].sources),
        }
    write_json(partial / REPORT, report)
    shutil.rmtree(partial / _SHARDS, ignore_errors=True)
    (partial / _PLAN).unlink(missing_ok=True)
    os.replace(partial, folder)
    return report


def _start_or_resume(partial: Path, plan: JsonObject) -> None:
    (partial / _SHARDS).mkdir(parents=True, exist_ok=True)
    for inside in partial.iterdir():  # results that were being collected
        if inside.is_dir() and inside.name != _SHARDS:
            shutil.rmtree(inside)
    file = partial / _PLAN
    if not file.exists():
        write_json(file, plan)
    elif json.loads(file.read_text(encoding="utf-8")) != plan:
        raise UserError(
            f"{partial} is half a preparation of other data or with other settings: "
            "delete it, or give the same data and settings to resume"
        )


def _write_shards(
    partial: Path, records: Records, settings: Settings, num_workers: int
) -> dict[str, list[dict]]:
    """Writes the missing shards; returns the counts of all shards by split."""
    size = settings.images_per_shard
    shards = [
        _Shard(split, number, range(len(part))[start : start + size])
        for split, part in records.items()
        for number, start in enumerate(range(0, len(part), size))
    ]
    done = {shard: counts for shard in shards if (counts := _finished(partial, shard))}
    waiting = [shard for shard in shards if shard not in done]
    total = sum(map(len, records.values()))
    with tqdm(total=total, unit=" images", disable=None, leave=False) as bar:
        bar.update(total - sum(len(shard.records) for shard in waiting))
        for shard, counts in _run(partial, records, waiting, num_workers):
            done[shard] = counts
            bar.update(len(shard.records))
    return {
        split: [done[shard] for shard in shards if shard.split == split]
        for split in records
    }


def _run(
    partial: Path, records: Records, shards: list[_Shard], num_workers: int
) -> Iterator[tuple[_Shard, dict]]:
    if num_workers == 1 or len(shards) < 2:
        for shard in shards:
            yield shard, _write_shard(partial, records, shard)
        return
    pool = ProcessPoolExecutor(
        min(num_workers, len(shards)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_init_worker,
        initargs=(partial, dict(records)),
    )
    try:
        futures = {pool.submit(_write_in_worker, shard): shard for shard in shards}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, perhaps for memory: rerun the same command "
            "to resume, with fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# Sent once to each worker process, not with every shard.
_worker_arguments: tuple[Path, Records]


def _init_worker(partial: Path, records: Records) -> None:
    global _worker_arguments
    _worker_arguments = partial, records


def _write_in_worker(shard: _Shard) -> dict:
    return _write_shard(*_worker_arguments, shard)


def _write_shard(partial: Path, records: Records, shard: _Shard) -> dict:
    file = _shard_file(partial, shard.split, shard.number)
    draft = file.with_name(f"{file.name}.draft")
    with tfds_files.ShardWriter(draft) as writer:
        counts = tally(shard.records, records[shard.split], writer.write)
    with open(draft, "rb+") as opened:
        os.fsync(opened.fileno())  # before the counts declare the shard finished
    os.replace(draft, file)
    counts["file_bytes"] = file.stat().st_size
    replace_file(file.with_suffix(".json"), json.dumps(counts))
    return counts


def _shard_file(partial: Path, split: str, number: int) -> Path:
    """A shard; its counts are beside it, with the suffix .json."""
    return partial / _SHARDS / f"{split}-{number:05d}"


def _finished(partial: Path, shard: _Shard) -> dict | None:
    """The counts of a shard that an earlier run completed, else None."""
    file = _shard_file(partial, shard.split, shard.number)
    try:
        counts = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        is_whole = counts["images"] and file.stat().st_size == counts["file_bytes"]
    except (OSError, ValueError, KeyError):
        return None
    return counts if is_whole else None


def _collect_shards(
    partial: Path, folder: Path, tallies: Mapping[str, Sequence[dict]]
) -> None:
    """Renames the shards as TFDS expects, and writes its metadata."""
    version = partial / tfds_files.VERSION
    version.mkdir()
    name = dataset_name(folder)
    splits = {}
    for split, parts in tallies.items():
        full = [number for number, part in enumerate(parts) if part["images"]]
        if not full:
            shutil.rmtree(partial)  # a rerun, with readable images, starts again
            refuse_empty(split, parts[0]["left_out_examples"])
        for index, number in enumerate(full):
            target = tfds_files.shard_name(name, split, index, len(full))
            os.replace(_shard_file(partial, split, number), version / target)
        lengths = [parts[number]["images"] for number in full]
        splits[split] = (lengths, sum(parts[number]["file_bytes"] for number in full))
    tfds_files.write_metadata(version, name, splits)


def refuse_empty(split: str, left_out: Sequence[dict]) -> NoReturn:
    first = f" ({left_out[0]['image']}: {left_out[0]['why']})" if left_out else ""
    raise UserError(
        f"no image of the split {split!r} can be read{first}: say with --images "
        "where the images are"
    )


def dataset_name(folder: Path) -> str:
    """The folder's name as TFDS allows names: lower case letters, digits and _."""
    words = re.sub(r"[^a-z0-9]+", "_", folder.absolute().name.lower()).strip("_")
    return words if words[:1].isalpha() else f"data_{words}".strip("_")

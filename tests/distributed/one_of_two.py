"""`vilem` as one of two processes, which writes down the ids of all pairs it reads.

As a script: `python -m tests.distributed.one_of_two IDS_FILE SECONDS ARGUMENT...`. An
IDS_FILE of "-" writes nothing. Reading a batch takes SECONDS longer.
"""

import json
import sys
import time
from pathlib import Path

from vilem_jax.cli.main import main as vilem
from vilem_jax.distributed import processes
from vilem_jax.training import run

CONFIG = """
import json
from pathlib import Path


def get_config():
    return json.loads(Path({settings!r}).read_text())
"""


def write_config(folder: Path, settings: dict) -> Path:
    """A config file of the command line with the `settings` of `run_settings`."""
    stored, file = folder / "settings.json", folder / "config.py"
    stored.write_text(json.dumps(settings))
    file.write_text(CONFIG.format(settings=str(stored)))
    return file


def main(ids_file: str, seconds: str, *arguments: str) -> int:
    processes.SEE_SECONDS = 3  # there is no network file system
    if ids_file == "-":
        return vilem(arguments)
    plain, file = run.Batches, Path(ids_file)

    class RecordingReader:
        """The reader; writes down the ids of each batch."""

        def __init__(self, *given, **settings):
            self.reader = plain(*given, **settings)

        def __next__(self):
            batch = next(self.reader)
            time.sleep(float(seconds))
            with file.open("a") as opened:
                opened.write(json.dumps(batch["sample_id"].tolist()) + "\n")
            return batch

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.reader.close()

    run.Batches = RecordingReader
    return vilem(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""`vilem` as one of two processes, which notes the ids of every pair it reads.

As a script: `python -m tests.distributed.one_of_two IDS_FILE SECONDS ARGUMENT...`. An
IDS_FILE of "-" notes nothing; reading a batch takes so many seconds longer.
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
    processes.SEE_SECONDS = 3  # no network lies between a file and who looks for it
    if ids_file == "-":
        return vilem(arguments)
    plain, file = run.train_batches, Path(ids_file)

    class Noting:
        """The reader, writing down the ids of each batch that is taken from it."""

        def __init__(self, *given, **settings):
            self.reader = plain(*given, **settings)

        def __next__(self):
            batch = next(self.reader)
            time.sleep(float(seconds))
            with file.open("a") as notes:
                notes.write(json.dumps(batch["sample_id"].tolist()) + "\n")
            return batch

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.reader.close()

    run.train_batches = Noting
    return vilem(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

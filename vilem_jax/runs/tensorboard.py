"""Scalars as a TensorBoard event file, through TensorBoard's own `RecordWriter`.

Only the record format and the messages of the package are used: its `SummaryWriter`s
write from a thread, and if the thread fails (a full disk) the next scalar blocks.
"""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path


class EventFile:
    """Appends scalars to a new file in `folder`, without a buffer."""

    def __init__(self, folder: str | os.PathLike, *, start_step: int = 0):
        """
        Args:
          start_step: the step that the run resumes from; TensorBoard drops events of
            later steps, which an earlier file may have.
        """
        # Imported late: it takes half a second, and a run may not use TensorBoard.
        # Protobuf makes `Event` when its module is imported.
        from tensorboard.compat.proto.event_pb2 import (
            Event,  # pyright: ignore[reportAttributeAccessIssue]
        )
        from tensorboard.summary.writer.record_writer import RecordWriter

        Path(folder).mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        file = open(Path(folder) / name, "ab", buffering=0)  # noqa: SIM115
        self._records = RecordWriter(file)
        self._event = Event
        self._append(file_version="brain.Event:2")
        if start_step:
            # Readers drop the events of this step and of later ones.
            self._append(step=start_step + 1, session_log={"status": "START"})

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One event with all `scalars` (float32 is what TensorBoard keeps)."""
        values = [{"tag": k, "simple_value": v} for k, v in scalars.items()]
        self._append(step=step, summary={"value": values})

    def close(self) -> None:
        self._records.close()

    def _append(self, **fields) -> None:
        event = self._event(wall_time=time.time(), **fields)
        self._records.write(event.SerializeToString())

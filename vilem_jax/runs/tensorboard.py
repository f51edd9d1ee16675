"""Scalars as a TensorBoard event file, without TensorFlow.

Such a file is a run of TFRecords, each holding one `Event` in the protocol buffers'
wire format; a scalar needs six fields of it. Written here and at once because the
packages that do it import torch wherever that is installed, and write from a thread
whose death (a full disk) blocks training at the next scalar.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

_START = 1  # SessionLog.status: readers then forget events of this step and later ones


class EventFile:
    """Appends scalars to a new file in `folder`; every write reaches the system."""

    def __init__(self, folder: str | os.PathLike, *, start_step: int = 0):
        """`start_step`: the run resumes here; steps after it were never taken."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}"
        self._file = open(Path(folder) / name, "ab", buffering=0)  # noqa: SIM115
        self._append(_text(3, "brain.Event:2"))
        if start_step:
            self._append(
                _varint(2, start_step + 1) + _message(7, _varint(1, _START)),
            )

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One event with all `scalars` (float32 is what TensorBoard keeps)."""
        values = [
            _message(1, _text(1, name) + _key(2, 5) + _float32(value))
            for name, value in scalars.items()
        ]
        self._append(_varint(2, step) + _message(5, b"".join(values)))

    def close(self) -> None:
        self._file.close()

    def _append(self, fields: bytes) -> None:
        event = _key(1, 1) + struct.pack("<d", time.time()) + fields
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))


def _key(field: int, wire_type: int) -> bytes:
    return bytes([field << 3 | wire_type])


def _number(value: int) -> bytes:
    """Seven bits a byte, the lowest first, the top bit set on all but the last."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _varint(field: int, value: int) -> bytes:
    return _key(field, 0) + _number(value)


def _float32(value: float) -> bytes:
    with np.errstate(over="ignore"):  # beyond float32 is drawn as infinite
        return np.float32(value).astype("<f4").tobytes()


def _message(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _number(len(content)) + content


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)  # Castagnoli
        table.append(value)
    return table


_TABLE = _crc_table()


def _masked_crc(content: bytes) -> bytes:
    """CRC-32C, rotated and shifted the way TFRecord does."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _TABLE[(crc ^ byte) & 255] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    rotated = (crc >> 15 | crc << 17) & 0xFFFFFFFF
    return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)

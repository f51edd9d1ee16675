"""The log of a run: complete, without duplicates, readable by other programs."""

import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from vilem_jax.progress import in_words
from vilem_jax.runs import metrics as metrics_module
from vilem_jax.runs.metrics import (
    Clock,
    MetricsLog,
    Progress,
    flat_record,
    read_records,
)
from vilem_jax.runs.tensorboard import EventFile


def test_floats_keep_every_bit(tmp_path):
    values = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    with MetricsLog(tmp_path, tensorboard=False) as log:
        for step, value in enumerate(values, start=1):
            log.write(step, {"loss": jnp.asarray(value), "edits": np.int32(step)})
    records = read_records(tmp_path / "metrics.jsonl")
    assert [np.float32(r["loss"]) for r in records] == list(values)
    assert all(isinstance(r["edits"], int) for r in records)


def test_non_finite_values_stay_valid_json(tmp_path):
    with MetricsLog(tmp_path, tensorboard=True) as log:
        log.write(1, {"a": math.nan, "b": -math.inf, "c": 1e300})

    def refuse(constant):
        raise AssertionError(f"bare {constant} is not JSON")

    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    (record,) = read_records(tmp_path / "metrics.jsonl")
    assert math.isnan(record["a"]) and record["b"] == -math.inf


def test_timing_is_in_its_own_file(tmp_path):
    with MetricsLog(tmp_path, tensorboard=False) as log:
        log.write(1, {"validation": {"t2i": {"r1": 3}}}, {"pairs_per_second": 9.0})
    assert read_records(tmp_path / "metrics.jsonl") == [
        {"step": 1, "validation/t2i/r1": 3}
    ]
    assert read_records(tmp_path / "timing.jsonl") == [
        {"step": 1, "pairs_per_second": 9.0}
    ]


@pytest.mark.parametrize("torn", [b"", b'{"step": 9, "lo', b"\xff\x00", b"[]\n"])
def test_resumed_log_equals_the_uninterrupted_one(tmp_path, torn):
    def write(folder, first, last, start_step=0):
        with MetricsLog(folder, start_step=start_step) as log:
            for step in range(first, last + 1):
                log.write(step, {"loss": math.sin(step)}, {"input_wait": 0.0})

    write(tmp_path / "whole", 1, 12)
    write(tmp_path / "resumed", 1, 8)
    for name in ("metrics.jsonl", "timing.jsonl"):
        with open(tmp_path / "resumed" / name, "ab") as file:
            file.write(torn)
    write(tmp_path / "resumed", 6, 12, start_step=5)
    for name in ("metrics.jsonl", "timing.jsonl"):
        whole, resumed = (tmp_path / run / name for run in ("whole", "resumed"))
        assert whole.read_bytes() == resumed.read_bytes()


def test_new_run_starts_an_empty_log(tmp_path):
    for value in (1.0, 2.0):
        with MetricsLog(tmp_path, tensorboard=False) as log:
            log.write(0, {"loss": value})
    assert read_records(tmp_path / "metrics.jsonl") == [{"step": 0, "loss": 2.0}]


def test_a_full_disk_delays_records_and_loses_none(tmp_path, monkeypatch):
    messages = []
    monkeypatch.setattr(metrics_module, "notify", messages.append)
    log = MetricsLog(tmp_path, tensorboard=False)
    file = log._metrics._file

    class Full:
        def write(self, text):
            file.write(text[:3])
            raise OSError(28, "No space left on device")

        def __getattr__(self, name):
            return getattr(file, name)

    log.write(1, {"loss": 1.0})
    log._metrics._file = Full()
    log.write(2, {"loss": 2.0})
    log._metrics._file = file
    log.write(3, {"loss": 3.0})
    log.close()
    assert [r["step"] for r in read_records(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert "no space left" in messages[0] and len(messages) == 1


def test_hooks_see_every_record(tmp_path):
    seen = []
    with MetricsLog(tmp_path, hooks=[lambda *record: seen.append(record)]) as log:
        log.write(3, {"loss": np.float32(0.5)}, {"pairs_per_second": 2})
    assert seen == [(3, {"loss": 0.5, "pairs_per_second": 2})]


def test_array_of_several_numbers_is_refused():
    with pytest.raises(ValueError):
        flat_record({"loss": np.zeros(2)})


def read_events(file):
    """Payloads of a TFRecord file, both checksums verified."""
    content, events = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        assert content[8:12] == struct.pack("<I", masked_crc32c(content[:8]))
        events.append(content[12 : 12 + length])
        checksum = struct.pack("<I", masked_crc32c(events[-1]))
        assert content[12 + length : 16 + length] == checksum
        content = content[16 + length :]
    return events


def test_event_file_contains_the_scalars(tmp_path):
    """The bytes are those of the protocol buffers' wire format."""
    events = EventFile(tmp_path, start_step=200)
    events.write(300, {"loss": 0.25, "validation/rsum": 3.0})
    events.close()
    (file,) = tmp_path.glob("events.out.tfevents.*")
    version, session, scalars = read_events(file)
    assert b"brain.Event:2" in version
    assert session[9:] == b"\x10\xc9\x01" + b"\x3a\x02\x08\x01"  # step 201, START
    assert scalars[9:12] == b"\x10\xac\x02"  # step 300
    assert b"\x0a\x04loss\x15" + struct.pack("<f", 0.25) in scalars
    assert b"validation/rsum\x15" + struct.pack("<f", 3.0) in scalars


def test_tensorboard_reads_the_event_file(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.write(70000, {"loss": -1.5, "too_large": 1e300})
    (file,) = (tmp_path / "tensorboard").iterdir()
    raw = list(RawEventFileLoader(str(file)).Load())
    event = Event.FromString(raw[-1])
    assert event.step == 70000
    values = [(v.tag, v.simple_value) for v in event.summary.value]
    assert values == [("loss", -1.5), ("too_large", math.inf)]


def test_clock_separates_training_from_waiting_and_the_rest():
    time = iter([0.0, 1.0, 3.0, 4.0, 14.0, 20.0, 20.0])
    clock = Clock(now=lambda: next(time))
    with clock.waiting():  # 2 s
        pass
    with clock.apart():  # 10 s
        pass
    assert clock.lap(50) == {"pairs_per_second": 5.0, "input_wait": 0.2}


def test_progress_prints_lines_without_a_terminal(capsys):
    with Progress(10, start_step=4, seconds_between_lines=0) as progress:
        for _ in range(2):
            with progress.taking_step():
                pass
        capsys.readouterr()
        progress.show({"loss": 1.25, "pairs_per_second": 1234.5})
    line = capsys.readouterr().err
    assert line.startswith("train 6/10, loss 1.250, 1,234 pairs/s, ")
    assert line.endswith(" left\n")


def test_time_in_words():
    assert [in_words(s) for s in (3.4, 75, 3725)] == ["3 s", "1 min 15 s", "1 h 02 min"]

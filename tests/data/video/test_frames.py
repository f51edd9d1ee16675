"""Frames of videos: the right ones, for every codec."""

import fractions
import os
import struct

import numpy as np
import pytest
from PIL import Image

from tests.data.make_files import make_image
from vilem_jax.data.video import frames
from vilem_jax.data.video.frames import VideoError, middle_frames, read_frames
from vilem_jax.errors import UserError

SIZE = (48, 32)  # width, height


def make_pixels(number: int) -> np.ndarray:
    """An image that shows its number, also after compression."""
    width, height = SIZE
    pixels = np.full((height, width, 3), 40, np.uint8)
    for bit in range(8):
        if number >> bit & 1:
            pixels[:16, 6 * bit : 6 * bit + 6] = 230
    return pixels


def number_of(pixels: np.ndarray) -> int:
    """The number that `make_pixels` has drawn."""
    cells = pixels[4:12].astype(float).mean(axis=(0, 2)).reshape(8, 6)[:, 2:4].mean(1)
    return sum(1 << bit for bit, level in enumerate(cells) if level > 135)


def make_clip(file, times, *, codec="libx264", gop=6, options=None, sound=False):
    """A video whose frame n is `make_pixels(n)`, visible from times[n] ms on."""
    av = pytest.importorskip("av", reason="no PyAV: decoding of videos NOT tested")
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV cannot encode {codec}")
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.gop_size = gop
        if codec != "mpeg4":
            stream.time_base = fractions.Fraction(1, 1000)
            stream.codec_context.time_base = fractions.Fraction(1, 1000)
        if sound:
            container.add_stream("aac", rate=16000)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(make_pixels(number), format="rgb24")
            frame.pts = number if codec == "mpeg4" else time
            frame.time_base = (
                fractions.Fraction(1, 25)
                if codec == "mpeg4"
                else fractions.Fraction(1, 1000)
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def all_frames(file) -> list[np.ndarray]:
    import av

    with av.open(str(file)) as container:
        return [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]


def test_middle_frames_equal_a_loop():
    rng = np.random.default_rng(0)
    for _ in range(300):
        count, num_frames = rng.integers(1, 30), int(rng.integers(1, 12))
        gaps = rng.integers(1, 9, count - 1)
        times = np.concatenate([[0], np.cumsum(gaps)]) + int(rng.integers(-50, 50))
        end = int(times[-1]) + int(rng.integers(0, 9))
        expected = []
        for i in range(num_frames):
            middle = times[0] + fractions.Fraction(
                (2 * i + 1) * (end - int(times[0])), 2 * num_frames
            )
            seen = 0
            for index, time in enumerate(times.tolist()):
                if time <= middle:
                    seen = index
            expected.append(seen)
        found = middle_frames(times, end, num_frames)
        assert found.tolist() == expected


def test_middle_frames_at_a_constant_rate():
    for count in range(1, 60):
        found = middle_frames(range(count), count, 8)
        assert found.tolist() == [int((i + 0.5) * count / 8) for i in range(8)]
    assert middle_frames([7], 7, 3).tolist() == [0, 0, 0]
    huge = 2**40 * np.arange(5)
    assert middle_frames(huge, int(huge[-1]) + 2**40, 5).tolist() == [0, 1, 2, 3, 4]


STEADY = list(range(0, 40 * 60, 40))
CLIPS = {
    "B-frames, many starts": dict(times=STEADY, options={"bf": "3"}),
    "open groups": dict(times=STEADY, options={"bf": "2", "x264opts": "open-gop=1"}),
    "one start": dict(times=STEADY, gop=1000),
    "no start but the first, no keyframes": dict(
        times=STEADY, gop=8, options={"x264opts": "intra-refresh=1"}
    ),
    "variable rate": dict(times=[0, 10, 20, 30, 40, 50, 900, 910, 2000, 2400]),
    "begins late": dict(times=[5000, 5040, 5080, 5120]),
    "one frame": dict(times=[0]),
    "three frames": dict(times=[0, 40, 80]),
    "webm": dict(times=STEADY, codec="libvpx-vp9", suffix="webm"),
    "avi": dict(times=STEADY, codec="mpeg4", suffix="avi", options={"bf": "2"}),
    "motion JPEG": dict(times=STEADY[:20], codec="mjpeg", suffix="mov"),
    "transport stream": dict(times=STEADY, suffix="ts", options={"bf": "2"}),
}


@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_those_of_a_full_decode(name, tmp_path):
    settings = dict(CLIPS[name])
    suffix = settings.pop("suffix", "mp4")
    times = settings["times"]
    file = make_clip(tmp_path / f"clip.{suffix}", **settings)
    frames = all_frames(file)
    assert [number_of(frame) for frame in frames] == list(range(len(times)))
    # The container decides the duration of the last frame: one frame's time, or more.
    last = {0: (40, 1)}.get(len(times) - 1, (40, 1100))
    for num_frames in (8, 3, 1):
        found = read_frames(file, num_frames)
        numbers = [number_of(frame) for frame in found]
        for frame, number in zip(found, numbers, strict=True):
            np.testing.assert_array_equal(frame, frames[number])
        allowed = [
            middle_frames(times, times[-1] + duration, num_frames).tolist()
            for duration in (*last, 0, 33, 40, 100, 245, 267)
        ]
        assert numbers in allowed


def test_seeks_change_nothing(tmp_path, monkeypatch):
    file = make_clip(tmp_path / "clip.mp4", STEADY, options={"bf": "3"})
    monkeypatch.setattr(frames, "_decode_all", None)  # would fail if called
    sought = [number_of(frame) for frame in read_frames(file, 8)]
    assert sought == [int((i + 0.5) * 60 / 8) for i in range(8)]
    monkeypatch.undo()
    monkeypatch.setattr(frames, "_seek_frames", lambda *_: None)
    assert [number_of(frame) for frame in read_frames(file, 8)] == sought


def test_a_seek_that_misses_falls_back_to_decoding_all(tmp_path, monkeypatch):
    file = make_clip(tmp_path / "clip.mp4", STEADY)
    expected = [number_of(frame) for frame in read_frames(file, 8)]
    timeline = frames._timeline

    def shifted(*arguments):
        times, starts, end = timeline(*arguments)
        return [time + 1 for time in times], starts, end + 1

    monkeypatch.setattr(frames, "_timeline", shifted)
    assert [number_of(frame) for frame in read_frames(file, 8)] == expected


def test_frames_are_rotated_as_the_file_asks(tmp_path):
    """An upright phone writes rotated images and a matrix."""
    file = make_clip(tmp_path / "clip.mp4", STEADY[:4])
    upright = read_frames(file, 1)[0]
    content = bytearray(file.read_bytes())
    one = 1 << 16
    straight = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    clockwise = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    start = content.index(straight, content.index(b"tkhd"))
    content[start : start + 36] = clockwise
    file.write_bytes(content)
    np.testing.assert_array_equal(read_frames(file, 1)[0], np.rot90(upright, -1))


def test_hidden_files_are_no_frames(tmp_path):
    for number in range(8):
        Image.new("RGB", (6, 4), (30 * number,) * 3).save(tmp_path / f"{number}.png")
        for hidden in (f".{number}_thumb.png", f"._{number}.png"):
            Image.new("RGB", (6, 4), "magenta").save(tmp_path / hidden)
    frames = read_frames(tmp_path, 8)
    assert [frame[0, 0].tolist() for frame in frames] == [
        [30 * n] * 3 for n in range(8)
    ]


def test_a_pipe_is_no_clip(tmp_path):
    os.mkfifo(tmp_path / "clip.mp4")
    with pytest.raises(VideoError, match="it is a pipe, not a file"):
        read_frames(tmp_path / "clip.mp4", 2)


def test_a_folder_of_frames_is_a_clip(tmp_path):
    for number in range(12):
        (tmp_path / f"frame{number}.png").write_bytes(make_image(number))
    (tmp_path / "notes.txt").write_text("no frame")
    found = [frame[0, 0, 0] for frame in read_frames(tmp_path, 8)]
    assert found == [int((i + 0.5) * 12 / 8) for i in range(8)]
    (tmp_path / "frame0.png").write_bytes(b"no image")
    with pytest.raises(VideoError, match=r"frame0\.png: not an image"):
        read_frames(tmp_path, 8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(VideoError, match="holds no image"):
        read_frames(tmp_path / "empty", 8)


def test_files_that_do_not_decode_raise(tmp_path):
    whole = make_clip(tmp_path / "whole.mp4", STEADY, options={"movflags": "faststart"})
    content = whole.read_bytes()
    for name, corrupt in {
        "text.mp4": b"no video",
        "empty.mp4": b"",
        "head.mp4": content[: len(content) // 3],
    }.items():
        (tmp_path / name).write_bytes(corrupt)
        with pytest.raises(VideoError):
            read_frames(tmp_path / name, 8)
    with pytest.raises(VideoError):
        read_frames(tmp_path / "nowhere.mp4", 8)


def test_a_file_with_only_sound_raises(tmp_path):
    av = pytest.importorskip("av")
    file = tmp_path / "sound.wav"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        samples = np.zeros((1, 800), np.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="no image, only sound"):
        read_frames(file, 8)


def test_without_pyav_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(UserError, match=r"pip install 'vilem-jax\[video\]'"):
        read_frames(tmp_path / "a.mp4", 8)


@pytest.mark.realdata
def test_real_clips_are_sought_exactly(shared_folder):
    pytest.importorskip("av", reason="no PyAV: decoding of videos NOT tested")
    files = sorted((shared_folder / "data" / "videos").glob("*.mp4"))
    assert len(files) == 13
    for file in files:
        frames = all_frames(file)
        indices = [int((i + 0.5) * len(frames) / 8) for i in range(8)]
        found = read_frames(file, 8)
        for frame, index in zip(found, indices, strict=True):
            np.testing.assert_array_equal(frame, frames[index])

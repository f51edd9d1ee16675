"""The frames of a video that represent it, and how they are decoded, with PyAV.

The frames are those at the middle of `num_frames` equal intervals of the clip's
duration. Times are the timestamps in the file, so the frame rate may vary. If a clip
has fewer frames, some are repeated.
"""

import bisect
import contextlib
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vilem_jax.data.images import MAX_PIXELS, ImageError, decode
from vilem_jax.errors import UserError
from vilem_jax.files import MAX_IMAGE_BYTES, open_input, read_input, reason

# Of a folder with the frames of a clip.
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


class VideoError(ValueError):
    """A video that cannot be decoded."""


def read_frames(path: Path, num_frames: int) -> list[np.ndarray]:
    """The frames that represent a video, or a folder of images.

    Args:
      path: a file that FFmpeg reads, or a folder of frames at equal distances in time,
        in the order of their names with numbers as numbers (2.jpg before 10.jpg).
      num_frames: F, 1 or more.

    Returns:
      F arrays uint8 [H, W, 3], upright, in order; a repeated frame is the same array.

    Raises:
      VideoError: if it is missing, corrupt, truncated, or has no images.
      UserError: if it is a video file and PyAV is not installed.
    """
    if path.is_dir():
        return _frames_of_folder(path, num_frames)
    try:
        import av.error
    except ImportError:
        raise UserError(
            "decoding videos needs PyAV: pip install 'vilem-jax[video]', or give each "
            "clip as a folder of its frames"
        ) from None
    try:
        open_input(path).close()  # FFmpeg would wait for a pipe
        return _seek_frames(path, num_frames) or _decode_all(path, num_frames)
    except VideoError:
        raise
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        raise VideoError(reason(error)) from error


def middle_frames(times: Sequence[int], end: int, num_frames: int) -> np.ndarray:
    """Indices of the frames visible at the middle of `num_frames` equal intervals.

    Args:
      times: int [N], when each frame appears, ascending, in any unit; N >= 1.
      end: when the last frame disappears, in the same unit; at least times[-1].
      num_frames: F.

    Returns:
      int64 [F], ascending: for i = 0 .. F - 1, the index of the last frame that has
      appeared at times[0] + (i + 1/2) (end - times[0]) / F.
    """
    # Both sides times 2 F: integers, so that rounding cannot change a frame.
    since_start = (np.asarray(times, np.int64) - times[0]) * (2 * num_frames)
    middles = (2 * np.arange(num_frames, dtype=np.int64) + 1) * (end - times[0])
    return np.searchsorted(since_start, middles, side="right") - 1


def _frames_of_folder(path: Path, num_frames: int) -> list[np.ndarray]:
    files = [
        file
        for file in path.iterdir()
        if file.suffix.lower() in FRAME_SUFFIXES and not file.name.startswith(".")
    ]
    if not files:
        raise VideoError("the folder holds no image")
    files.sort(key=lambda file: _numeric_order(file.name))
    indices = middle_frames(range(len(files)), len(files), num_frames).tolist()
    frames = {}
    for index in dict.fromkeys(indices):
        try:
            frames[index] = decode(read_input(files[index], MAX_IMAGE_BYTES))
        except (OSError, ImageError) as error:
            raise VideoError(f"{files[index].name}: {reason(error)}") from error
    return [frames[index] for index in indices]


def _numeric_order(name: str) -> list[str | int]:
    parts = re.split(r"(\d+)", name)
    return [int(part) if part.isdigit() else part for part in parts]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any]]:
    """PyAV's container of a file, and its first video stream."""
    import av

    with av.open(str(path)) as container:
        if not container.streams.video:
            raise VideoError("it has no image, only sound or text")
        stream = container.streams.video[0]
        width, height = stream.width, stream.height
        if width * height > MAX_PIXELS:
            raise VideoError(f"{width}x{height} is above {MAX_PIXELS} pixels")
        yield container, stream


def _timeline(path: Path) -> tuple[list[int], list[int], int] | None:
    """The times in the file, without decoding; None if the file lacks some.

    Returns:
      when each frame appears, ascending, in the stream's unit of time; those of them
      from which decoding may start; when the last frame disappears.

    Raises:
      VideoError: if the file is truncated.
    """
    with _open(path) as (container, stream):
        packets = [packet for packet in container.demux(stream) if packet.size]
        # In MP4 and MOV this is the size of the index; in other formats, an estimate.
        expected = stream.frames if "mp4" in container.format.name else 0
    if len(packets) < expected:
        raise VideoError(f"it is cut short: {len(packets)} of {expected} frames")
    shown = [packet for packet in packets if not packet.is_discard]
    if not shown or any(packet.pts is None for packet in shown):
        return None
    shown.sort(key=lambda packet: packet.pts)
    times = [packet.pts for packet in shown]
    if len(set(times)) < len(times):
        return None
    keyframes = [packet.pts for packet in shown if packet.is_keyframe]
    end = times[-1] + _last_duration(times, shown[-1].duration)
    return times, keyframes, end


def _last_duration(times: Sequence[int], in_file: int | None) -> int:
    """Duration of the last frame: as in the file, else the mean of the others."""
    if in_file and in_file > 0:
        return in_file
    return (times[-1] - times[0]) // max(1, len(times) - 1)


def _seek_frames(path: Path, num_frames: int) -> list[np.ndarray] | None:
    """Frames by their times, with seeks to keyframes; None if one fails.

    Seeking must not change the result: if a frame does not come out, or is corrupt,
    `_decode_all` decides.
    """
    timeline = _timeline(path)
    if timeline is None:
        return None
    times, keyframes, end = timeline
    wanted = [times[index] for index in middle_frames(times, end, num_frames)]
    found: dict[int, np.ndarray] = {}
    with _open(path) as (container, stream):
        decoded, last = container.decode(stream), None
        for time in dict.fromkeys(wanted):
            # The last keyframe up to `time`; a seek helps only if it is ahead.
            index = bisect.bisect_right(keyframes, time) - 1
            if index > 0 and (last is None or keyframes[index] > last):
                container.seek(keyframes[index], stream=stream)
                decoded = container.decode(stream)
            frame = next((f for f in decoded if f.pts is None or f.pts >= time), None)
            if frame is None or frame.pts != time or frame.is_corrupt:
                return None
            found[time], last = _pixels(frame), time
    return [found[time] for time in wanted]


def _decode_all(path: Path, num_frames: int) -> list[np.ndarray]:
    """Frames from decoding the whole clip twice: for the times, for the frames."""
    times, duration = [], None
    for number, frame in enumerate(_all_frames(path)):
        times.append(number if frame.pts is None else frame.pts)
        duration = frame.duration if frame.pts is not None else 1
    if not times:
        raise VideoError("not one frame of it can be decoded")
    if any(after <= before for before, after in itertools.pairwise(times)):
        times, duration = list(range(len(times))), 1  # timestamps are not ascending
    end = times[-1] + _last_duration(times, duration)
    indices = middle_frames(times, end, num_frames).tolist()
    found = {}
    for number, frame in enumerate(_all_frames(path)):
        if number in indices:
            if frame.is_corrupt:
                raise VideoError(f"frame {number} is corrupt")
            found[number] = _pixels(frame)
    return [found[index] for index in indices]


def _all_frames(path: Path) -> Iterator[Any]:
    with _open(path) as (container, stream):
        yield from container.decode(stream)


def _pixels(frame: Any) -> np.ndarray:
    """uint8 [H, W, 3], rotated as the file asks."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # counterclockwise
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels

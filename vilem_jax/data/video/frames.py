"""Frames of a video: which are looked at, and how they are decoded, with PyAV.

`num_frames` are taken at the middle of as many equal intervals of the time that the
clip lasts. Times are those that the file gives each frame, so a variable frame rate is
no matter, and a clip of fewer frames shows some of them more than once.
"""

import bisect
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vilem_jax.data.images import MAX_PIXELS, ImageError, decode
from vilem_jax.errors import UserError

# A folder with the frames of a clip, by their names in order.
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm")


class VideoError(ValueError):
    """A video that cannot be decoded."""


def read_frames(path: Path, num_frames: int) -> list[np.ndarray]:
    """The frames of a video, or of a folder of images, that stand for it.

    Args:
      path: a file that FFmpeg reads, or a folder of frames at equal distances in time,
        ordered by their names with numbers as numbers (2.jpg before 10.jpg).
      num_frames: F, 1 or more.

    Returns:
      F arrays uint8 [H, W, 3], upright, in order; the same array where one is repeated.

    Raises:
      VideoError: it is missing, corrupt, cut short, or without an image.
      UserError: a video file, and PyAV is not installed.
    """
    if path.is_dir():
        return _frames_of_folder(path, num_frames)
    return _frames_of_file(path, num_frames)


def middle_frames(times: Sequence[int], end: int, num_frames: int) -> np.ndarray:
    """Which frame is seen at the middle of each of `num_frames` equal intervals.

    Args:
      times: int [N], when each frame appears, ascending, in any unit; N >= 1.
      end: when the last one disappears, in that unit; not before it appears.
      num_frames: F.

    Returns:
      int64 [F], places in `times`, ascending: of the last frame that has appeared at
      times[0] + (i + 1/2) (end - times[0]) / F, for i = 0 .. F - 1.
    """
    # Both sides times 2 F: whole numbers, so that no frame is lost to rounding.
    since_start = (np.asarray(times, np.int64) - times[0]) * (2 * num_frames)
    middles = (2 * np.arange(num_frames, dtype=np.int64) + 1) * (end - times[0])
    return np.searchsorted(since_start, middles, side="right") - 1


def _frames_of_folder(path: Path, num_frames: int) -> list[np.ndarray]:
    files = [f for f in path.iterdir() if f.suffix.lower() in FRAME_SUFFIXES]
    if not files:
        raise VideoError("the folder holds no image")
    files.sort(key=lambda file: _number_order(file.name))
    places = middle_frames(range(len(files)), len(files), num_frames).tolist()
    frames = {}
    for place in places:
        try:
            if place not in frames:
                frames[place] = decode(files[place].read_bytes())
        except (OSError, ImageError) as error:
            raise VideoError(f"{files[place].name}: {error}") from error
    return [frames[place] for place in places]


def _number_order(name: str) -> list:
    parts = re.split(r"(\d+)", name)
    return [int(part) if part.isdigit() else part for part in parts]


def _frames_of_file(path: Path, num_frames: int) -> list[np.ndarray]:
    try:
        import av
    except ImportError:
        raise UserError(
            "decoding videos needs PyAV: pip install 'vilem-jax[video]', or give each "
            "clip as a folder of its frames"
        ) from None
    try:
        times, starts, end = _timeline(av, path)
        frames = _seek_frames(av, path, times, starts, end, num_frames)
        return frames or _decode_all(av, path, num_frames)
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        if isinstance(error, VideoError):
            raise
        raise VideoError(_first_line(error)) from error


def _open(av, path: Path):
    container = av.open(str(path))
    if not container.streams.video:
        container.close()
        raise VideoError("it has no image, only sound or text")
    stream = container.streams.video[0]
    if stream.width * stream.height > MAX_PIXELS:
        container.close()
        raise VideoError(f"{stream.width}x{stream.height} is above {MAX_PIXELS} pixels")
    return container, stream


def _timeline(av, path: Path) -> tuple[list[int], list[int], int]:
    """When frames appear, by the file and without decoding, in the stream's unit.

    Returns:
      times ascending; those of the frames where decoding may start; when the last one
      disappears. No times where the file does not tell.

    Raises:
      VideoError: the file is cut short.
    """
    container, stream = _open(av, path)
    with container:
        packets = [packet for packet in container.demux(stream) if packet.size]
        # Of MP4 and MOV the number is that of their index; other headers may guess.
        promised = stream.frames if "mp4" in container.format.name else 0
    if len(packets) < promised:
        raise VideoError(f"it is cut short: {len(packets)} of {promised} frames")
    shown = [packet for packet in packets if not packet.is_discard]
    if any(packet.pts is None for packet in shown):
        return [], [], 0
    shown.sort(key=lambda packet: packet.pts)
    times = [packet.pts for packet in shown]
    if not times or len(set(times)) < len(times):
        return [], [], 0
    starts = [packet.pts for packet in shown if packet.is_keyframe]
    return times, starts, times[-1] + _last_duration(times, shown[-1].duration)


def _last_duration(times: Sequence[int], told: int | None) -> int:
    """How long the last frame is seen: as told, else as the others on average."""
    if told and told > 0:
        return told
    if len(times) == 1:
        return 0
    return (times[-1] - times[0]) // (len(times) - 1)


def _seek_frames(av, path, times, starts, end, num_frames) -> list[np.ndarray] | None:
    """Frames by their times, jumping to where decoding may start; None if one fails.

    A jump must change nothing: a frame that does not come out, or not whole, sends us
    to `_decode_all`.
    """
    if not times:
        return None
    places = middle_frames(times, end, num_frames)
    wanted = [times[place] for place in places]
    container, stream = _open(av, path)
    found: dict[int, np.ndarray] = {}
    with container:
        decoded, last = container.decode(stream), None
        for time in dict.fromkeys(wanted):
            jump = bisect.bisect_right(starts, time) - 1
            if jump > 0 and (last is None or starts[jump] > last):
                container.seek(starts[jump], stream=stream)
                decoded = container.decode(stream)
            frame = next((f for f in decoded if f.pts is None or f.pts >= time), None)
            if frame is None or frame.pts != time or frame.is_corrupt:
                return None
            found[time], last = _pixels(frame), time
    return [found[time] for time in wanted]


def _decode_all(av, path: Path, num_frames: int) -> list[np.ndarray]:
    """Frames by what decoding the whole clip says: once for times, once for frames."""
    times, duration = [], None
    for number, frame in enumerate(_all_frames(av, path)):
        times.append(number if frame.pts is None else frame.pts)
        duration = frame.duration if frame.pts is not None else 1
    if not times:
        raise VideoError("not one frame of it can be decoded")
    if any(after <= before for before, after in itertools.pairwise(times)):
        times, duration = list(range(len(times))), 1  # the file's times make no sense
    end = times[-1] + _last_duration(times, duration)
    places = middle_frames(times, end, num_frames).tolist()
    found = {}
    for number, frame in enumerate(_all_frames(av, path)):
        if number in places:
            if frame.is_corrupt:
                raise VideoError(f"frame {number} is corrupt")
            found[number] = _pixels(frame)
    return [found[place] for place in places]


def _all_frames(av, path: Path) -> Iterator:
    container, stream = _open(av, path)
    with container:
        yield from container.decode(stream)


def _pixels(frame) -> np.ndarray:
    """uint8 [H, W, 3], turned as the file says."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # counterclockwise
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _first_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:200].lower()

"""Text-video retrieval, zero-shot: a clip is the mean of a few of its frames.

Section 4 of the paper: 8 uniform frames and the mean of their features. A frame goes
through the image tower and its projection; the projected frames are averaged, and the
mean is brought to unit length. Then clips are retrieved as images are.
"""

import itertools
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from vilem_jax.data.images import resize_square
from vilem_jax.data.sources.missing import refuse_missing, there_is
from vilem_jax.data.video.clips import MSRVTT_1KA, VideoClips
from vilem_jax.data.video.frames import VideoError
from vilem_jax.errors import UserError
from vilem_jax.evaluation import benchmark
from vilem_jax.evaluation.encoding import Encoder, read_ahead
from vilem_jax.evaluation.recall import recall_table, retrieval_metrics
from vilem_jax.evaluation.timing import measured

NUM_FRAMES = 8


def evaluate_video(
    encoder: Encoder,
    clips: VideoClips,
    *,
    num_frames: int = NUM_FRAMES,
    protocol: str = "",
    allow_missing: bool = False,
) -> dict:
    """Recall of every caption's clip, and of every clip's captions.

    Args:
      num_frames: F of each clip, at the middle of F equal intervals.
      protocol: "msrvtt-1ka" demands its 1,000 pairs; "" takes any clips.
      allow_missing: leave out clips that are not there or do not decode, with their
        captions, and count them; else they are an error.

    Returns:
      {"t2v": {"r1", "r5", "r10", "median_rank"}, "v2t": {the same}, "rsum", "clips",
      "captions", "left_out": [{"clip", "why"}], "protocol", "measured" (see
      `timing.measured`)}: recalls in per cent, ranks from 1, ties count against the
      model.

    Raises:
      UserError: not the pairs of `protocol`, a clip that is missing or does not decode,
        no clip at all.
    """
    clips.check_protocol(protocol)
    missing = [name for i, name in enumerate(clips.clips) if clips.file(i) is None]
    where = f"of {clips.name} in {clips.folder}"
    near = there_is(clips.near(missing[0])) if missing else ""
    # Before an hour of decoding.
    refuse_missing(
        "clips", missing, len(clips), where, allow_missing=allow_missing, near=near
    )
    encoder = encoder.timed()
    read = _frame_reader(clips, num_frames, encoder.image_size, allow_missing)
    found = read_ahead(read, encoder.progress(range(len(clips)), "clip"))
    taken, left_out = [], []
    frames = encoder.project_frames(_good_frames(found, clips, taken, left_out))
    video_embedding = clip_embeddings(frames, num_frames, encoder.parts)
    captions_of = [clips.captions[index] for index in taken]
    captions = list(itertools.chain(*captions_of))
    text_embedding = encoder.encode_captions(captions)
    clip_of_text = np.repeat(range(len(taken)), [len(each) for each in captions_of])
    rows = (video_embedding, text_embedding, clip_of_text)
    metrics = retrieval_metrics(*rows, clock=encoder.clock)
    stated = {
        "name": protocol or "clips",
        "data": clips.name,
        "split": clips.split,
        "clips_left_out": len(left_out),
        "captions_left_out": clips.num_pairs - len(captions),
        "frames": num_frames,
        "frame_places": "the middle of equal intervals of the clip's time",
        "frame_resize": "squashed to the square, bicubic, no crop",
        "clip": "mean of the projected frames, then unit length",
        **encoder.protocol,
        "v2t": "the best-ranked of the clip's captions",
        "ties": "count against the model",
    }
    if clips.notes:
        stated["notes"] = list(clips.notes)
    return {
        "t2v": metrics["t2i"],
        "v2t": metrics["i2t"],
        "rsum": metrics["rsum"],
        "clips": len(taken),
        "captions": len(captions),
        "left_out": left_out,
        "protocol": stated,
        "measured": measured(encoder),
    }


def clip_embeddings(frames: np.ndarray, num_frames: int, parts: int = 1) -> np.ndarray:
    """Mean of each clip's frames, then unit length: float32 [N F, E] -> [N, E].

    Args:
      frames: projected frames, not of unit length, those of a clip side by side.
      parts: equal parts of a row, each of which gets the same length (`Encoder.parts`).
    """
    width = frames.shape[-1]
    means = frames.reshape(-1, num_frames, width).astype(np.float64).mean(1)
    means = means.reshape(-1, parts, width // parts)
    lengths = np.linalg.norm(means, axis=-1, keepdims=True) * parts**0.5
    units = means / np.maximum(lengths, 1e-12)
    return units.reshape(-1, width).astype(np.float32)


def _frame_reader(
    clips: VideoClips, num_frames: int, size: int, allow_missing: bool
) -> Callable[[int], list[np.ndarray] | VideoError]:
    """`read(index)`: the frames of a clip, uint8 [R, R, 3], or why there are none."""

    def read(index: int) -> list[np.ndarray] | VideoError:
        try:
            frames = clips.read_frames(index, num_frames)
        except VideoError as error:
            if allow_missing:
                return error
            raise UserError(
                f"clip {clips.clips[index]} of {clips.name} cannot be decoded "
                f"({error}): fix it, or leave it out with --allow-missing"
            ) from error
        return [resize_square(frame, size) for frame in frames]

    return read


def _good_frames(
    found: Iterable, clips: VideoClips, taken: list[int], left_out: list[dict]
) -> Iterator[np.ndarray]:
    """All frames one after another; notes which clips they are of, and the others."""
    for index, frames in enumerate(found):
        if isinstance(frames, VideoError):
            left_out.append({"clip": clips.clips[index], "why": str(frames)})
            continue
        taken.append(index)
        yield from frames
    if not taken:
        first = f"{left_out[0]['clip']}: {left_out[0]['why']}"
        raise UserError(f"not one clip of {clips.name} can be decoded ({first})")


def video_tables(metrics: dict) -> list[benchmark.Table]:
    """Recalls of clips by captions, and back."""
    protocol = metrics["protocol"]
    counts = f"{metrics['clips']} clips, {metrics['captions']} captions"
    if left_out := protocol["clips_left_out"]:
        counts += f"; {left_out} LEFT OUT"
    counts += f"; {protocol['name']}, {protocol['frames']} frames a clip"
    ways = {"t2v": "text to video", "v2t": "video to text"}
    return [recall_table(metrics, ways, counts)]


def _open(options: Namespace, _) -> benchmark.Opened:
    clips = VideoClips(options.data, options.videos, options.split)
    clips.check_protocol(options.protocol)
    names = ("num_frames", "protocol", "allow_missing")
    return benchmark.Opened((clips,), {name: getattr(options, name) for name in names})


def _open_data_set(data_set, files, images, allow_missing: bool) -> benchmark.Opened:
    settings = {"protocol": MSRVTT_1KA, "allow_missing": allow_missing}
    return benchmark.Opened((VideoClips(files[0], images),), settings)


BENCHMARK = benchmark.Benchmark(
    options=(
        "model",
        benchmark.option(
            "--data",
            required=True,
            metavar="FILE",
            help="captions: JSON lines with 'clip_name', a CSV file with 'video_id', "
            "or a JSON list with 'video'",
        ),
        benchmark.option(
            "--videos",
            metavar="FOLDER",
            help="of the clips, files or folders of frames; that of --data by default",
        ),
        benchmark.option(
            "--split", default="", help='rows of --data with this "split"'
        ),
        benchmark.option(
            "--protocol",
            choices=(MSRVTT_1KA,),
            default="",
            help="insist on the benchmark's clips: 1,000 with one caption each",
        ),
        benchmark.option(
            "--frames",
            dest="num_frames",
            metavar="FRAMES",
            type=benchmark.count,
            default=NUM_FRAMES,
            help="of each clip; 8",
        ),
        "text_length",
        benchmark.option(
            "--allow-missing",
            action="store_true",
            help="leave out clips that are missing or do not decode, and count them",
        ),
        "out",
    ),
    open=_open,
    evaluate=evaluate_video,
    tabulate=video_tables,
    warnings=lambda metrics: (
        f"left out {clip['clip']}: {clip['why']}" for clip in metrics["left_out"]
    ),
    data_sets=(
        benchmark.DataSet(
            "msrvtt",
            "MSR-VTT 1k-A, text and video",
            ("msrvtt/MSRVTT_JSFUSION_test.csv", "msrvtt/msrvtt_test.jsonl"),
            ("msrvtt/videos/all", "msrvtt/videos", "msrvtt"),
        ),
    ),
    open_data_set=_open_data_set,
)

"""`vilem evaluate video`: text-video retrieval on clips with captions."""

import argparse
import sys

from vilem_jax.cli.evaluate_options import (
    add_out,
    add_text_length,
    check_out,
    of_model,
    open_encoder,
    tell,
)
from vilem_jax.cli.options import add_model, count


def add_verb(measures) -> None:
    video = measures.add_parser(
        "video",
        help="recall of clips by captions and back, from a few frames",
        allow_abbrev=False,
    )
    add_model(video)
    video.add_argument(
        "--data",
        required=True,
        metavar="FILE",
        help="captions: JSON lines with 'clip_name', a CSV file with 'video_id', or a "
        "JSON list with 'video'",
    )
    video.add_argument(
        "--videos",
        metavar="FOLDER",
        help="of the clips, files or folders of frames; that of --data by default",
    )
    video.add_argument("--split", default="", help='rows of --data with this "split"')
    video.add_argument(
        "--protocol",
        choices=("msrvtt-1ka",),
        default="",
        help="insist on the benchmark's clips: 1,000 with one caption each",
    )
    video.add_argument("--frames", type=count, default=8, help="of each clip; 8")
    add_text_length(video)
    video.add_argument(
        "--allow-missing",
        action="store_true",
        help="leave out clips that are missing or do not decode, and count them",
    )
    add_out(video)
    video.set_defaults(verb=_video)


def _video(options: argparse.Namespace) -> None:
    from vilem_jax.data.video.clips import VideoClips
    from vilem_jax.evaluation.video import evaluate_video
    from vilem_jax.report.tables import video_table

    clips = VideoClips(options.data, options.videos, options.split)
    clips.check_protocol(options.protocol)
    check_out(options)
    metrics = evaluate_video(
        open_encoder(options),
        clips,
        num_frames=options.frames,
        protocol=options.protocol,
        allow_missing=options.allow_missing,
        show_progress=sys.stderr.isatty(),
    )
    metrics["protocol"] = of_model(options) | metrics["protocol"]
    tell(options, video_table(metrics), metrics)
    for clip in metrics["left_out"]:
        print(f"vilem: left out {clip['clip']}: {clip['why']}", file=sys.stderr)

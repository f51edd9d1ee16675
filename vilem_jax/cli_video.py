"""`vilem evaluate video`: text-video retrieval on clips with captions."""

import argparse
import sys

from vilem_jax.cli_arguments import add_model, count, open_model
from vilem_jax.config import UserError


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
    video.add_argument(
        "--text-length", type=count, help="tokens of a caption; the run's by default"
    )
    video.add_argument(
        "--allow-missing",
        action="store_true",
        help="leave out clips that are missing or do not decode, and count them",
    )
    video.add_argument("--out", metavar="FILE.json", help="the figures as JSON")
    video.set_defaults(verb=_video)


def _video(options: argparse.Namespace) -> None:
    from vilem_jax.data.videos import VideoClips
    from vilem_jax.evaluation.video import evaluate_video
    from vilem_jax.files import check_writable, write_json
    from vilem_jax.report.tables import measured_lines, video_table

    clips = VideoClips(options.data, options.videos, options.split)
    clips.check_protocol(options.protocol)
    if options.out:
        check_writable(options.out)
    model = open_model(options)
    longest = model.config.model.text.max_positions
    length = options.text_length or model.config.evaluation.text_length
    if not 3 <= length <= longest:
        raise UserError(f"--text-length={length} must lie between 3 and {longest}")
    figures = evaluate_video(
        model.encoder,
        model.tokenizer,
        clips,
        text_length=length,
        num_frames=options.frames,
        protocol=options.protocol,
        allow_missing=options.allow_missing,
        show_progress=sys.stderr.isatty(),
    )
    about = {"model": options.model, "weights": options.weights}
    figures["protocol"] = about | figures["protocol"]
    print(video_table(figures))
    print(measured_lines(figures))
    for clip in figures["left_out"]:
        print(f"vilem: left out {clip['clip']}: {clip['why']}", file=sys.stderr)
    if options.out:
        write_json(options.out, figures)

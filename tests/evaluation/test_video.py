"""Text-video retrieval: what stands for a clip, the metric, and what is left out."""

import collections
import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluation.colours import colour_encoder, colour_model, write_image
from vilem_jax import api
from vilem_jax.cli.main import main
from vilem_jax.data.video.clips import VideoClips
from vilem_jax.errors import UserError
from vilem_jax.evaluation.video import clip_embeddings, evaluate_video
from vilem_jax.models.vision import normalize

RGB = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def write_clips(folder, *, name="clips.jsonl"):
    """Three clips as folders of frames: mostly red, green and blue."""
    lines = []
    for number, (colour, rgb) in enumerate(RGB.items()):
        for frame in range(4):
            shade = RGB["blue" if colour == "red" else "red"] if frame == 0 else rgb
            write_image(folder / f"video{number}" / f"{frame}.png", shade)
        lines.append({"clip_name": f"video{number}", "caption": f"{colour} thing"})
    (folder / name).write_text("\n".join(map(json.dumps, lines)))
    return folder / name


def test_a_clip_is_the_mean_of_projected_frames():
    frames = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float32)
    found = clip_embeddings(frames, 3)
    for clip in range(2):
        total = np.zeros(5)
        for frame in range(3):
            total += frames[3 * clip + frame]
        expected = total / np.sqrt(np.sum(total**2))
        np.testing.assert_allclose(found[clip], expected, rtol=1e-6)
    # Unit length before the mean would be another embedding.
    units = frames / np.linalg.norm(frames, axis=1, keepdims=True)
    assert np.abs(clip_embeddings(units, 3) - found).max() > 1e-3
    assert np.isfinite(clip_embeddings(np.zeros((3, 5)), 3)).all()


def test_projected_frames_are_embeddings_before_unit_length(encoder, model, config):
    rng = np.random.default_rng(0)
    pixels = list(rng.integers(0, 256, (5, 16, 16, 3), dtype=np.uint8))
    projected = encoder.project_frames(iter(pixels))
    lengths = np.linalg.norm(projected, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 1e-3
    np.testing.assert_allclose(
        projected / lengths, encoder.encode_pixels(pixels), atol=1e-6
    )
    seen = model.image_features(
        normalize(jnp.asarray(pixels), config.augment)
    ).class_feature
    expected = model.image_projection(seen)
    np.testing.assert_allclose(projected, expected, atol=1e-5)


# Rows: clips; columns: their captions. Every row has the same length, so that scores
# are these numbers up to a factor. Ties in rows and in columns.
HAND_MADE = np.array(
    [
        [4, 1, 2, 4],
        [1, 4, 4, 2],
        [4, 4, 1, 2],
        [2, 4, 1, 4],
    ],
    np.float32,
)
# Clips scored at least as high as the right one, column by column; and row by row.
T2V_RANKS, V2T_RANKS = (2, 3, 4, 2), (2, 2, 4, 2)


class HandMade:
    """Clips, captions and an encoder that give `HAND_MADE` as scores."""

    name, split, clips, notes = "hand", "", tuple("abcd"), ()
    captions = tuple((letter,) for letter in "wxyz")
    num_pairs, folder, cleaning, keeps_sep = 4, "", "albef", True

    def __len__(self):
        return 4

    def check_protocol(self, protocol):
        pass

    def file(self, index):
        return index

    def read_frames(self, index, num_frames):
        return [np.full((3, 4, 3), index, np.uint8)] * num_frames

    def encode(self, captions, length):
        return np.array(["wxyz".index(caption) for caption in captions])[:, None]

    def encoder(self):
        programs = {
            "frames": lambda _, pixels: HAND_MADE[pixels[:, 0, 0, 0]],
            "texts": lambda _, tokens: np.eye(4, dtype=np.float32)[tokens[:, 0]],
        }
        return dataclasses.replace(colour_encoder(), tokenizer=self, programs=programs)


def test_the_metric_on_a_hand_made_matrix_with_ties():
    hand = HandMade()
    metrics = evaluate_video(hand.encoder(), hand, num_frames=2)
    for way, ranks in (("t2v", T2V_RANKS), ("v2t", V2T_RANKS)):
        expected = {f"r{k}": 25.0 * sum(r <= k for r in ranks) for k in (1, 5, 10)}
        assert metrics[way] == expected | {"median_rank": float(np.median(ranks))}
    for clip in range(4):
        own = HAND_MADE[clip, clip]
        assert T2V_RANKS[clip] == sum(HAND_MADE[:, clip] >= own)
        assert V2T_RANKS[clip] == sum(HAND_MADE[clip] >= own)


def test_clips_are_found_by_what_most_of_them_shows(tmp_path):
    clips = VideoClips(write_clips(tmp_path), None)
    metrics = evaluate_video(colour_encoder(), clips)
    assert metrics["t2v"] == {"r1": 100.0, "r5": 100.0, "r10": 100.0, "median_rank": 1}
    assert (metrics["clips"], metrics["captions"], metrics["rsum"]) == (3, 3, 600.0)
    assert metrics["protocol"]["frames"] == 8 and metrics["left_out"] == []
    assert metrics["measured"]["seconds"].keys() >= {"similarity", "ranking"}
    first = evaluate_video(colour_encoder(), clips, num_frames=1)
    assert first["protocol"]["frames"] == 1


def test_clips_that_cannot_be_had_are_named(tmp_path):
    file = write_clips(tmp_path)
    (tmp_path / "video1" / "1.png").write_bytes(b"no image")
    encoder = colour_encoder()
    with pytest.raises(
        UserError, match=r"clip video1 of clips cannot .* \(1\.png: not"
    ):
        evaluate_video(encoder, VideoClips(file, None))
    (tmp_path / "video0").rename(tmp_path / "elsewhere")
    clips = VideoClips(file, None)
    with pytest.raises(
        UserError, match=r"1 of 3 clips of clips in .* are missing, the first is video0"
    ):
        evaluate_video(encoder, clips)
    metrics = evaluate_video(encoder, clips, allow_missing=True)
    assert [clip["clip"] for clip in metrics["left_out"]] == ["video0", "video1"]
    stated = metrics["protocol"]
    assert (stated["clips_left_out"], stated["captions_left_out"]) == (2, 2)
    assert (metrics["clips"], metrics["captions"]) == (1, 1)
    (tmp_path / "video2" / "1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="not one clip of clips can be decoded"):
        evaluate_video(encoder, clips, allow_missing=True)


def test_the_command(tmp_path, capsys, monkeypatch):
    model = colour_model()
    file = write_clips(tmp_path)
    arguments = ["evaluate", "video", "--model=RUN", f"--data={file}"]

    monkeypatch.setattr(api, "load", None)  # refused before any model is opened
    for wrong, sentence in (
        (["--protocol=msrvtt-1ka"], "holds 3 pairs of 3 clips"),
        (["--videos=nowhere"], "nowhere is not a folder"),
        ([f"--out={file}/x.json"], "cannot write"),
    ):
        assert main([*arguments, *wrong]) == 2
        printed = capsys.readouterr().err
        assert sentence in printed and printed.count("\n") == 1

    monkeypatch.setattr(api, "load", lambda *_, **__: model)
    out = tmp_path / "video.json"
    assert main([*arguments, f"--out={out}", "--frames=4"]) == 0
    printed = capsys.readouterr().out
    assert "text to video  100.0" in printed and "4 frames a clip" in printed
    written = json.loads(out.read_text())
    assert written["protocol"]["model"] == "RUN" and written["v2t"]["r1"] == 100.0
    assert written["protocol"]["step"] == "last"
    assert main([*arguments, "--text-length=41"]) == 2
    (tmp_path / "video1").rename(tmp_path / "elsewhere")
    assert main([*arguments, "--allow-missing"]) == 0
    printed = capsys.readouterr()
    assert "1 LEFT OUT" in printed.out and "left out video1: missing" in printed.err


@pytest.mark.realdata
def test_real_clips_with_a_tiny_model(shared_folder, encoder, monkeypatch):
    pytest.importorskip("av", reason="no PyAV: real videos NOT tested")
    decoded = collections.Counter()
    read = VideoClips.read_frames

    def counted(self, index, num_frames):
        decoded[index] += 1
        return read(self, index, num_frames)

    monkeypatch.setattr(VideoClips, "read_frames", counted)
    clips = VideoClips(shared_folder / "data" / "videos" / "captions.json", None)
    metrics = evaluate_video(encoder, clips)
    assert (metrics["clips"], metrics["captions"]) == (13, 26)
    assert decoded == dict.fromkeys(range(13), 1)
    assert 0 <= metrics["t2v"]["r1"] <= 100 and metrics["t2v"]["median_rank"] >= 1

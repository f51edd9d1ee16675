"""Captions of clips in the common formats, and the files of the clips."""

import json

import pytest

from tests.data.make_files import make_image
from vilem_jax.data.video.clips import MSRVTT_1KA, VideoClips, read_pairs
from vilem_jax.data.video.frames import VideoError
from vilem_jax.errors import UserError

LAYOUTS = {
    "lines.jsonl": '{"clip_name": "a", "caption": "a dog", "retrieval_key": "ret0"}\n'
    '\n{"clip_name": "b", "caption": "two, \\u00e4"}\n'
    '{"clip_name": "a", "caption": "one dog"}\n',
    "table.csv": "key,vid_key,video_id,sentence\nret0,msr0,a,a dog\n"
    'ret1,msr1,b,"two, ä"\nret2,msr2,a,one dog\n',
    "list.json": '[{"video": "a", "caption": ["a dog", "one dog"], "fps": 8},'
    ' {"video": "b", "caption": "two, ä"}]',
}


def write(folder, name, content):
    file = folder / name
    file.write_bytes(content.encode("utf-8-sig"))
    return file


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_give_the_same_clips(tmp_path, name):
    clips = VideoClips(write(tmp_path, name, LAYOUTS[name]), None)
    assert clips.clips == ("a", "b") and clips.num_pairs == 3
    assert clips.captions == (("a dog", "one dog"), ("two, ä",))


def test_a_split_selects_its_clips(tmp_path):
    rows = [
        {"video": "a", "caption": "x", "split": "test"},
        {"video": "b", "caption": "y", "split": "val"},
    ]
    file = write(tmp_path, "c.json", json.dumps(rows))
    assert VideoClips(file, None, "val").clips == ("b",)
    with pytest.raises(
        UserError, match=r"no clip of the split 'train' \(has: 1 of 'test', 1 "
    ):
        VideoClips(file, None, "train")


def test_clips_are_found_by_file_stem_and_folder(tmp_path):
    rows = [{"video": name, "caption": "x"} for name in ("a.mp4", "b", "c", "d")]
    file = write(tmp_path, "c.json", json.dumps(rows))
    for name in ("a.mp4", "b.avi", "b.txt"):
        (tmp_path / name).touch()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "1.png").write_bytes(make_image(7))
    clips = VideoClips(file, None)
    names = [f and f.name for f in map(clips.file, range(4))]
    assert names == ["a.mp4", "b.avi", "c", None]
    assert clips.read_frames(2, 3)[2][0, 0, 0] == 7
    with pytest.raises(VideoError, match="missing"):
        clips.read_frames(3, 3)
    (tmp_path / "b.mkv").touch()
    with pytest.raises(UserError, match=r"b\.avi and b\.mkv: which is clip b"):
        VideoClips(file, tmp_path).file(1)


def test_spellings_of_one_clip_are_one_clip(tmp_path):
    for name in ("a.mp4", "my clip.avi", "B.MP4", "._a.mp4", "._my clip.avi"):
        (tmp_path / name).touch()
    (tmp_path / "link.mp4").symlink_to("a.mp4")
    names = ("a", "./a.mp4", "x/../a", "my%20clip", "my clip.avi", "b.mp4", "link", "c")
    rows = [{"video": name, "caption": str(i)} for i, name in enumerate(names)]
    clips = VideoClips(write(tmp_path, "c.json", json.dumps(rows)), None)
    assert clips.clips == ("a", "my%20clip", "b.mp4", "link", "c")
    assert clips.captions[:2] == (("0", "1", "2"), ("3", "4"))
    files = [file and file.name for file in map(clips.file, range(5))]
    assert files == ["a.mp4", "my clip.avi", "B.MP4", "link.mp4", None]
    assert clips.near("links") == "link.mp4"


def test_the_protocol_needs_a_thousand_clips(tmp_path):
    def clips(rows):
        lines = [json.dumps({"clip_name": c, "caption": t}) for c, t in rows]
        return VideoClips(write(tmp_path, "c.jsonl", "\n".join(lines)), None)

    rows = [(f"video{i}", f"caption {i}") for i in range(1000)]
    clips(rows).check_protocol(MSRVTT_1KA)
    clips(rows[:999]).check_protocol("")
    for wrong, sentence in (
        (rows[:999], "holds 999 pairs of 999 clips"),
        ([*rows, ("video1000", "x")], "holds 1,001 pairs of 1,001 clips"),
        ([*rows[:999], ("video0", "x")], "holds 1,000 pairs of 999 clips"),
    ):
        with pytest.raises(UserError, match=sentence):
            clips(wrong).check_protocol(MSRVTT_1KA)


def test_files_of_another_format_raise(tmp_path):
    wrong = {
        "": "is empty",
        "a,b\n1,2\n": "none of the known layouts",
        "video_id,sentence\n": "holds no pair",
        "video_id,sentence\na\n": "row at line 2 has 1 fields, the first line has 2",
        "[1]": "record 0 is not an object",
        "[": "is not JSON: line 1",
        "[]": "holds no pair",
        '{"clip_name": "a"}': ": line 1 has no caption",
        '{"caption": "a"}': ": line 1 names no clip",
        '{"clip_name": "a", "caption": []}': ": line 1 has no caption",
        '{"clip_name": "a", "caption": "x"}\n{"clip': "is not JSON: line 2",
    }
    for content, sentence in wrong.items():
        with pytest.raises(UserError, match=sentence):
            read_pairs(write(tmp_path, "file", content))
    with pytest.raises(UserError, match="does not exist"):
        read_pairs(tmp_path / "nothing")
    file = write(tmp_path, "file", LAYOUTS["list.json"])
    with pytest.raises(UserError, match="is not a folder: say with --videos"):
        VideoClips(file, tmp_path / "nowhere")


def test_a_row_with_another_number_of_fields_is_named(tmp_path):
    head = "key,video_id,sentence\nr0,a,a dog\n"
    wrong = {
        "r1,b,a red circle, number 1\n": "row at line 3 has 4 fields, .* has 3: put",
        "r1,b\n": "row at line 3 has 2 fields",
        '\nr1,b,"open\nr2,c,d\n': "is a quotation mark left open",
        'r1,b,"a "dog" runs"\n': "not CSV at line 3",
    }
    for rows, sentence in wrong.items():
        with pytest.raises(UserError, match=sentence):
            read_pairs(write(tmp_path, "a.csv", head + rows))
    with pytest.raises(UserError, match="two columns of one name"):
        read_pairs(write(tmp_path, "a.csv", "video_id,sentence,sentence\na,b,c\n"))
    text = "\n" + head + '\r\n,,\nr1,b,"two, \u2028\x85\nlines"\n \n'
    assert read_pairs(write(tmp_path, "a.csv", text)) == [
        ("a", "a dog", None),
        ("b", "two, \u2028\x85\nlines", None),
    ]


def test_blank_captions_and_other_splits_are_counted(tmp_path):
    rows = [
        {"video": "a", "caption": ["x", " ", "\u200b"], "split": "test"},
        {"video": "b", "caption": "y", "split": "testing"},
    ]
    clips = VideoClips(write(tmp_path, "c.json", json.dumps(rows)), None, "test")
    assert clips.captions == (("x",),)
    assert clips.notes == (
        "2 blank captions left out",
        "rows left out, split is 'test': 1 of 'testing'",
    )
    rows[0]["caption"] = ["", " "]
    with pytest.raises(UserError, match="all of its 2 captions are blank"):
        VideoClips(write(tmp_path, "c.json", json.dumps(rows[:1], indent=1)), None)


def test_one_indented_object_is_a_list_of_one(tmp_path):
    text = json.dumps({"video": "a", "caption": "x"}, indent=2)
    assert read_pairs(write(tmp_path, "c.json", text)) == [("a", "x", None)]

"""The script of long tests runs, prints its table and reports a failure."""

import pytest

from tests import soak


@pytest.fixture
def run(monkeypatch, capsys):
    def run_parts(*arguments):
        monkeypatch.setattr("sys.argv", ["soak.py", *arguments])
        return soak.main(), capsys.readouterr().out

    return run_parts


def test_parts_and_numbers_are_chosen(run, tmp_path):
    file = tmp_path / "soak.md"
    code, table = run(
        "images", "captions", "--images=24", "--captions=9", f"--out={file}"
    )
    assert code == 0 and file.read_text() == table
    date, _, head, _, images, captions = table.splitlines()
    assert "Python" in date and "seed 0" in date and head.startswith("| part |")
    assert images.startswith("| images | held | 24 files, ")
    assert captions.startswith("| captions | held | 9 captions, ")


def test_a_failure_is_a_row_and_exit_code_1(run, monkeypatch):
    def fail(number, chance):
        raise AssertionError(f"{number} is lost\nand more")

    monkeypatch.setitem(soak.PARTS, "steps", fail)
    code, table = run("steps", "--long")
    assert code == 1 and "| steps | **FAILED** | 10000 is lost |" in table


def test_other_parts_are_refused(run):
    with pytest.raises(SystemExit, match="2"):
        run("kill")

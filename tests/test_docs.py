"""Files, names, options and config keys in the documentation exist in the code."""

import argparse
import contextlib
import dataclasses
import importlib
import re
import typing
from pathlib import Path

import pytest

from vilem_jax.cli.main import make_parser
from vilem_jax.config.schema import Config
from vilem_jax.config.sources import SOURCE_KINDS, SourceConfig

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vilem_jax"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
# Where a path in backquotes may begin.
BASES = (ROOT, PACKAGE)
FILE_TYPES = (".py", ".json", ".jsonl", ".npz", ".safetensors", ".zip")
MAX_COLUMNS = 100

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def in_backquotes(page: Path) -> list[str]:
    """Inline code; blocks are left out."""
    without_blocks = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
    return re.findall(r"`([^`\n]+)`", without_blocks)


@every_page
def test_links_lead_to_files(page):
    links = re.findall(r"(?:\]\(|(?:href|src)=\")([^)#\"\s]+)", text_of(page))
    local = [link for link in links if "://" not in link]
    assert not [link for link in local if not (page.parent / link).exists()]


@every_page
def test_files_exist(page):
    """Paths below one of our folders: `training/run.py`, `docs/data.md`."""
    folders = {path.name for base in BASES for path in base.iterdir() if path.is_dir()}
    missing = []
    for code in in_backquotes(page):
        for path in re.findall(r"(?<![\w/.-])([a-z_]+/[\w./-]*)", code.split(":")[0]):
            is_ours = path.split("/")[0] in folders - {"runs"}
            is_file = path.endswith(("/", ".py", ".md", ".sh", ".css", ".html"))
            if (
                is_ours
                and is_file
                and not any((base / path).exists() for base in BASES)
            ):
                missing.append(path)
    assert not missing


@every_page
def test_modules_and_their_names_exist(page):
    """`vilem_jax.a.b.name`, in text and in code, and `a/b.py: name, name`."""
    missing = []
    for dotted in set(re.findall(r"\bvilem_jax(?:\.\w+)+", text_of(page))):
        imported = re.findall(rf"from {dotted} import ([\w, ]+)", text_of(page))
        names = {name.strip() for line in imported for name in line.split(",")}
        missing += [f"{dotted} {name}" for name in names if not exists(dotted, name)]
        missing += [] if exists(dotted) else [dotted]
    for code in in_backquotes(page):
        file, colon, names = code.partition(": ")
        if colon and file.endswith(".py"):
            dotted = "vilem_jax." + file.removeprefix("vilem_jax/")[:-3].replace(
                "/", "."
            )
            missing += [
                f"{dotted} {name}"
                for name in re.findall(r"[A-Za-z_]\w*", names)
                if not exists(dotted, name)
            ]
    assert not missing


def exists(dotted: str, name: str = "") -> bool:
    """Whether `dotted` is a module or a name in one; `name` is in it or in a class."""
    parts = dotted.split(".")
    found = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], start=2):
        if not hasattr(found, part):
            try:
                importlib.import_module(".".join(parts[:number]))
            except ImportError:
                return False
        found = getattr(found, part)
    classes = [value for value in vars(found).values() if isinstance(value, type)]
    return not name or any(hasattr(owner, name) for owner in [found, *classes])


def test_functions_of_the_readme_are_in_their_files():
    """The table "Where is ...?": a file, and the functions that are looked for."""
    table = text_of(ROOT / "README.md").split("## Where is ...?")[1]
    rows = re.findall(r"^\| [^|]+ \| `([\w/.]+)` \| ([^|]+) \|$", table, re.M)
    assert len(rows) >= 8
    for path, functions in rows:
        names = re.findall(r"`(\w+)`", functions)
        files = re.findall(r"`([\w/]+\.py)`", functions) or [path]
        code = "".join(
            text_of(PACKAGE / file) for file in {path, *files} if "." in file
        )
        assert names and (PACKAGE / path).exists()
        for name in names:
            assert re.search(rf"^(?:def|class) {name}\b", code, re.M), (path, name)


def test_subpackages_of_the_architecture_are_the_folders():
    page = text_of(ROOT / "docs" / "architecture.md")
    named = set(re.findall(r"^\| `([\w/]+)/` \|", page, re.M))
    folders = {
        file.parent.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("__init__.py")
        if file.parent != PACKAGE
    }
    assert named == folders


@every_page
def test_options_exist(page):
    """Each `vilem ...` command in a block: its verbs, options and config keys."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.M | re.S)
    shell = "".join(block for language, block in blocks if language in ("", "sh"))
    commands = re.findall(r"^(?:\$ )?vilem (.*)$", shell.replace("\\\n", " "), re.M)
    for command in commands:
        words = command.split("  #")[0].split()
        parser = make_parser()
        while words and words[0] in (verbs := verbs_of(parser)):
            parser = verbs[words.pop(0)]
        with contextlib.suppress(SystemExit):  # a benchmark adds its options late
            parser.parse_known_args(["--help"])
        options = set(parser._option_string_actions) | {"--help"}
        for word in words:
            option = word.strip("[]").partition("=")[0]
            if option.startswith("--config."):
                assert has_key(option.removeprefix("--config.")), (command, option)
            elif option.startswith("--"):
                assert option in options, (command, option)


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


@every_page
def test_config_keys_exist(page):
    """`section.key` and `config.section.key` in backquotes.

    The changelog may name keys that were renamed.
    """
    if page.name == "CHANGELOG.md":
        return
    sections = {field.name for field in dataclasses.fields(Config)} - {"task", "seed"}
    unknown = []
    for code in in_backquotes(page):
        for key in re.findall(r"(?<![\w/.-])(?:config\.)?([a-z_]+\.[a-z_.\d]+)", code):
            is_file = Path(key).suffix in FILE_TYPES
            if key.split(".")[0] in sections and not is_file and not has_key(key):
                unknown.append(key)
    assert not unknown


def has_key(key: str) -> bool:
    """Whether `key` is one of `Config`; sources have names, KEY stands for any."""
    kind: typing.Any = Config
    for part in key.split("."):
        if typing.get_origin(kind) is tuple:  # sources: data.train.NAME.path
            kind = SourceConfig
        elif dataclasses.is_dataclass(kind):
            kinds = SOURCE_KINDS.values() if kind is SourceConfig else [kind]
            hints = {k: v for c in kinds for k, v in typing.get_type_hints(c).items()}
            if part not in hints:
                return part.isupper()
            kind = hints[part]
        else:
            return False
    return True


@every_page
def test_lines_have_one_width(page):
    """Tables, code and lines without a space to break at may be longer."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
    text = re.sub(r"^(    .*|\|.*|<.*)$", "", text, flags=re.M)
    assert not [line for line in text.splitlines() if len(line) > MAX_COLUMNS]

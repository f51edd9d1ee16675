"""The code keeps to the glossary of CONTRIBUTING.md: no word of the old dialect.

The patterns are in CONTRIBUTING.md, one a line, in the block after "Retired words". The
test reads the names of files and folders, and by `ast` all identifiers, arguments,
keyword arguments, and string constants without spaces: config keys, JSON keys, options.
Prose in comments, strings and documentation is read too.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("vilem_jax", "configs", "tests", "benchmarks")
# Without this file, which needs examples of what it looks for.
FILES = sorted(
    file
    for folder in FOLDERS
    for file in (ROOT / folder).rglob("*.py")
    if file != Path(__file__)
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Names that match and stay, each with its reason; `FILE: NAME` stays in that file only.
ALLOWED = {
    "BrokenPipeError": "Python's",
    "BrokenProcessPool": "Python's",
    "frame_places": "a key in the JSON of `vilem evaluate video`",
    "tests/peer_case.py: is_word": "a key in the cases of the PyTorch peer",
    "tests/peer_case.py: places": "a key in the cases of the PyTorch peer",
    "vilem_jax/data/sources/webdataset.py: damage": "a key in index files on disk",
}

# Strings that stay as they are.
ALLOWED_TEXTS = {
    "word logits": "a key in the JSON of `vilem plan`",
    "editor, frozen, with its head at 5 places": "a key in the JSON of `vilem plan`",
}


@cache
def retired_words() -> list[re.Pattern]:
    """The patterns of CONTRIBUTING.md; one without capitals ignores case."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"^### Retired words\n.*?^```\n(.*?)^```", page, re.M | re.S)
    assert block, "CONTRIBUTING.md has no block of retired words"
    return [
        re.compile(line, 0 if re.search("[A-Z]", line) else re.IGNORECASE)
        for line in block.group(1).splitlines()
    ]


def in_words(name: str) -> str:
    """`_maxBad-images.png` -> "max Bad images png"."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return " ".join(re.findall(r"[A-Za-z0-9]+", spaced))


def names_in(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, line) of each identifier and each string constant without spaces."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield name, node.lineno
            case ast.arg(arg=name) | ast.keyword(arg=str(name)):
                yield name, node.lineno
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node.lineno
            case ast.Constant(value=str(text)) if re.fullmatch(r"[\w./=-]+", text):
                yield text, node.lineno


def is_retired(name: str, patterns: list[re.Pattern]) -> bool:
    return any(p.search(in_words(name)) for p in patterns)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_names_keep_to_the_glossary(file):
    patterns = retired_words()
    own_name = str(file.relative_to(ROOT))
    assert not is_retired(own_name, patterns)
    found = {
        f"line {line}: {name}"
        for name, line in names_in(ast.parse(file.read_text(encoding="utf-8")))
        if is_retired(name, patterns)
        if not {name, f"{own_name}: {name}"} & set(ALLOWED)
    }
    assert not found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_prose_keeps_to_the_glossary(file):
    """Comments, docstrings, help texts and messages."""
    found = set()
    for token in tokenize.generate_tokens(
        io.StringIO(file.read_text("utf-8")).readline
    ):
        is_text = token.type == tokenize.STRING and " " in token.string
        is_text = is_text and token.string.strip('"') not in ALLOWED_TEXTS
        if is_text or token.type == tokenize.COMMENT:
            found |= {f"line {token.start[0]}: {m}" for m in in_prose(token.string)}
    assert not found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_keep_to_the_glossary(page):
    """Prose, commands and output in the documentation."""
    assert not in_prose(page.read_text(encoding="utf-8"))


def in_prose(text: str) -> list[str]:
    """The retired words in a text; patterns of whole names do not apply."""
    patterns = [p for p in retired_words() if not p.pattern.startswith("^")]
    return [match.group() for p in patterns if (match := p.search(text))]


def test_retired_words_are_found():
    patterns = retired_words()
    source = "def f(picture, *, max_bad=0): is_word['broken.png']; print('--tell=x')"
    names = [name for name, _ in names_in(ast.parse(source))]
    found = [name for name in names if is_retired(name, patterns)]
    assert sorted(found) == ["--tell=x", "broken.png", "is_word", "max_bad", "picture"]


@pytest.mark.parametrize("name", ["hidden", "slow", "tokens", "replace", "is_editable"])
def test_other_words_pass(name):
    assert not is_retired(name, retired_words())


def test_exceptions_are_in_use():
    names = set()
    for file in FILES:
        found = {name for name, _ in names_in(ast.parse(file.read_text("utf-8")))}
        own_name = str(file.relative_to(ROOT))
        names |= found | {f"{own_name}: {name}" for name in found}
    assert not set(ALLOWED) - names

"""The documentation speaks of files that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def tree_of_readme() -> set[str]:
    """The files of vilem_jax/ that the README's tree names, by their place in it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^vilem_jax/\n(.*?)^configs/", text, re.M | re.S).group(1)
    named, folder = set(), ""
    for indent, name in re.findall(r"^( +)([\w./]+)  ", block, re.M):
        if name.endswith("/"):
            folder = name
        else:
            named.add((folder if len(indent) == 4 else "") + name)
    return named


def test_the_tree_in_the_readme_is_the_package():
    package = ROOT / "vilem_jax"
    files = [*package.rglob("*.py"), *package.rglob("*.css")]
    names = {file.relative_to(package).as_posix() for file in files}
    rooms = {name for name in names if name.endswith("/__init__.py")}
    assert tree_of_readme() == names - rooms


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)", text)
    local = [link for link in links if "://" not in link]
    missing = [link for link in local if not (page.parent / link).exists()]
    assert not missing
    # Paths in backquotes that look like files of this repository.
    named = re.findall(r"`((?:vilem_jax|configs|tests|docs)/[\w./]+?)`", text)
    assert not [path for path in named if not (ROOT / path).exists()]

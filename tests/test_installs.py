"""Versions: what pyproject.toml allows, and what the constraints files install."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = sorted((ROOT / "constraints").glob("py*.txt"))


def requirements() -> list[Requirement]:
    """Of the package and of what `make test` installs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [project["dependencies"], *(extras[e] for e in ("test", "video", "search"))]
    return [Requirement(line) for part in lines for line in part]


@pytest.mark.parametrize("file", CONSTRAINTS, ids=lambda file: file.stem)
def test_constraints_are_exact_public_and_allowed(file):
    lines = file.read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    for pin in pins:
        (version,) = pin.specifier
        # No path, no editable copy; "2.13.0+cpu" is on no public index.
        assert version.operator == "==" and "+" not in version.version and not pin.url
    versions = {
        canonicalize_name(p.name): next(iter(p.specifier)).version for p in pins
    }
    assert "vilem-jax" not in versions
    for needed in requirements():
        version = versions[canonicalize_name(needed.name)]
        assert needed.specifier.contains(version), (needed, version)


def test_there_are_constraints_for_two_pythons():
    assert [file.stem for file in CONSTRAINTS] == ["py311", "py313"]


@pytest.mark.parametrize(
    "name, next_version",
    [
        ("orbax-checkpoint", "1.0"),
        ("flax", "0.13"),
        ("optax", "0.3"),
        ("grain", "0.3"),
        ("cykooz.resizer", "5.0"),
        ("simplejpeg", "2.0"),
    ],
)
def test_the_next_incompatible_version_is_not_installed(name, next_version):
    (needed,) = [one for one in requirements() if one.name == name]
    assert not needed.specifier.contains(next_version)

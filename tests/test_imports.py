"""The code's structure: imports go one way, heavy ones are late, files are short."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vilem_jax"
MAX_LINES = 400

# A module may import from the levels before its own, and from its own subpackage.
# Subpackages on one level do not know each other.
LEVELS = [
    {"errors", "keys", "masking", "typing"},
    {"config"},
    {"files", "progress", "templates"},
    {"parsing", "locks", "integrity"},
    {"data", "models", "objectives", "distributed"},
    {"weights"},
    {"editing"},
    {"evaluation", "runs"},
    {"training", "api", "export"},
    {"planning", "search"},
    {"report"},
    {"cli"},
]
# The files that may import a library, at any position in the file.
ONLY_IN = {
    "tensorflow_datasets": {"data/sources/tfds_files.py"},
    "array_record": {"data/sources/tfds_files.py"},
    "apache_beam": {"data/prepare/beam.py"},
    "av": {"data/video/frames.py"},
    "jinja2": {"templates.py"},
    "ml_collections": {"config/files.py"},
    "transformers": {"data/tokenizer.py"},
    "faiss": {"search/handover.py"},
    "jax2onnx": {"export/onnx_graph.py"},
    "lancedb": {"search/handover.py"},
    "onnxruntime": {"export/onnx_graph.py"},
    "pyarrow": {"data/sources/arrow_files.py", "search/handover.py"},
    "tensorflow": set(),
    "torch": {"weights/pickles.py"},
}
# Not at the top of any file: they are slow to import.
LATE = {
    "apache_beam",
    "array_record",
    "av",
    "faiss",
    "jax2onnx",
    "lancedb",
    "onnxruntime",
    "pyarrow",
    "tensorflow_datasets",
    "torch",
    "transformers",
}
FILES = sorted(PACKAGE.rglob("*.py"))


def subpackage_of(module: str) -> str:
    """vilem_jax.data.images -> data."""
    return module.split(".")[1] if "." in module else "__init__"


def level_of(subpackage: str) -> int:
    return next(
        number for number, subpackages in enumerate(LEVELS) if subpackage in subpackages
    )


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Full names of all that a module imports, relative imports resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, node.module] if node.module else parts)
            # "from vilem_jax import data" imports the subpackage, not the package.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def arrow_fault(importer: str, imported: str) -> str | None:
    """Why module `importer` may not import `imported`; None if it may."""
    if imported.split(".")[0] != "vilem_jax" or importer == "vilem_jax":
        return None
    ours, theirs = subpackage_of(importer), subpackage_of(imported)
    if ours == theirs:
        return None
    if theirs in ("__init__", "__version__"):
        return None
    if level_of(theirs) < level_of(ours):
        return None
    return f"{importer} imports {imported}"


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_go_one_way(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    module, is_package = module_of(file), file.name == "__init__.py"
    found = set(imports(tree, module, is_package))
    assert [fault for name in found if (fault := arrow_fault(module, name))] == []
    own_name = str(file.relative_to(PACKAGE))
    for name in {name.split(".")[0] for name in found}:
        assert own_name in ONLY_IN.get(name, {own_name}), f"{own_name}: {name}"
    early = {
        name.split(".")[0]
        for node in tree.body
        for name in imports(ast.Module([node], []), module, is_package)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not early & LATE


def test_data_knows_no_jax():
    for file in (PACKAGE / "data").rglob("*.py"):
        names = imports(ast.parse(file.read_text()), module_of(file), False)
        assert not {name.split(".")[0] for name in names} & {"jax", "flax"}, file


def test_a_wrong_arrow_is_found():
    relative = ast.parse("from ..training import step\nfrom . import pairs")
    found = list(imports(relative, "vilem_jax.evaluation.encoding", False))
    assert found == ["vilem_jax.training.step", "vilem_jax.evaluation.pairs"]
    faults = [arrow_fault("vilem_jax.evaluation.encoding", name) for name in found]
    assert faults == [
        "vilem_jax.evaluation.encoding imports vilem_jax.training.step",
        None,
    ]
    assert arrow_fault("vilem_jax.models.vilem", "vilem_jax.objectives.editing")
    assert arrow_fault("vilem_jax.search.index", "vilem_jax.report.html")
    assert not arrow_fault("vilem_jax.training.run", "vilem_jax.distributed.mesh")
    # "from vilem_jax import api" in an __init__ of a subpackage counts as api.
    package = ast.parse("from .. import api")
    (name,) = imports(package, "vilem_jax.data", True)
    assert arrow_fault("vilem_jax.data", name)


def source_files() -> list[Path]:
    folders = ("vilem_jax", "configs", "tests", "launch", "docs", "benchmarks")
    return [file for folder in folders for file in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("file", source_files(), ids=lambda f: str(f.relative_to(ROOT)))
def test_no_file_is_too_long(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    assert file.stem not in ("utils", "common", "helpers")


def test_help_needs_neither_jax_nor_anything_slow():
    script = (
        "import sys, vilem_jax, vilem_jax.cli.main\n"
        "try:\n    vilem_jax.cli.main.main(['--help'])\n"
        "except SystemExit: pass\n"
        "slow = {'jax', 'flax', 'transformers', 'torch', 'grain', 'PIL', 'orbax',\n"
        "        'jinja2'}\n"
        "sys.exit(', '.join(slow & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

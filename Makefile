# The commands people need; `make` lists them. Environments and calls, no logic.
#
#   make test PYTHON=python3.13     another Python (3.12 or newer advised, 3.11 works)
#   make test PYTHON=python3.13 CONSTRAINTS=constraints/py313.txt
#                                   the exact versions that the tests passed with

PYTHON ?= python3
# One environment for the demo, and one per Python version for the tests.
VENV := .venv
TEST_VENV := $(VENV)-$(notdir $(PYTHON))
EXTRAS_VENV := $(VENV)-extras
# Python compiles modules when they are imported; most of what is installed never is.
PIP_INSTALL := -m pip install --disable-pip-version-check --quiet --no-compile
# A file of exact versions for the demo's and the tests' environment; empty: the newest
# that pyproject.toml allows.
CONSTRAINTS ?=
PIP_CONSTRAINTS := $(addprefix --constraint=,$(CONSTRAINTS))
# The parity tests compare with it; the package does not use it. Newer versions work too.
TORCH ?= torch==2.13.0
# Two processes, because most of the time is compilation; the tests of one file share
# compiled programs. tests/conftest.py sets the order: files with slow tests first.
PYTEST_OPTIONS ?= --numprocesses=2 --dist=loadfile --no-loadscope-reorder
SOURCES := vilem_jax configs tests benchmarks
export PYTHONUNBUFFERED := 1

.PHONY: help demo test test-extras check-all soak bench bench-gpu lint format clean python

help:
	@echo "make demo         install into $(VENV), train and evaluate on the embedded data"
	@echo "make test         install the test dependencies into $(TEST_VENV), run the tests;"
	@echo "                  TESTS=tests/models runs some of them"
	@echo "make test-extras  the tests that need Apache Beam or ONNX, in $(EXTRAS_VENV)"
	@echo "make lint         check style (ruff) and types (pyright)"
	@echo "make format       format, and fix what ruff can fix"
	@echo "make check-all    lint, test-extras, and test with the exact versions of Python 3.11"
	@echo "                  (PYTHON311=...) and 3.13 (PYTHON313=...): before a release"
	@echo "make soak         kills, full disks, fuzzed inputs, many steps: minutes, or half an"
	@echo "                  hour with SOAK=--long; docs/reliability.md"
	@echo "make bench        benchmarks on this CPU, into $(BENCH_OUT); bench-gpu: on a GPU"
	@echo "make clean        remove environments and caches; runs/ stays"

demo: $(VENV)/installed
	$(VENV)/bin/vilem demo --out=runs/demo $(DEMO)

test: $(TEST_VENV)/installed
	$(TEST_VENV)/bin/python -m pytest $(PYTEST_OPTIONS) $(TESTS)

# Beam needs older versions of protobuf, Pillow and pyarrow, and jax2onnx of Orbax, so
# these extras have a separate environment.
test-extras: $(EXTRAS_VENV)/installed
	$(EXTRAS_VENV)/bin/python -m pytest tests/data/prepare/test_local.py \
	  tests/export/test_compiled.py -k "beam or onnx"

# Everything that must pass before a release: no test is left out, slow ones neither, with
# the exact versions of both constraints files.
PYTHON311 ?= python3.11
PYTHON313 ?= python3.13
check-all: lint test-extras
	$(MAKE) test PYTHON=$(PYTHON311) CONSTRAINTS=constraints/py311.txt
	$(MAKE) test PYTHON=$(PYTHON313) CONSTRAINTS=constraints/py313.txt

soak: $(TEST_VENV)/installed
	JAX_PLATFORMS=cpu $(TEST_VENV)/bin/python tests/soak.py $(SOAK)

# The tables of docs/performance.md for this machine, into BENCH_OUT. PEER names the
# PyTorch implementation to compare whole steps with; without it that table is left out.
BENCH_OUT ?= runs/bench
PEER ?= $(VILEM_SHARED)/peer/torch_vilem.py
BENCH := $(TEST_VENV)/bin/python benchmarks
bench: $(TEST_VENV)/installed
	$(BENCH)/search.py --out=$(BENCH_OUT)
	$(BENCH)/top_k.py --out=$(BENCH_OUT)
	JAX_PLATFORMS=cpu $(BENCH)/flops.py --out=$(BENCH_OUT)
	JAX_PLATFORMS=cpu $(BENCH)/collectives.py --out=$(BENCH_OUT)
	JAX_PLATFORMS=cpu $(BENCH)/compile_time.py --out=$(BENCH_OUT)
	JAX_PLATFORMS=cpu $(BENCH)/steady.py --steps=1000 --out=$(BENCH_OUT)
	$(BENCH)/encode.py --out=$(BENCH_OUT)
	$(BENCH)/evaluate.py --out=$(BENCH_OUT)
	$(BENCH)/fed.py --out=$(BENCH_OUT)
	test ! -e "$(PEER)" || $(BENCH)/step.py --peer="$(PEER)" --out=$(BENCH_OUT)

PAPER := --shape=paper --device=cuda --attention=cudnn --matmul=8192 --copy=4 \
  --out=$(BENCH_OUT)
bench-gpu: $(TEST_VENV)/installed
	$(BENCH)/search.py --out=$(BENCH_OUT)
	$(BENCH)/top_k.py --positions=10240 --out=$(BENCH_OUT)
	$(BENCH)/step.py --against=deterministic --batch=2048 --microbatches=8 $(PAPER)
	$(BENCH)/encode.py --batch=256 --texts=1024 --batches=20 $(PAPER)
	$(BENCH)/evaluate.py --batch=256 --image-size=384 --images=5000 --captions=25000 \
	  --queries=256 $(PAPER)
	$(BENCH)/fed.py --batch=512 --images=4096 --workers=14 --steps=10 $(PAPER)
	test ! -e "$(PEER)" || $(BENCH)/step.py --peer="$(PEER)" --batch=256 $(PAPER)

lint: $(TEST_VENV)/installed
	$(TEST_VENV)/bin/ruff check $(SOURCES)
	$(TEST_VENV)/bin/ruff format --check $(SOURCES)
	$(TEST_VENV)/bin/pyright --pythonpath $(TEST_VENV)/bin/python

format: $(TEST_VENV)/installed
	$(TEST_VENV)/bin/ruff check --fix $(SOURCES)
	$(TEST_VENV)/bin/ruff format $(SOURCES)

clean:
	rm -rf .venv .venv-* build *.egg-info .pytest_cache .ruff_cache .jax_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

python:
	@$(PYTHON) -c '' 2>/dev/null || { \
	  echo "$(PYTHON) does not run: install it, or name another Python," \
	       "as in make test PYTHON=/path/to/python3.13" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "vilem needs Python 3.11 or newer, which $(PYTHON) is not:" \
	       "name one, as in make test PYTHON=python3.13" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make environments: install its venv package" \
	       "(Debian: apt-get install python3-venv)" >&2; exit 2; }

# The demo's environment holds a copy of the package and is installed again when a source
# file changes. The tests run on the files of this folder.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS) $(shell find vilem_jax configs -type f -not -name '*.pyc') | python
	@echo "Installing into $(VENV), which may take minutes ..."
	rm -rf build
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP_INSTALL) $(PIP_CONSTRAINTS) .
	touch $@

$(TEST_VENV)/installed: pyproject.toml $(CONSTRAINTS) | python
	@echo "Installing into $(TEST_VENV), which may take minutes ..."
	test -x $(TEST_VENV)/bin/python || $(PYTHON) -m venv $(TEST_VENV)
	$(TEST_VENV)/bin/python $(PIP_INSTALL) $(PIP_CONSTRAINTS) \
	  --editable '.[test,video,search]' $(TORCH)
	touch $@

$(EXTRAS_VENV)/installed: pyproject.toml | python
	@echo "Installing into $(EXTRAS_VENV), which may take minutes ..."
	test -x $(EXTRAS_VENV)/bin/python || $(PYTHON) -m venv $(EXTRAS_VENV)
	$(EXTRAS_VENV)/bin/python $(PIP_INSTALL) --editable '.[beam,onnx]' pytest pytest-timeout
	touch $@

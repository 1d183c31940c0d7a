# Every target sets itself up on a fresh machine: Python 3.10 or newer, make, and a network for the first install. A C compiler makes it several times faster.
# `make PYTHON=python3.12 …` chooses the Python; `make VENV=/elsewhere …` chooses where the packages go.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
OLD := import sys; sys.exit(sys.version_info < (3, 10) and "dunwu needs Python 3.10 or newer: make PYTHON=python3.12")
SMOKE := runs/smoke
# What the C kernels stand in for, once more in plain torch.
WITHOUT_KERNELS := tests/model tests/rollout tests/train

.PHONY: help r1 r1-zero test smoke lint docs clean
.DEFAULT_GOAL := help

help:
	@echo "make r1        the whole of R1: pages, base, R1-Zero, Dev1 to Dev3, reward models, R1, students, report"
	@echo "make r1-zero   the first part alone: base, GRPO with rule rewards only, evidence, report; minutes"
	@echo "make test      lint, types, doors, every test"
	@echo "make smoke     every stage of both recipes at toy size"
	@echo "make lint      ruff, mypy, import-linter"
	@echo "make docs      checks what the documentation says: links, commands, examples"
	@echo "make clean     removes caches and builds; runs and $(VENV) stay"

r1: $(VENV)/ready
	$(BIN)/dunwu run r1 $(ARGS)

r1-zero: $(VENV)/ready
	$(BIN)/dunwu run r1-zero $(ARGS)

# Two stamps: running needs no developer tools. The folder may be half made by a killed install; both steps repeat.
$(VENV)/ready: pyproject.toml constraints.txt
	@$(PYTHON) -c '$(OLD)'
	@echo "installing into $(VENV); the first time this downloads torch"
	@$(PYTHON) -m venv $(VENV) || { echo "cannot make $(VENV): install Python's venv module (Debian: python3-venv)"; exit 1; }
	$(PIP) -e .
	@touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(PIP) -e ".[dev]"
	@touch $@

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q
	DUNWU_NATIVE=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q $(WITHOUT_KERNELS)

smoke: $(VENV)/ready
	rm -rf $(SMOKE) $(SMOKE)-store
	DUNWU_HOME=$(SMOKE)-store $(BIN)/dunwu run r1-zero --preset tiny --out $(SMOKE)/r1-zero
	DUNWU_HOME=$(SMOKE)-store $(BIN)/dunwu report $(SMOKE)/r1-zero
	DUNWU_HOME=$(SMOKE)-store $(BIN)/dunwu run r1 --preset tiny --out $(SMOKE)/r1
	DUNWU_HOME=$(SMOKE)-store $(BIN)/dunwu report $(SMOKE)/r1

lint: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/ready-dev
	$(BIN)/python -m pytest -q tests/test_docs.py dunwu

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find dunwu tests -name __pycache__ -type d -prune -exec rm -rf {} +

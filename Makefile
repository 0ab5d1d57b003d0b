# Every target does its own set-up: a fresh machine needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# A worker a core, unless WORKERS says how many. Each begins with a run of neighbouring tests, so that modules' fixtures
# are made once, and takes from the others' when it has none left.
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help install demo test test-slow test-all lint check docs bench bench-gpu torture clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@# Where uv can be had, it unpacks all in a fifth of the time. pip adds what is missing, and is enough without it.
	-$(PIP) uv && $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	$(PIP) -e '.[dev]'
	touch $@

install: $(INSTALLED)  ## make .venv with the tested versions of everything

demo: $(INSTALLED)  ## both stages on scikit-learn's handwritten digits, no download
	$(BIN)/ckd-pipeline demo --out demo

test: $(INSTALLED)  ## the tests, without the slow ones
	$(PYTEST) -m 'not slow'
	$(if $(filter check,$(MAKECMDGOALS)),,@echo 'Before a commit: make check, which is lint and these tests.')

test-slow: $(INSTALLED)  ## the slow tests
	$(PYTEST) -m slow

test-all: $(INSTALLED)  ## all tests
	$(PYTEST)

lint: $(INSTALLED)  ## format, lint, types, imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test  ## before every commit

docs: $(INSTALLED)  ## write the losses' entries in docs/losses.md from their docstrings
	$(BIN)/python -m student_train.loss_page docs/losses.md

bench: $(INSTALLED)  ## what the work costs against the bare minimum
	$(BIN)/python -m benchmarks.stage_one
	$(BIN)/python -m benchmarks.streaming
	$(BIN)/python -m benchmarks.stage_two
	$(BIN)/python -m benchmarks.whole_runs
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.allocators
	$(BIN)/python -m benchmarks.streamed_training
	$(BIN)/python -m benchmarks.losses
	$(BIN)/python -m benchmarks.recipe
	$(BIN)/python -m benchmarks.guarantees
	$(BIN)/python -m benchmarks.ledger
	$(BIN)/python -m benchmarks.grid
	$(BIN)/python -m benchmarks.report

bench-gpu: $(INSTALLED)  ## what the card that is here makes of it, in 25 minutes: docs/results/gpu-NAME.json
	$(BIN)/python -m benchmarks.gpu

torture: $(INSTALLED)  ## kill builds, damage and forge stores at random, and see what is left
	$(BIN)/python -m benchmarks.torture
	$(BIN)/python -m benchmarks.fuzz
	$(BIN)/python -m benchmarks.forgery

clean:  ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

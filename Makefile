# Everything runs in its own environment, .venv; each target makes it first if it is missing.
# `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-real kills mutants check ui clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python {v[0]}.{v[1]}: this project needs 3.11, 3.12 or 3.13; say make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(READY)  ## make the environment in .venv

demo: $(READY)  ## baseline, then a small search, on generated faces: a few minutes
	$(BIN)/python -m fakeface_lab.baseline --config experiments/demo.toml --data demo
	$(BIN)/python -m fakeface_lab.tune --config experiments/search-demo.toml --data demo

test: $(READY)  ## all tests that need neither the real images nor many minutes
	$(BIN)/python -m pytest

test-slow: $(READY)  ## the tests that take minutes
	$(BIN)/python -m pytest -m 'slow and not real_data'

test-real: $(READY)  ## the tests on the 1,289 real images (FAKEFACE_DATA names their folder)
	$(BIN)/python -m pytest -n 0 -m real_data

kills: $(READY)  ## a small search and a baseline killed after each of their writes: hours
	for algorithm in random grid bayesian hyperband; do \
	    $(BIN)/python -m tests.cut_at_every_write --engine inline --algorithm $$algorithm || exit 1; done
	for when in before after; do for program in tune baseline; do \
	    $(BIN)/python -m tests.cut_at_every_write --engine inline --program $$program --kind disk --when $$when || exit 1; \
	    done; done
	$(BIN)/python -m tests.cut_at_every_write --program baseline
	$(BIN)/python -m tests.cut_at_every_write --kind worker
	for mode in drop 503; do $(BIN)/python -m tests.lost_replies --one-by-one --mode $$mode || exit 1; done

mutants: $(READY)  ## faults put into a copy of the code, which a test must notice: minutes
	$(BIN)/python -m tests.mutants

check: $(READY)  ## lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

ui: $(READY)  ## serve MLflow's page for the runs of this project on 127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --workers 1 --port 5000 --backend-store-uri sqlite:///$(CURDIR)/mlflow.db

clean:  ## delete the environment and all caches of tools; runs are kept
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

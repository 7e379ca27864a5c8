# Everything runs in an environment of its own, .venv; each target creates it if it is missing.
# `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-services test-slow test-real test-mlflow kills mutants bench check ui clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python {v[0]}.{v[1]}: this project needs 3.11, 3.12 or 3.13; run make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

setup: $(READY)  ## create the environment in .venv

demo: $(READY)  ## train the baseline and run a small search on drawn faces: a few minutes
	$(BIN)/python -m fakeface_lab.baseline --config experiments/demo.toml --data demo
	$(BIN)/python -m fakeface_lab.tune --config experiments/search-demo.toml --data demo

test: $(READY)  ## run the tests that need nothing but Python: minutes
	$(BIN)/python -m pytest

test-services: $(READY)  ## run the tests with MLflow's server, a browser, PostgreSQL, S3 and Ray beside them: minutes
	$(BIN)/python -m pytest -m 'services and not slow and not real_data'

test-slow: $(READY)  ## run the tests that take minutes
	$(BIN)/python -m pytest -m 'slow and not real_data'

test-real: $(READY)  ## run the tests on the 1,289 real images (FAKEFACE_DATA names their folder)
	$(BIN)/python -m pytest -n 0 -m real_data

test-mlflow: $(READY)  ## run the tests of the store with the oldest MLflow that is supported and with the newest: minutes
	$(BIN)/python -m tests.mlflow_versions

kills: $(READY)  ## kill a small search and a baseline after each of their writes: hours
	for algorithm in random grid bayesian hyperband; do \
	    $(BIN)/python -m tests.cut_at_every_write --engine inline --algorithm $$algorithm || exit 1; done
	for when in before after; do for program in tune baseline; do \
	    $(BIN)/python -m tests.cut_at_every_write --engine inline --program $$program --kind disk --when $$when || exit 1; \
	    done; done
	$(BIN)/python -m tests.cut_at_every_write --program baseline
	$(BIN)/python -m tests.cut_at_every_write --kind worker
	for mode in drop 503; do $(BIN)/python -m tests.lost_replies --one-by-one --mode $$mode || exit 1; done

mutants: $(READY)  ## put faults into a copy of the code, which a test must notice: minutes
	$(BIN)/python -m tests.mutants

bench: $(READY)  ## short forms of the benchmarks beside other tools, on drawn faces: minutes; results in benchmarks/results
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python benchmarks/side_by_side.py demo --image-size 64 --epochs 1 --rounds 1 --output benchmarks/results
	$(BIN)/python benchmarks/search_side_by_side.py demo --trials 3 --epochs 2 --seeds 1 --output benchmarks/results
	$(BIN)/python benchmarks/tracking_cost.py --trials 100 1000 --runs 20 --rounds 1 --output benchmarks/results
	$(BIN)/python benchmarks/data_scale.py --images 1000 4000 --steps 20 --output benchmarks/results
	$(BIN)/python benchmarks/decoding.py demo --image-size 64 --rounds 3 --output benchmarks/results

check: $(READY)  ## run linters, type checker and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test test-services

ui: $(READY)  ## serve MLflow's page with this project's runs on 127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow ui --workers 1 --port 5000 --backend-store-uri sqlite:///$(CURDIR)/mlflow.db

clean:  ## delete the environment and the tools' caches; runs are kept
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

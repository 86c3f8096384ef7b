PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= demo-out
FIGURES ?= figures-out
SLOW_TESTS_S ?= 2400
TESTERS ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count() + 1)')

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all test-slow test-gpu test-faults chaos test-ceph check format figures lock bench docs dist clean

help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

install: $(VENV)/.runtime ## the environment, from the lock file

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: requirements.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock requirements-footage.txt $(VENV)/.runtime
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-footage.txt
	@touch $@

demo: install    ## makes the example videos on a local Ray with two backbone actors, judges them, and a page to look at
	$(BIN)/miga generate examples/prompts.jsonl $(OUT) --config jobs/configs/demo.toml
	$(BIN)/miga evaluate $(OUT)

test: $(VENV)/.dev ## the tests (no network, no GPU): a process per core, and one more, for some wait
	$(BIN)/python -m pytest -m "not slow and not gpu" --numprocesses=$(TESTERS) --dist=loadfile --no-loadscope-reorder

test-all: $(VENV)/.dev ## with the slow ones, fault tests included: half an hour
	$(BIN)/python -m pytest -m "not gpu"

test-slow: $(VENV)/.dev ## the slow ones alone, fault tests first, none begun after SLOW_TESTS_S seconds
	$(BIN)/python -m pytest -p tests.budget --budget-s $(SLOW_TESTS_S) --first tests/faults -m "slow and not gpu"

test-gpu: $(VENV)/.dev ## what only a GPU can show
	$(BIN)/python -m pytest -m gpu

test-faults: $(VENV)/.dev ## actors, raylets, nodes, drivers and S3 fail, one at a time, as real processes
	$(BIN)/python -m pytest tests/faults -m "not gpu"

chaos: $(VENV)/.dev ## all of that at random, and more (as root): make chaos CHAOS="--seeds 1-20 --seconds 20"
	$(BIN)/python -m tests.faults.chaos $(CHAOS)

test-ceph: $(VENV)/.dev ## the S3 tests on a Ceph gateway that is unpacked from Debian's packages and started (no root)
	$(BIN)/python infra/ceph/with_rgw.py $(BIN)/python -m pytest -m "s3 and not ray" tests/pipeline

check: $(VENV)/.dev ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev ## puts the code into the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev ## the documentation as a site, docs/_build/html/index.html; a warning is a failure
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

bench: install   ## the figures of docs/benchmarks.md on this machine; the last takes hours, and goes on where it was stopped
	$(BIN)/miga bench model
	$(BIN)/miga bench sampler
	$(BIN)/miga bench memory --profiles paper swift
	$(BIN)/miga bench quality --out training/bench-quality.jsonl

figures: $(VENV)/.dev ## the tables and the picture of docs/evaluation.md: `miga evaluate` and `compare` on videos of the embedded model
	$(BIN)/python docs/evaluation_figures.py $(FIGURES)

lock: $(VENV)/.dev ## resolves pyproject.toml again into the two lock files
	$(BIN)/pip-compile --quiet --strip-extras --no-header --no-emit-index-url --no-emit-find-links -o requirements.lock pyproject.toml
	$(BIN)/pip-compile --quiet --strip-extras --no-header --no-emit-index-url --no-emit-find-links --extra dev -o requirements-dev.lock pyproject.toml
	sed -i 's/^\(torch==[0-9.]*\)+[a-z0-9]*/\1/' requirements.lock requirements-dev.lock

dist: $(VENV)/.dev ## a wheel and an sdist, in dist/
	$(BIN)/python -m build --no-isolation --outdir dist .

clean:           ## removes the environment and the demo
	rm -rf $(VENV) $(OUT) build dist

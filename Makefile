PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
OUT    ?= demo-out

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all check format lock bench clean

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

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	@touch $@

demo: install    ## makes the example videos on a local Ray with two backbone actors, and a page to look at
	$(BIN)/miga generate examples/prompts.jsonl $(OUT) --config jobs/configs/demo.toml

test: $(VENV)/.dev ## the tests (no network, no GPU)
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-all: $(VENV)/.dev ## with the slow ones, and those for a GPU where there is one
	$(BIN)/python -m pytest

check: $(VENV)/.dev ## style, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.dev ## puts the code into the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install   ## the figures of docs/benchmarks.md on this machine; the last takes hours, and goes on where it was stopped
	$(BIN)/miga bench model
	$(BIN)/miga bench sampler
	$(BIN)/miga bench memory --profiles paper swift
	$(BIN)/miga bench quality --out training/bench-quality.jsonl

lock: $(VENV)/.dev ## resolves pyproject.toml again into the two lock files
	$(BIN)/pip-compile --quiet --strip-extras --no-header --no-emit-index-url --no-emit-find-links -o requirements.lock pyproject.toml
	$(BIN)/pip-compile --quiet --strip-extras --no-header --no-emit-index-url --no-emit-find-links --extra dev -o requirements-dev.lock pyproject.toml
	sed -i 's/^\(torch==[0-9.]*\)+[a-z0-9]*/\1/' requirements.lock requirements-dev.lock

clean:           ## removes the environment and the demo
	rm -rf $(VENV) $(OUT)

# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up .venv by themselves.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint fast lowest needle-model clean

PYTHON ?= 3.11
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)
# No hub is needed for anything here, and none is asked.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# uv makes the environment where it is to be had (half a minute); plain pip otherwise.
$(VENV)/.ready: pyproject.toml setup.cfg
	@if command -v uv >/dev/null 2>&1 || python3 -m pip install --quiet uv; then \
	  UV="$$(command -v uv || echo python3 -m uv)"; \
	  $$UV venv --quiet --allow-existing --python $(PYTHON) $(VENV) 2>/dev/null || $$UV venv --quiet --allow-existing $(VENV); \
	  $$UV pip install --quiet --python $(VENV)/bin/python -e '.[test]'; \
	else \
	  python3 -m venv $(VENV) && $(BIN)/python -m pip install --quiet -e '.[test]'; \
	fi
	@touch $@

setup: $(VENV)/.ready  ## make .venv with everything the tests and the demo need

demo: setup  ## the needle benchmark through lmms-eval: a table and two pictures
	$(BIN)/lmms-flexselect demo --output demo_output

test: setup lint fast  ## lint, types and the whole test suite

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fast: setup
	$(BIN)/python -m pytest

needle-model: setup  ## train the tiny Qwen2.5-VL of the needle benchmark from nothing
	$(BIN)/python -m lmms_flexselect.needle.train lmms_flexselect/needle/checkpoints/qwen2_5_vl

clean:
	rm -rf $(VENV) build dist *.egg-info demo_output

# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up .venv by themselves.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint tests lowest scores needle-model chart-model clean

PYTHON ?= 3.11
LOWEST_TRANSFORMERS := 5.2.0
WORKERS ?= 2
# No hub is needed for anything here, and none is asked.
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false
# One thread a process: the models are tiny, and the tests run side by side.
export OMP_NUM_THREADS := 1

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# $(call environment,FOLDER,PACKAGES): uv where it is to be had (half a minute), installed with pip where it is not.
define environment
	@command -v uv >/dev/null || python3 -m uv --version >/dev/null 2>&1 || python3 -m pip install --quiet --user uv \
	  || python3 -m pip install --quiet --user --break-system-packages uv
	@UV="$$(command -v uv || echo 'python3 -m uv')"; \
	  $$UV venv --quiet --allow-existing --python $(PYTHON) $(1) && \
	  $$UV pip install --quiet --python $(1)/bin/python -e '.[test]' $(2)
	@touch $(1)/.ready
endef

.venv/.ready: pyproject.toml setup.cfg
	$(call environment,.venv)

.venv-lowest/.ready: pyproject.toml setup.cfg
	$(call environment,.venv-lowest,transformers==$(LOWEST_TRANSFORMERS))

setup: .venv/.ready  ## make .venv with everything the tests and the demo need

demo: setup  ## the needle benchmark through lmms-eval: a table and two pictures
	.venv/bin/lmms-flexselect demo --output demo_output

test: setup lint tests  ## lint, types and the whole test suite

lint: setup  ## ruff and mypy
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

tests: setup  ## the whole test suite
	.venv/bin/python -m pytest -n $(WORKERS) --dist loadfile

lowest: .venv-lowest/.ready  ## the tests that start neither lmms-eval nor a benchmark, on the lowest transformers allowed
	.venv-lowest/bin/python -m pytest -n $(WORKERS) --dist loadfile -m "not cli and not benchmark"

# lmms-eval exits with 0 when it fails, too; the check looks for what it should have left behind.
scores: setup  ## every family and selector on the needle benchmark, held to tests/expected/needle.yaml
	rm -rf scores_output && mkdir scores_output
	cd scores_output && ../.venv/bin/lmms-eval --config ../run_configs/regression.yaml --include_path ../tasks > lmms_eval.log 2>&1
	.venv/bin/lmms-flexselect scores check scores_output/results --expect tests/expected/needle.yaml

NEEDLE := qwen2_5_vl
needle-model: setup  ## train a tiny model of the needle benchmark from nothing: NEEDLE=qwen2_5_vl, llava_vid or internvl_hf
	.venv/bin/python -m lmms_flexselect.needle.train lmms_flexselect/needle/checkpoints/$(NEEDLE) --family $(NEEDLE)

chart-model: setup  ## train the model that reads a chart, from the needle model of NEEDLE
	.venv/bin/python -m lmms_flexselect.needle.train_chart lmms_flexselect/needle/chart_checkpoints/$(NEEDLE) --family $(NEEDLE)

clean:  ## remove what the commands above made
	rm -rf .venv .venv-lowest build dist *.egg-info demo_output scores_output

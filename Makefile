# Everything that a target needs is set up in a virtual environment of this folder; Python >= 3.10 and make are enough.
#   CUDA=13          the CUDA 13 wheels, in an environment of their own (12, the default, serves Volta to Blackwell)
#   PYTHON=python3.x the interpreter to start from
#   ARGS="..."       more arguments for demo, test and bench

CUDA ?= 12
VENV ?= .venv$(if $(filter-out 12,$(CUDA)),-cuda$(CUDA))
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The first that is new enough; looked for once, and only where it is needed.
PYTHON ?= $(eval PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done))$(PYTHON)
CUH = $(shell find kernels -name '*.cuh')

.PHONY: help demo test lint format bench wheel clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(READY)  ## run a small language model through the paged cache
	$(BIN)/pagedattn demo $(ARGS)

test: $(READY)  ## every test and docstring example; those of a GPU where there is one
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

lint: $(READY)  ## ruff, clang-format and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(CUH),$(BIN)/clang-format --dry-run --Werror $(CUH))
	$(BIN)/mypy

format: $(READY)  ## let ruff and clang-format rewrite the sources
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CUH),$(BIN)/clang-format -i $(CUH))

bench: $(READY)  ## measure on the GPU
	$(BIN)/python -m benchmarks $(ARGS)

wheel: $(READY)  ## the wheel and the sdist, in dist/
	$(BIN)/python -m build

clean:  ## remove all that make has made
	rm -rf .venv .venv-cuda* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find pagedattn tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "Python >= 3.10 is needed; found $$($(or $(PYTHON),python3) --version 2>&1). Name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
	    || { $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; } >/dev/null 2>&1 \
	    || { echo "$(PYTHON) makes no virtual environments. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --disable-pip-version-check --editable '.[cuda$(CUDA),test,dev]'
	@touch $@

# Every target makes what it needs first and does nothing twice.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup serve test lint types fmt bench fuzz pins clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "headrace needs Python 3.11 to 3.13, and %s is %d.%d; name another: make PYTHON=python3.12" % (sys.executable, *sys.version_info[:2]))'
	@# Debian's python3 can lack ensurepip, and leaves half an environment that must not look like a whole one.
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "make: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# The versions that the tests last passed with: a release of somebody else's must not change what a commit does.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

NATIVE := setup.py $(wildcard engine/native/*.cpp engine/native/*.hpp)

.venv/.installed: pyproject.toml constraints.txt $(NATIVE) | $(BIN)/python
	@echo "installing into .venv; the first time this takes minutes" >&2
	@command -v c++ >/dev/null || echo "make: there is no C++ compiler: quantised models will run three to nine times slower; on Debian and Ubuntu: apt install g++, then make clean" >&2
	$(INSTALL) -e .
	@touch $@

.venv/.developed: .venv/.installed
	$(INSTALL) -e '.[dev]'
	@touch $@

.venv-clients/.installed: tests/clients/requirements.txt | $(BIN)/python
	@# Clients whose pins exclude those of .venv, run by tests.
	@rm -rf .venv-clients
	$(BIN)/python -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet --no-compile --disable-pip-version-check -r tests/clients/requirements.txt
	@touch $@

tests/clients/node_modules/.installed: tests/clients/package.json tests/clients/package-lock.json
	@command -v npm >/dev/null || { echo "make: the tests with clients in JavaScript need npm; on Debian and Ubuntu: apt install nodejs npm" >&2; exit 1; }
	npm ci --prefix tests/clients --no-audit --no-fund --loglevel=error
	@touch $@

CLIENTS := .venv-clients/.installed tests/clients/node_modules/.installed

setup: .venv/.developed $(CLIENTS) ## the virtual environment with everything for development

serve: .venv/.installed ## serve the default model on http://127.0.0.1:8000 (more flags: make serve ARGS="--port 9000")
	@exec $(BIN)/headrace serve $(ARGS)

# Whole files, so that a module's fixtures are made once; tests/conftest.py says which come first.
SIDE_BY_SIDE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test: .venv/.developed $(CLIENTS) ## all tests, WORKERS=2 files at a time (some, one after another: make test ARGS="tests/engine -x")
	@command -v promtool >/dev/null || { echo "make: the tests with a real Prometheus need it; on Debian and Ubuntu: apt install prometheus" >&2; exit 1; }
	@command -v chromium >/dev/null || { echo "make: the tests of the pages need Chromium; on Debian and Ubuntu: apt install chromium" >&2; exit 1; }
	@command -v tmux >/dev/null || { echo "make: the tests of headrace chat need tmux; on Debian and Ubuntu: apt install tmux" >&2; exit 1; }
	$(BIN)/python -m pytest $(if $(findstring tests,$(ARGS)),,$(SIDE_BY_SIDE)) $(ARGS)

lint: .venv/.developed ## ruff, format check included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/.developed ## mypy
	$(BIN)/mypy

fmt: .venv/.developed ## format and sort imports
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

bench: .venv/.developed ## our server on this CPU beside the peers that are installed (ARGS="--peers none --rounds 1")
	$(BIN)/python -m benchmarks.cpu $(ARGS)

fuzz: .venv/.developed ## 20,000 requests made from our own /openapi.json, right and wrong (ARGS="--requests 1000 --seed 2")
	$(BIN)/python -m tests.fuzz $(ARGS)

pins: .venv/.developed ## constraints.txt anew, with the newest releases that pyproject.toml allows; torch stays free
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager -e '.[dev]'
	{ echo "# What the tests last passed with, by 'make pins'. torch comes in a build for each device: not named here."; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -ivE '^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z0-9-]+)=='; } > constraints.txt

clean: ## remove the virtual environment and caches
	rm -rf .venv .venv-clients tests/clients/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis

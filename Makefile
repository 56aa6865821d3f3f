# kshot: `make demo` and `make test` need python3 (3.11 or newer) with venv, and PyPI for the first install. No more.

PYTHON ?= python3
VENV ?= .venv
# Test processes, one thread each: on few cores that is faster than one process with many threads.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The library alone, without what the tests and the other commands need: the demo's install.
CORE := $(VENV)/.core

.PHONY: help install demo test check lint docs format clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

install: $(INSTALLED)  ## kshot and its tools, in the tested versions, into .venv

$(CORE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("kshot needs Python 3.11 or newer; $(PYTHON) is %d.%d: make PYTHON=python3.12 ..." % v[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "this Python has no venv: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(INSTALLED): $(CORE)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(CORE)  ## learn letters of scripts never trained on, from one example each (minutes on 2 cores)
	$(BIN)/kshot demo

lint: $(INSTALLED)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test: lint  ## style, types, doctests, examples and tests; KSHOT_DATA=DIR adds those on real data
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS)

check: test  ## the same as test

docs: $(INSTALLED)  ## the documentation site, into site/; stops at a broken link
	$(BIN)/mkdocs build --strict --quiet

format: $(INSTALLED)  ## mend the style where that can be done by a program
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what was built; runs/ stays
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

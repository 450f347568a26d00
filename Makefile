# `make test` installs what it needs first: Python 3.11, make and a package index are enough.
# PEAKLINE_DATA: folder of the data sets that tests, benchmarks and the demo read. PEAKLINE_CASES: folder of outcome
# cases.
export PEAKLINE_DATA ?= $(wildcard ../shared/datasets)
export PEAKLINE_CASES ?= $(wildcard ../shared/cases)

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2

INSTALL := -m pip install --quiet --constraint constraints.txt

.PHONY: help setup peers demo test lint cases bench-ground wheel clean
.DEFAULT_GOAL := help

help:  ## what there is
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## make .venv and install into it

# torch by itself and first: a range, or a package that asks for torch, would bring gigabytes of CUDA libraries.
# pip before all, because dependency groups need 25.1.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) --upgrade pip
	$(BIN)/python $(INSTALL) torch==2.13.0
	$(BIN)/python $(INSTALL) --group dev --editable '.[all,jpeg]'
	@touch $@

peers:  ## make .venv-peers: what imported models are compared with
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python $(INSTALL) --upgrade pip
	.venv-peers/bin/python -m pip install --quiet torch==2.14.1
	.venv-peers/bin/python -m pip install --quiet --group peers

demo: setup  ## both applications, on real data where it is on this machine, each under a ceiling
	$(BIN)/python -m apps.demo

# By halves of the list, so that what a module's tests share is made once, and with what is left at the end shared out.
# Compiled first, also where Python may not write what it compiles: the tests start a thousand commands.
test: setup  ## every test, in parallel
	$(BIN)/python -m compileall -q apps common tests
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: setup  ## ruff, format, mypy, the house rules, requirements that agree
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.house
	$(BIN)/python -m pip check

cases: setup  ## the outcome cases in the folder PEAKLINE_CASES; ONLY=pattern, QUARTER=0..3
	$(BIN)/python -m tests.cases --bin $(BIN) $(if $(ONLY),--only '$(ONLY)') $(if $(QUARTER),--quarter $(QUARTER))

bench-%: setup  ## a benchmark suite: bench-headline, bench-promise; ONLY=pattern, AGAIN=1
	@for suite in $$(grep -ls 'suite().main' $(foreach place,common apps/*,$(place)/bench/$*.py $(place)/bench/$*_*.py $(place)/bench/$*/*.py)); do \
	  $(BIN)/python -m $$(echo $${suite%.py} | tr / .) --only '$(or $(ONLY),*)' $(if $(AGAIN),--again) || status=1; \
	done; exit $${status:-0}

bench-ground: bench-headline  ## the old name of bench-headline

wheel: setup  ## source distribution and wheel, into dist/
	$(BIN)/python -m build --no-isolation

clean:  ## remove what setup, the demo and wheel made
	rm -rf $(VENV) demo-output build dist *.egg-info

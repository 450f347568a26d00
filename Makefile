# Everything sets itself up: a bare machine needs Python 3.11, make and the package registries.
export PEAKLINE_DATA ?= $(wildcard ../shared/datasets)

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2

.PHONY: help setup peers demo test lint clean
.DEFAULT_GOAL := help

help:  ## what there is
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## make .venv and install into it

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[serve,engines,int8,dicom,nnunet,bundle,jpeg,test]'
	@touch $@

peers:  ## make .venv-peers: what imported models are compared with
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet torch==2.14.1
	.venv-peers/bin/python -m pip install --quiet torch==2.14.1 nnunetv2==2.8.1 monai==1.6.1 konfai==1.8.7

demo: setup  ## both applications on real data where it is at hand, each under a ceiling
	$(BIN)/python -m apps.demo

test: setup  ## every test, in parallel
	$(BIN)/python -m pytest -n $(JOBS)

lint: setup  ## ruff, format, mypy on common/, the house rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tests.house

bench-%: setup  ## a benchmark suite: bench-headline, bench-promise; ONLY=pattern, AGAIN=1
	@for suite in $$(grep -ls 'suite().main' $(foreach place,common apps/*,$(place)/bench/$*.py $(place)/bench/$*_*.py $(place)/bench/$*/*.py)); do \
	  $(BIN)/python -m $$(echo $${suite%.py} | tr / .) --only '$(or $(ONLY),*)' $(if $(AGAIN),--again) || status=1; \
	done; exit $${status:-0}

clean:  ## remove what setup and the demo made
	rm -rf $(VENV) demo-output build *.egg-info

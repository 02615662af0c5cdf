# The commands of the project; `make` lists them.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.dev-installed
FLEET_STAMP := $(VENV)/.fleet-installed
SOURCES := services cli inventory tests features bench
JOBS ?= 3
SOAK_MINUTES ?= 5
SOAK_SEED ?=

.DEFAULT_GOAL := help
.PHONY: help test lint format unit features features-self-check fleet-test reference soak bench clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

$(STAMP): setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

test: lint ## Lint and run every test
	$(BIN)/pytest --numprocesses $(JOBS) --dist loadfile

lint: $(STAMP) ## Style and types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(STAMP) ## Rewrite the sources in the project's style
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

unit: $(STAMP) ## Only the fast tests
	$(BIN)/pytest tests/unit tests/house

features: $(STAMP) ## The executable specification: real programs, a real sshd, a real model
	$(BIN)/python -m features --jobs $(JOBS)

features-self-check: $(STAMP) ## The same with programs that do nothing: every scenario must fail
	$(BIN)/python -m features --jobs $(JOBS) --self-check

$(FLEET_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fleet]'
	touch $@

fleet-test: $(FLEET_STAMP) ## Roles and playbooks on real machines (network namespaces with systemd); needs root
	$(BIN)/pytest tests/fleet

reference: $(STAMP) ## Compare tokens and logits with llama.cpp on the same file
	$(BIN)/pytest -m reference

soak: $(STAMP) ## SOAK_MINUTES of mixed requests and random kills (SOAK_SEED repeats a run)
	RBEE_SOAK_MINUTES=$(SOAK_MINUTES) RBEE_SOAK_SEED=$(SOAK_SEED) $(BIN)/pytest -s tests/integration/test_soak.py

bench: $(STAMP) ## Measure; writes bench/results/ (tables, and a plot of the goals)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m bench

clean: ## Remove what these commands made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis bench/results

# `make help` lists the commands. Two of them do all the set-up: `make up` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
STACK ?= quickstart
PYTHON ?= python3
RUN := .venv/bin
export UV_PROJECT_ENVIRONMENT := .venv
export UV_LINK_MODE ?= copy

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

# The environment: uv comes from the package index into the environment it then fills, so only Python is needed. Extras
# that are there stay: `make test` brings the large ones (the clouds' Pulumi packages, Ray), which `make up` can do without.
.venv/.ready: pyproject.toml uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=python3.12")'
	@[ -x $(RUN)/uv ] || { $(PYTHON) -m venv .venv && $(RUN)/python -m pip install --quiet "uv>=0.9"; }
	@$(RUN)/uv sync --locked --quiet --inexact
	@touch $@

.venv/.ready-all: .venv/.ready
	@$(RUN)/uv sync --locked --quiet --all-extras
	@touch $@

.PHONY: env
env: .venv/.ready-all ## Make the Python environment in .venv, every extra included

.PHONY: up
up: .venv/.ready ## Embedded Kubernetes, simulated GPU nodes, `pulumi up` of STACK (default quickstart)
	@$(RUN)/modelstacks local up $(STACK)

.PHONY: preview
preview: .venv/.ready ## What `pulumi up` of STACK would change on the embedded cluster
	@$(RUN)/modelstacks local preview $(STACK)

.PHONY: down
down: .venv/.ready ## Stop the embedded cluster and remove its state
	@$(RUN)/modelstacks local down

.PHONY: render
render: .venv/.ready ## Write rendered/ for every stack
	@$(RUN)/modelstacks render --all

.PHONY: verify
verify: .venv/.ready ## Fail unless rendered/ is what the stacks render to
	@$(RUN)/modelstacks render --all --check

.PHONY: pictures
pictures: .venv/.ready-all ## Draw the README's terminal pictures from today's plans
	@$(RUN)/python docs/pictures.py

.PHONY: lint
lint: .venv/.ready-all ## Style and types
	@$(RUN)/ruff check .
	@$(RUN)/ruff format --check .
	@$(RUN)/mypy

.PHONY: test
test: .venv/.ready-all lint verify ## Lint, rendered/, unit tests, and one stack per tier and engine on the embedded cluster
	@$(RUN)/pytest

.PHONY: test-fast
test-fast: .venv/.ready-all ## Only the tests that need no cluster
	@$(RUN)/pytest -m "not embedded"

.PHONY: test-all
test-all: .venv/.ready-all lint verify ## As test, with every stack and every kind of damage
	@MODELSTACKS_ALL_STACKS=1 $(RUN)/pytest -m ""

.PHONY: accuracy
accuracy: .venv/.ready-all ## Predicted against measured memory of real servers, beside two rivals
	@$(RUN)/python tests/accuracy/__main__.py

.PHONY: bench
bench: .venv/.ready-all ## Time plan, render and `pulumi up`, each beside its baseline
	@$(RUN)/python -m tests.bench

# `make help` lists the targets: it reads the comments that start with two hashes.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
# How many processes pytest uses; each starts servers of its own.
TEST_PROCESSES ?= 3
PYTEST_ARGS ?=
# For example: --suite canvas --pool threads, or --fresh to run again what has been run.
CONFORMANCE_ARGS ?=
# How many sequences `make explore` plays on each database: about 25 a second.
EXAMPLES ?= 5000
FUZZ_EXAMPLES ?= 500
# How long `make chaos` breaks things, on which database; a SEED gives the faults and jobs of an earlier run again.
SECONDS ?= 60
SEED ?=
DATABASE ?= mariadb

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest

.PHONY: help run test test-quick test-gpu explore conformance smoke chaos chaos-matrix lint format openapi fuzz bench-quick bench-plain bench-followers bench-pools clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/run.stamp ## Start the embedded stack, run the example jobs on it, show how they went, and stop it
	@$(BIN)/python -m examples.tour

test: $(VENV)/dev.stamp ## Run everything: lint and all tests (installs Debian's redis-server and mariadb-server when missing)
	@tests/install-debian-packages
	@$(MAKE) --no-print-directory lint
	@$(PYTEST) -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-quick: $(VENV)/dev.stamp ## Run the unit, contract and short integration tests on SQLite and the embedded Redis
	@$(PYTEST) -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder -m quick $(PYTEST_ARGS)

test-gpu: $(VENV)/gpu.stamp ## Run the tests that need a real NVIDIA GPU (pip wheels, SQLite and the embedded Redis; torch if it is there)
	@$(PYTEST) -m gpu tests/gpu $(PYTEST_ARGS)

explore: $(VENV)/dev.stamp ## Play EXAMPLES new random sequences against the stores of each database, and the model with more terms
	@tests/install-debian-packages
	@EXPLORE=$(EXAMPLES) $(PYTEST) tests/contract/interleavings tests/model $(PYTEST_ARGS)

smoke: $(VENV)/dev.stamp ## Run all smoke tests of pytest-celery's style, on processes, and on containers where there is Docker
	@tests/install-debian-packages
	@$(PYTEST) -n $(TEST_PROCESSES) -m 'smoke or not smoke' tests/smoke $(PYTEST_ARGS)

chaos: $(VENV)/dev.stamp ## Break things at random for SECONDS (SEED, DATABASE=mariadb or sqlite), then check that nothing was lost or doubled
	@tests/install-debian-packages
	@$(BIN)/python -m tests.chaos.random --seconds $(SECONDS) --database $(DATABASE) $(if $(SEED),--seed $(SEED))

chaos-matrix: $(VENV)/dev.stamp ## Run every case of the fault matrix on both stacks
	@tests/install-debian-packages
	@$(PYTEST) -n $(TEST_PROCESSES) --dist load -m 'matrix or not matrix' tests/chaos $(PYTEST_ARGS)
	@$(PYTEST) -n $(TEST_PROCESSES) --dist load -m matrix tests/e2e tests/integration $(PYTEST_ARGS)

lint: $(VENV)/dev.stamp ## Check style, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: $(VENV)/dev.stamp ## Lay out the code and sort its imports
	@$(BIN)/ruff check --select I --fix .
	@$(BIN)/ruff format .

openapi: $(VENV)/dev.stamp ## Write the API's description anew: docs/openapi.json, and docs/api-reference.md for people
	@$(BIN)/python -m tests.support.openapi

fuzz: $(VENV)/dev.stamp ## Send each operation of the API FUZZ_EXAMPLES made-up requests with each role's token
	@FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(PYTEST) tests/integration/api/test_fuzz.py tests/integration/api/test_fuzz_links.py --timeout 3600 $(PYTEST_ARGS)

bench-quick: $(VENV)/dev.stamp ## Measure the way of a job against stock Celery (needs Debian's redis-server and mariadb-server)
	@tests/install-debian-packages
	@$(BIN)/python -m bench.quick

bench-plain: $(VENV)/dev.stamp ## Measure plain Celery tasks over both transports (needs Debian's redis-server)
	@tests/install-debian-packages
	@$(BIN)/python -m bench.plain_tasks --record

bench-followers: $(VENV)/dev.stamp ## Measure submits while 1,000 streams are open (needs Debian's redis-server and mariadb-server)
	@tests/install-debian-packages
	@$(BIN)/python -m bench.followers

bench-pools: $(VENV)/dev.stamp ## Measure what a job costs in a worker pool, and cold (needs Debian's redis-server and mariadb-server)
	@tests/install-debian-packages
	@$(BIN)/python -m bench.pools

conformance: $(VENV)/dev.stamp ## Run Celery's and kombu's own tests on redis:// and redis-streams:// and compare (about an hour)
	@tests/install-debian-packages
	@$(PYTEST) -m index tests/integration/celery_app $(PYTEST_ARGS)
	@$(BIN)/python -m tests.conformance.run -n $(TEST_PROCESSES) $(CONFORMANCE_ARGS)

clean: ## Remove the environment and everything that was built or cached
	@rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@find . -name '*.egg-info' -type d -prune -exec rm -rf {} +

$(VENV)/made.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "make: Python 3.11 or newer is needed, and '$(PYTHON)' is not; set PYTHON=" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "make: this Python cannot create environments; install the Debian package python3-venv" >&2; exit 1; }
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# An editable install records no file of the project but its metadata, so it is redone only when those change.
$(VENV)/run.stamp: $(VENV)/made.stamp pyproject.toml constraints.txt
	@echo "Installing gpu-orchestrator with its embedded stack and examples into $(VENV)"
	@$(PIP) --editable '.[embedded,mariadb,flower,examples]'
	@touch $@

$(VENV)/gpu.stamp: $(VENV)/made.stamp pyproject.toml constraints.txt
	@echo "Installing gpu-orchestrator and what its tests on GPUs need into $(VENV)"
	@$(PIP) --editable '.[gpu-tests]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/made.stamp pyproject.toml constraints.txt
	@echo "Installing gpu-orchestrator and the development tools into $(VENV)"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/run.stamp $(VENV)/gpu.stamp

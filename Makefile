# Everything a contributor does, one target each. `make` explains itself; VENV=/path takes another virtual environment.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules

VENV ?= .venv
export VENV
python := $(VENV)/bin/python
pytest := $(python) -m pytest
sources := ttrpc shim daemon tests bench
# Tests that run side by side; each worker has processes and mounts of its own (tests/support/workers.py).
JOBS ?= $(shell n=$$(nproc); echo $$((n < 4 ? n : 4)))
side_by_side = -n $(JOBS) --dist loadfile
# Some need the machine's own namespaces: these few run first, alone.
apart = tests/kernel -m init_pid_ns
not_apart = -m "not init_pid_ns"

.PHONY: help root setup dev demo test ci unit kernel system matrix interop vm house lint format types proto proto-check fuzz bench clean

help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what shimd needs to run: system packages by apt, a virtual environment in .venv
	@bash .ci/setup.sh run

dev: ## Install the test and lint tools on top
	@bash .ci/setup.sh dev

demo: root ## Show the promises on real containers: kill -9 the daemon, lose nothing (root)
	@bash .ci/setup.sh run
	@bash .ci/demo.sh

test: root dev lint types proto-check ## Run every check and every test, real runc included, JOBS at a time (root)
	@$(pytest) $(apart)
	@$(pytest) $(side_by_side) $(not_apart)

ci: ## What continuous integration runs
	@bash .ci/run

unit: dev ## Run the tests that need neither root nor runc
	@$(pytest) $(wildcard tests/unit tests/contract tests/house) -m "not root"

kernel: root dev ## Run the shim's tests against the real kernel and runc (root)
	@$(pytest) $(apart)
	@$(pytest) $(side_by_side) $(not_apart) tests/kernel

system: root dev ## Run the tests of whole processes, the kill matrix among them (root)
	@$(pytest) $(side_by_side) tests/system

matrix: root dev ## SIGKILL daemon, keeper, shim, runc and every pair at every step; the table goes to tests/system/MATRIX.md (root)
	@SHIMD_MATRIX=whole $(pytest) tests/system/test_matrix.py -s

interop: root dev ## Run our shim under real containerd beside the Go shim, the whole comparison (root)
	@SHIMD_INTEROP=whole $(pytest) tests/interop

vm: root ## Run tests in an emulated Debian 12 (kernel 6.1, cgroup v2, systemd): ONLY="tests/kernel -x", default the kernel's (root)
	@bash .ci/vm.sh $(or $(ONLY),tests/kernel)

house: dev ## Check the house rules: imports, tables, sizes, docs
	@$(pytest) tests/house

lint: dev ## Check style and formatting
	@$(VENV)/bin/ruff check $(sources)
	@$(VENV)/bin/ruff format --check $(sources)

format: dev ## Rewrite the source in the house format
	@$(VENV)/bin/ruff check --fix $(sources)
	@$(VENV)/bin/ruff format $(sources)

types: dev ## Check the types, strictly
	@$(VENV)/bin/mypy

proto: dev ## Compile ttrpc/api/*.proto anew
	@$(python) -m ttrpc.api.generate

proto-check: dev ## Fail when the compiled .proto files are stale
	@$(python) -m ttrpc.api.generate --check

fuzz: ## Feed the frame decoder garbage for FUZZ_SECONDS (30)
	@bash .ci/setup.sh fuzz
	@bash .ci/fuzz.sh $(or $(FUZZ_SECONDS),30)

bench: root ## Measure every promise beside Debian's containerd; ONLY=name for one script (root)
	@bash .ci/setup.sh bench
	@$(python) -m bench.run $(ONLY)

clean: ## Remove the virtual environment and every cache
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist shimd.egg-info
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

root:
	@[ "$$(id -u)" = 0 ] || { echo "this runs real containers and needs root: use sudo (without root: make unit)" >&2; exit 1; }

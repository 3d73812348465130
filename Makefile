# Everything a person does with this tree. `make help` lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup test test-oldest check format demo bench lab e2e clean
PYTHON := .venv/bin/python

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | column -t -s '|'

setup: ## install what is missing: packages (as root), .venv, the lab's guest kernel
	@tools/setup.sh

test: setup ## setup, all checks, all rooms of tests (under 20 minutes on two cores)
	@$(PYTHON) tools/check_rooms.py $(ROOMS)

check: | .venv/bin/python ## format, lint, types, imports, wire, sizes, schemas, documents
	@$(PYTHON) tools/check.py $(CHECKS)

format: | .venv/bin/python ## put the code into its form
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix --quiet .

test-oldest: setup ## the suites of wire, storage and command line on the oldest allowed libraries
	@test -x build/oldest/bin/pytest || { python3 -m venv build/oldest && build/oldest/bin/pip install -q --disable-pip-version-check -c tools/constraints-oldest.txt -e '.[host,dev]'; }
	@build/oldest/bin/python -m pytest -q tests/contract/test_grpc_server.py tests/contract/test_grpc_streams.py tests/unit -k "grpc or wire or vmrctl or disk or manifest or receiving"

demo: setup ## the whole story on this machine: build/demo/report.json (KEEP=1, SEED=n)
	@$(PYTHON) deploy/demo/demo.py

lab: setup ## a whole cluster on this machine with a running guest, left up
	@deploy/lab/lab up --guest

e2e: setup ## only the tests with real guests
	@$(PYTHON) tools/check_rooms.py e2e

bench: setup ## measurements beside their peers: docs/benchmarks.md
	@$(PYTHON) -m bench

clean: ## remove what can be made again (not .venv, not a running lab)
	@rm -rf build/test build/demo build/tools dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

.venv/bin/python:
	@echo "The tree is not set up yet. Run: make setup" >&2; exit 2

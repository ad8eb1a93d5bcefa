# `make` lists the targets. Each sets up what it needs in .venv, once; later runs need no network.
VENV ?= .venv
WORKERS ?= 2
UV ?= $(shell command -v uv 2>/dev/null)
PYTHONS = $(if $(PYTHON),"$(PYTHON)",python3.12 python3.11 python3)

SHELL := /bin/sh
PY := $(VENV)/bin/python
READY := $(VENV)/.installed
IS_PYTHON = -c 'import sys; sys.exit(sys.version_info < (3, 11))'
INSTALL = $(if $(UV),"$(UV)" pip install --python "$(PY)",$(PY) -m pip install --disable-pip-version-check)
COMPILE = "$$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command 'make lock' $(LOCK_FLAGS)

.DEFAULT_GOAL := help
.PHONY: help demo test lint setup cuda tpu lock clean

help: ## this list
	@sed -n 's/^\([a-z ]*\):.*## /  make \1	/p' Makefile

demo: $(READY) ## reconstruct movies of simulated animals, in runs/demo
	@$(PY) -m experiments.demo --workdir runs/demo

test: $(READY) ## every test; TESTS='tests/test_recordings.py -x' for some, WORKERS=1 for one process
	@$(PY) -m pytest -n $(WORKERS) --dist worksteal $(TESTS)

lint: $(READY) ## style, format and types
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

setup: $(READY) ## install into .venv, and nothing else; PYTHON=/path/to/python3.12 to choose

cuda tpu: $(READY) ## either of them: add JAX's support of that accelerator to .venv
	@$(INSTALL) --no-build-isolation --editable '.[$@]'

# Commands named python3.x may be on the path and not run (pyenv's shims), so each is tried.
# setuptools comes first, and nothing is built in isolation, so that what builds is locked too.
$(READY): pyproject.toml requirements.lock requirements-build.lock
	@if ! "$(PY)" $(IS_PYTHON) 2>/dev/null; then \
		found=; \
		for python in $(PYTHONS); do \
			if "$$python" $(IS_PYTHON) >/dev/null 2>&1; then found=$$python; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "make: expected Python 3.11 or newer, found none that runs among:" $(PYTHONS) \
				"; install one or name it with PYTHON=/path/to/python3" >&2; \
			exit 1; \
		fi; \
		echo "Making $(VENV) with $$("$$found" --version)"; \
		$(if $(UV),UV_VENV_CLEAR=1 "$(UV)" venv --quiet --python "$$found" "$(VENV)","$$found" -m venv --clear "$(VENV)"); \
	fi
	@$(if $(UV),:,$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip)
	@echo "Installing the locked packages into $(VENV): about 1.5 GB, a minute or more"
	@$(INSTALL) --require-hashes --requirement requirements-build.lock
	@$(INSTALL) --require-hashes --no-build-isolation --requirement requirements.lock
	@$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

# The files may name no place on the machine or the network where they were made.
lock: ## renew requirements*.lock after a change of pyproject.toml; LOCK_FLAGS=--upgrade for newer versions
	@uv="$(UV)"; [ -n "$$uv" ] || uv="$(VENV)/bin/uv"; \
	"$$uv" --version >/dev/null 2>&1 || { echo "make lock: expected uv on the path, found none; do 'pip install uv'" >&2; exit 1; }; \
	set -e; \
	$(COMPILE) --extra test pyproject.toml --output-file requirements.lock; \
	sed -n '/^\[build-system\]/,/^\[project\]/s/^requires = \["\(.*\)"\]$$/\1/p' pyproject.toml \
		| $(COMPILE) - --output-file requirements-build.lock; \
	for file in requirements.lock requirements-build.lock; do \
		grep -q -- --hash= "$$file" && ! grep -nE '://|file:|index-url|find-links' "$$file"; \
	done

clean: ## remove caches and build left-overs, but neither .venv nor runs
	@rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -not -path './runs/*' -prune -exec rm -rf {} +

# Everything runs inside .venv, which is made from uv.lock. The only things needed before are python3 ≥ 3.11 with
# venv, and make.
.DEFAULT_GOAL := help
SHELL := /bin/bash
DEMO_HOME ?= .demo
INPUT ?=
# Tests run in so many processes, each with servers and databases of its own: two for a core, since they often wait.
WORKERS ?= $(shell cores=$$(nproc); echo $$((cores > 4 ? 8 : 2 * cores)))
PYTHON ?= $(shell scripts/find-python)
UV := .tools/bin/uv
RUN := .venv/bin
PYTEST := $(RUN)/python -m pytest
IN_PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Compiled modules are kept: Airflow starts many processes, and each would compile some thousand modules anew.
export PYTHONDONTWRITEBYTECODE :=
STAMP := .venv/.installed
STAMP_DEV := .venv/.installed-dev
STAMP_BENCH := .venv/.installed-bench

.PHONY: help install demo test test-all standalone bench lint clean

help: ## show this
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv from uv.lock

demo: $(STAMP) ## answer the sample inquiries (or INPUT=file.csv|parquet) with no server, key or account
	@DEMO_HOME="$(DEMO_HOME)" INPUT="$(INPUT)" $(RUN)/python scripts/demo.py

standalone: $(STAMP) ## Airflow in a browser, with the demo's DAG and data
	@DEMO_HOME="$(DEMO_HOME)" $(RUN)/python scripts/standalone.py

test: $(STAMP_DEV) ## start the real servers, run the tests, stop them
	@$(RUN)/python scripts/ensure_services.py
	@$(PYTEST) $(IN_PARALLEL) --ignore=tests/timing $(ARGS)

test-all: $(STAMP_DEV) ## the same, with all mixtures of a vendor's faults, and tests/timing: an hour
	@$(RUN)/python scripts/ensure_services.py
	@AI_TEST_EXAMPLES=500 AI_TEST_FSYNC=on $(PYTEST) $(IN_PARALLEL) --ignore=tests/timing $(ARGS)
	@$(PYTEST) tests/timing

bench: $(STAMP_BENCH) ## run the benchmarks and print their tables
	@$(RUN)/python scripts/ensure_services.py
	@for script in benchmarks/bench_*.py; do echo "== $$script"; $(RUN)/python "$$script" || exit 1; done

lint: $(STAMP_DEV) ## ruff, mypy, import contracts
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/lint-imports

clean: ## remove what the targets made, .demo included
	rm -rf .venv .tools "$(DEMO_HOME)" .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

$(UV): requirements/uv.txt
	@test -n "$(PYTHON)" || { echo "python3 3.11, 3.12 or 3.13 is needed and none was found; install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@"$(PYTHON)" -m venv --clear .tools || { echo "python3 has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt

# Behind a proxy with a certificate authority of its own, uv's bundled certificates fail and the system's succeed.
define sync
$(UV) sync --quiet --frozen --python "$(PYTHON)" --no-python-downloads --extra all $(1) \
|| $(UV) sync --system-certs --quiet --frozen --python "$(PYTHON)" --no-python-downloads --extra all $(1)
endef

$(STAMP): $(UV) uv.lock pyproject.toml
	@if test -e $(STAMP_DEV); then $(call sync,--group dev); else $(call sync,--no-default-groups); fi
	@touch $@

$(STAMP_DEV): $(UV) uv.lock pyproject.toml
	@$(call sync,--group dev)
	@touch $(STAMP) $@

$(STAMP_BENCH): $(STAMP_DEV)
	@$(call sync,--group dev --group bench)
	@touch $@

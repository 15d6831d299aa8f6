# Every target makes what it needs, on a machine with Python, git and make only.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(shell find src -name '*.py') pyproject.toml
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-long test-oldest check bench docs clean servers

demo: $(VENV)/.demo
	$(BIN)/python -m examples.demo $(DEMO)

test: servers $(VENV)/.test
	$(PYTEST) -n 4 --dist worksteal -m "not long" $(TESTS)

test-long: servers $(VENV)/.test
	$(PYTEST) -m long $(TESTS)

# The oldest releases that pyproject.toml allows, in an environment of their own.
test-oldest: servers
	$(MAKE) VENV=.venv-oldest CONSTRAINTS="-c tests/oldest.txt" test

check: $(VENV)/.check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(PYTEST) -q tests/test_architecture.py
	$(MAKE) docs

docs: $(VENV)/.check
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

bench: servers $(VENV)/.bench
	$(BIN)/python -m benchmarks.run $(BENCH)

servers:
	@sh scripts/servers.sh

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip build
	touch $@

# The wheel that is built is the thing that is tested.
$(VENV)/.wheel: $(VENV)/.made $(SOURCES) README.md LICENSE
	rm -rf dist
	$(BIN)/python -m build -q --outdir dist .
	$(BIN)/python -m pip install -q --force-reinstall --no-deps dist/*.whl
	$(BIN)/python -m pip install -q dist/*.whl $(CONSTRAINTS)
	touch $@

$(VENV)/.test: $(VENV)/.wheel
	$(BIN)/python -m pip install -q --group test --group demo --group docs $(CONSTRAINTS)
	touch $@

$(VENV)/.check: $(VENV)/.wheel
	$(BIN)/python -m pip install -q --group test --group check --group docs --group demo --group bench
	touch $@

$(VENV)/.demo: $(VENV)/.wheel
	$(BIN)/python -m pip install -q --group demo
	touch $@

$(VENV)/.bench: $(VENV)/.wheel
	$(BIN)/python -m pip install -q --group test --group demo --group bench
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest dist docs/_build

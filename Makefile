# Two commands do everything, set-up included: `make demo` and `make test` (`make slow`: the tests that it leaves out).
# `make clean` removes what they made.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test slow clean

demo: $(VENV)/.demo
	PATH="$(abspath $(BIN)):$$PATH" examples/digits_demo.sh

# One thread each: the nets are tiny, and two processes of two threads on two cores wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist worksteal

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict wfcli
	$(PYTEST) -m "not slow"

slow: $(VENV)/.dev
	$(PYTEST) -m slow

# An extra is installed again when pyproject.toml is newer than its stamp.
$(VENV)/.%: pyproject.toml | $(BIN)/python
	@echo "Installing wfcli with its extra '$*' into $(VENV): PyTorch is large, this takes minutes the first time."
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[$*]'
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 10) or sys.exit("wfcli needs Python 3.10 or newer, got %d.%d: make PYTHON=python3.12" % v[:2])'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Two commands do everything, set-up included: `make demo` and `make test`. `make clean` removes what they made.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test clean

demo: $(VENV)/.demo
	PATH="$(abspath $(BIN)):$$PATH" examples/digits_demo.sh

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict wfcli
	$(BIN)/python -m pytest -q -m "not slow"

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

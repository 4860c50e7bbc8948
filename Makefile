# Two commands for a fresh machine with Python >= 3.11: `make reproduce` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: reproduce test lint

reproduce: $(VENV)/installed
	$(BIN)/python -m experiments.toy_reversal --preset=quick --workdir=runs/toy_reversal

test: $(VENV)/installed lint
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[plots,hf,test]'
	touch $@

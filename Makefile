# make demo · make test · make lint · make bench-store · make bench-speed          (all set up .venv by themselves; only Python 3.11+ and make are needed)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHECKPOINT := examples/stdlib-mini
BUNDLE := demo/stdlib-mini.bundle

.PHONY: setup demo test lint format bench-store bench-speed

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@echo "== setting up $(VENV)"; start=$$(date +%s); set -e; \
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'; \
	touch $(READY); echo "== set up in $$(($$(date +%s) - start)) s"

demo: $(READY)
	$(eval START := $(shell date +%s))
	$(BIN)/molkv-export export $(CHECKPOINT) $(BUNDLE) --force
	$(BIN)/molkv-export validate $(BUNDLE) --checkpoint $(CHECKPOINT) --bisect
	$(BIN)/molkv-export selftest $(BUNDLE)
	$(BIN)/molkv-export inspect $(BUNDLE)
	$(BIN)/molkv-export run $(BUNDLE) --prompt "def " --temperature 0.7 --top-p 0.9 --seed 1
	$(BIN)/molkv-export run $(BUNDLE) --prompt "class Queue:" --temperature 0.7 --top-p 0.9 --seed 3
	@echo "== ran in $$(($$(date +%s) - $(START))) s"

bench-store: $(READY)  # writes up to 24 GiB under demo/ and removes them
	$(BIN)/python -m benchmarks.store --folder demo/bench-store --size 8GiB

bench-speed: $(READY)  # keeps 35 GiB of models under demo/
	$(BIN)/python -m benchmarks.speed --folder demo/bench-speed --figure docs/images/speed.png

test: $(READY)
	$(BIN)/pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

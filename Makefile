# make demo | test-fast | test | test-all | test-lowest | lint | format | bench-store | bench-speed | bench-mobile | bench-mole | bench-sessions | test-openvino | test-qnn | test-webgpu
# JavaScript driver and web page (runtimes/js/rules.mk): make js | test-js | lint-js | format-js | page | demo-web | test-page | screenshots | wheel | bench-js | bench-web
# Native driver (runtimes/native/rules.mk): make native | test-native | fuzz-native | bench-native | bench-gemma4 | test-swift | format-native
# Each target sets up the environment that it needs. The only requirements are make and Python 3.11, 3.12 or 3.13.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CHECKPOINT := examples/stdlib-mini
BUNDLE := demo/stdlib-mini.bundle

# One worker more than cores, because some tests wait. Each has one thread for PyTorch: more threads are slower for the
# small models of the tests.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $$(($$(nproc) + 1)) --dist worksteal

.PHONY: setup demo test test-fast test-all test-lowest lint format bench-store bench-speed bench-mobile bench-mole
.PHONY: bench-sessions test-openvino test-qnn test-webgpu

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

bench-store: $(READY)  # writes up to 24 GiB to demo/ and removes them
	$(BIN)/python -m benchmarks.store --folder demo/bench-store --size 8GiB

# Parts of it, such as make bench-speed SPEED="--only decode --models int8,int4 --json after.json"
SPEED ?= --figure docs/images/speed.png

bench-speed: $(READY)  # writes up to 20 GB of models to demo/ and keeps them, as well as an environment for onnxruntime-genai
	$(BIN)/python -m benchmarks.speed --folder demo/bench-speed $(SPEED)

bench-mobile: $(READY)  # writes 8 GiB to demo/ and keeps them; first run test-openvino and test-qnn, which install the compilers
	$(BIN)/python -m benchmarks.mobile --folder demo/bench-mobile

bench-mole: $(READY)  # writes 21 GiB to demo/ and keeps them
	$(BIN)/python -m benchmarks.mole --folder demo/bench-mole

bench-sessions: $(READY)  # writes 7 GiB of models to demo/ and keeps them
	$(BIN)/python -m benchmarks.sessions --folder demo/bench-sessions

test: $(READY)  # all Python tests but the exhaustive ones
	$(PYTEST) -m "not exhaustive"

test-fast: $(READY)  # those that are not marked as slow
	$(PYTEST) -m "not slow"

test-all: lint  # what CI runs: every test
	$(PYTEST) -m "not excerpt"
	$(MAKE) test-native
	$(MAKE) test-js
	$(MAKE) test-lowest

# Test the host driver with each dependency at its lower bound. The command line runs in an environment with only these
# dependencies. The driver's tests also need pytest and the exporter (for their bundles), which they import from .venv.
LOWEST := .venv-lowest

$(LOWEST)/.ready: $(READY) .ci/lower_bounds.py
	$(BIN)/python -m venv --clear $(LOWEST)
	$(BIN)/python .ci/lower_bounds.py > $(LOWEST)/lower-bounds.txt
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check -r $(LOWEST)/lower-bounds.txt
	touch $@

test-lowest: $(LOWEST)/.ready
	$(BIN)/python cli.py export $(CHECKPOINT) $(LOWEST)/bundle --force
	$(LOWEST)/bin/python cli.py selftest $(LOWEST)/bundle
	$(LOWEST)/bin/python cli.py verify $(LOWEST)/bundle
	$(LOWEST)/bin/python cli.py inspect $(LOWEST)/bundle > $(LOWEST)/inspect.txt
	$(LOWEST)/bin/python cli.py run $(LOWEST)/bundle --prompt "def " --max-new-tokens 16
	PYTHONPATH=$$(echo $(CURDIR)/$(LOWEST)/lib/python*/site-packages) $(PYTEST) -m "not exhaustive and not excerpt" tests/molkv_bundle tests/molkv_runtime

# Providers in plug-ins. Each one is an extra of the package, in the same environment.
QNN_EMULATOR := --provider-option htp_arch=75 --provider-option soc_model=57

$(VENV)/.with-%: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

demo/phone-%.bundle: $(READY)
	rm -rf $@
	$(BIN)/molkv-export export $(CHECKPOINT) $@ --profile $(firstword $(subst +, ,$*)) --dense-dtype $(lastword $(subst +, ,$*))

PHONE := demo/phone-coreml+float32.bundle demo/phone-coreml+float16.bundle demo/phone-nnapi+float32.bundle demo/phone-nnapi+qdq-int8.bundle

test-openvino: $(VENV)/.with-openvino $(PHONE)
	@set -e; for bundle in $(PHONE); do $(BIN)/molkv-export selftest $$bundle --provider openvino --require-provider; done
	$(BIN)/molkv-export run demo/phone-nnapi+float32.bundle --provider openvino --require-provider --prompt "class Queue:" --max-new-tokens 32

test-qnn: $(VENV)/.with-qnn $(PHONE)  # uses Qualcomm's compiler and NPU emulator; takes minutes
	@set -e; for bundle in $(PHONE); do $(BIN)/molkv-export selftest $$bundle --provider qnn $(QNN_EMULATOR) --require-provider; done
	$(BIN)/molkv-export run demo/phone-nnapi+float32.bundle --provider qnn $(QNN_EMULATOR) --require-provider --prompt "class Queue:" --max-new-tokens 32

test-webgpu: $(VENV)/.with-webgpu $(PHONE)  # on a GPU, or else on Chromium's SwiftShader, which takes ten minutes
	@set -e; for bundle in demo/phone-*+float32.bundle; do .ci/with_gpu.sh $(BIN)/molkv-export selftest $$bundle --provider webgpu --require-provider; done
	.ci/with_gpu.sh $(BIN)/molkv-export run demo/phone-nnapi+float32.bundle --provider webgpu --require-provider --prompt "class Queue:" --max-new-tokens 8

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

include runtimes/native/rules.mk
include runtimes/js/rules.mk

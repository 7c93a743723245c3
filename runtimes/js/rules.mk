# Build and test the driver in JavaScript (runtimes/js). Needs Node 20 and npm; test-js also needs Chromium and nginx.

JS := runtimes/js
JS_READY := $(JS)/node_modules/.package-lock.json
NPM := npm --prefix $(JS) --silent

.PHONY: js test-js test-page lint-js format-js

$(JS_READY): $(JS)/package.json $(JS)/package-lock.json
	npm --prefix $(JS) ci --ignore-scripts --no-audit --no-fund
	@touch $@

js: $(JS_READY)  # the npm package, in runtimes/js/dist
	$(NPM) run build

test-js: js  # what CI runs of the driver in JavaScript
	$(eval START := $(shell date +%s))
	$(NPM) run lint
	$(NPM) run test
	$(NPM) run build:tests
	$(NPM) run test:package
	node $(JS)/.build/node.mjs
	node $(JS)/.build/node.mjs --worker
	node $(JS)/.build/node.mjs --wasm
	MOLKV_JS_BUILD=$(CURDIR)/$(JS)/.build $(PYTEST) -m "not exhaustive" tests/js
	node $(JS)/.build/run.mjs
	$(MAKE) test-page
	@echo "== tested the driver in JavaScript in $$(($$(date +%s) - $(START))) s"

lint-js: $(JS_READY)
	$(NPM) run lint

format-js: $(JS_READY)
	$(NPM) run format

.PHONY: bench-js bench-web
bench-js: js  # writes 7 GB of models to demo/ and keeps them
	$(NPM) run build:tests
	$(BIN)/python -m benchmarks.js --folder demo/bench-native --build $(JS)/.build

bench-web: js  # uses the models of bench-js, and adds one with float16 weights
	$(NPM) run build:tests
	$(BIN)/python -m benchmarks.web --folder demo/bench-native --build $(JS)/.build

# The web page, which `molkv-export package --target web` puts before a bundle.
.PHONY: page demo-web screenshots wheel
PORT ?= 8000

page: $(JS_READY)  # in runtimes/js/.build/page
	$(NPM) run build:page

$(BUNDLE): | $(READY)
	$(BIN)/molkv-export export $(CHECKPOINT) $@

demo-web: page | $(BUNDLE)  # serves the page with a model to this machine, until Ctrl-C
	$(BIN)/molkv-export package $(BUNDLE) demo/web --target web --force
	$(BIN)/python -m molkv_export.packaging.serve demo/web --port $(PORT)

# The page with stdlib-mini, and what the Python driver writes from the same prompt with the same sampling.
SITE := $(JS)/.build/site

$(JS)/.build/site-expected.json: page | $(BUNDLE)
	$(BIN)/molkv-export package $(BUNDLE) $(SITE) --target web --force
	$(BIN)/molkv-export run $(BUNDLE) --prompt "class Queue:" --max-new-tokens 64 --temperature 0.7 --top-p 0.9 --seed 3 \
	  --json --quiet > $@

test-page: $(JS)/.build/site-expected.json  # the page in headless Chromium
	$(NPM) run test:page

screenshots: $(JS)/.build/site-expected.json  # of the page, in docs/images
	$(NPM) run build:tests
	node $(JS)/.build/screenshots.mjs docs/images

wheel: $(READY) page  # the Python wheel with the web page, in dist
	$(BIN)/hatchling build -t wheel

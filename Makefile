# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
FUZZ_INPUTS ?= 200000
EXTRAS ?= dicom,openvino
# a file of tests at a time in each of up to eight processes, which share the cores
TESTED_BY := -n auto --maxprocesses 8 --dist loadfile
WHEELS ?= wheelhouse

.PHONY: help demo tour test test-browser fuzz promises check lint format docs structure wheelhouse model clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## the whole job on phantoms: train, export, infer, a picture and a table
	$(BIN)/leuda demo --out runs/demo

test: $(READY) ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTED_BY)

fuzz: $(READY) ## 200,000 damaged and hostile inputs; goes on where it was stopped (FUZZ_INPUTS=N)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	PYTHONPATH=.:tests $(BIN)/python -m fuzz.nightly --inputs $(FUZZ_INPUTS) --save .cache/fuzz.json

promises: $(READY) ## stops every command, and measures the memory of many kinds of scans
	PYTHONPATH=.:tests $(BIN)/python -m faults.stop --save .cache/stop.json
	PYTHONPATH=.:tests $(BIN)/python -m faults.memory --save .cache/memory.json

test-browser: $(READY) ## the tests of the page in Chromium, which is installed first (Debian, as root)
	apt-get install -y --no-install-recommends chromium chromium-driver
	npm install --silent --no-save --prefix .cache axe-core@4.14.1
	$(BIN)/python -m pytest tests/deploy/view/test_browser.py tests/train/pages/test_pages.py

check: lint ## before every commit: format, lint, imports, types, fast tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(TESTED_BY) -m "not slow"

# The same commands stand in .pre-commit-config.yaml.
lint: $(READY) ## format, lint, direction of imports, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: $(READY) ## format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY) ## the documentation: reference pages from the code, then site/index.html
	$(BIN)/python tools/reference.py
	$(BIN)/zensical build --clean --strict

tour: demo ## the pictures of docs/how-to/tour.md, with Debian's chromium and chromium-driver
	$(BIN)/python tools/tour.py runs/demo docs/pictures/tour

structure: $(READY) ## how many files, folders and imports there are, and how deep they go
	$(BIN)/python tools/structure.py

wheelhouse: $(READY) ## all wheels of EXTRAS with hashes, for a machine without internet (WHEELS=folder)
	$(BIN)/python tools/wheelhouse.py $(WHEELS) --extras '$(EXTRAS)'

# It takes the demo's run, so it trains first if there is none.
model: demo ## the small phantom model that is kept in exports/
	$(BIN)/leuda export runs/demo/le-uda-plus -o exports/phantom-heart --licence MIT

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "leuda needs Python 3.11 or later; $(PYTHON) is `$(PYTHON) --version`. Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,rtx,openvino,node,dev,docs]'
	@touch $@

clean: ## remove all that the other targets made
	rm -rf runs site .venv build *.egg-info .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check lint format model clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/leuda demo --out runs/demo

test: $(READY)
	$(BIN)/python -m pytest

# What to run before every commit: format, lint, types, fast tests.
check: lint
	$(BIN)/python -m pytest -q -m "not slow"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The small model that ships in exports/, made from the demo's run.
model: demo
	$(BIN)/leuda export runs/demo/le-uda-plus -o exports/phantom-heart --licence MIT

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "leuda needs Python 3.11 or later; $(PYTHON) is `$(PYTHON) --version`. Try: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,rtx,openvino,dicom,dev]'
	@touch $@

clean:
	rm -rf runs .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache

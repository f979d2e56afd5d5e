# make env | lint | test | demo | bench | wheel-test | clean
PYTHON ?= python3
BIN := .venv/bin
CODE := src $(wildcard examples bench)
# For a closer look: make test PYTEST="-k rescue -x"
PYTEST ?=
PARALLEL ?= 2

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: env lint test demo bench wheel-test clean

env: .venv/made

.venv/made: pyproject.toml constraints/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "dutiful needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12 env")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints/dev.txt pip
	$(BIN)/python -m pip install --quiet -c constraints/dev.txt --group dev
	$(BIN)/python -m pip install --quiet -c constraints/dev.txt --no-build-isolation -e '.[cli,encrypt,postgres,reload]'
	@touch $@

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(CODE)
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

# First what wants the machine to itself; a failure there is kept until the rest has run.
# (Exit code 5: no test is marked so, or PYTEST selects none.)
test: env
	scripts/system-packages
	@alone=0; \
	echo '$(BIN)/pytest -m alone $(PYTEST)'; \
	$(BIN)/pytest -m alone $(PYTEST) || alone=$$?; \
	if [ $$alone = 5 ]; then alone=0; fi; \
	echo '$(BIN)/pytest -n $(PARALLEL) -m "not alone" $(PYTEST)'; \
	$(BIN)/pytest -n $(PARALLEL) -m 'not alone' $(PYTEST); \
	if [ $$alone != 0 ]; then echo 'tests marked "alone" failed: see the first run above'; fi; \
	exit $$alone

demo: env
	$(BIN)/python examples/stdlib_hashes/demo.py

bench: env
	$(BIN)/python -m bench

# Without extras, away from the checkout: what a user gets.
wheel-test: env
	rm -rf build/wheel-test
	$(BIN)/python -m build --no-isolation --wheel --outdir build/wheel-test/dist .
	$(BIN)/python -m venv build/wheel-test/venv
	build/wheel-test/venv/bin/python -m pip install --quiet -c constraints/dev.txt build/wheel-test/dist/dutiful-*.whl
	cd build/wheel-test && venv/bin/python -I ../../scripts/wheel_smoke.py

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find src tests $(wildcard examples bench scripts) -name __pycache__ -type d -prune -exec rm -rf {} +

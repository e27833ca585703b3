# One word each. Every target sets up what it needs: a virtual environment in .venv, from pinned versions.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin

# Which engines, as pytest's -k has it: make test-engines ENGINES='prism or dask'
ENGINES ?=

.PHONY: demo test test-engines test-examples test-faults fuzz lint bench bench-gpu docs format clean

demo: .venv/installed
	$(BIN)/curate demo

test: .venv/installed
	$(BIN)/pytest -n logical --maxprocesses 8 --dist loadfile

test-engines: .venv/engines
	@# Only what is asked for is set up. What cannot be set up fails below, in its test.
	-@case '$(ENGINES)' in *'not prism'*) ;; ''|*prism*|*follow*|*not*) tests/engines/setup_prism.sh ;; esac
	-@case '$(ENGINES)' in *'not flink'*) ;; ''|*flink*|*follow*|*not*) tests/engines/setup_flink.sh ;; esac
	$(BIN)/pytest tests/engines -m engines $(if $(ENGINES),-k '$(ENGINES)')

test-examples: .venv/examples
	$(BIN)/pytest tests/examples -m examples

test-faults: .venv/installed
	$(BIN)/pytest -m faults tests/faults

fuzz: .venv/installed
	@echo "Installing atheris"
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[fuzz]'
	mkdir -p .cache && $(BIN)/python tests/faults/fuzz_readers.py -max_total_time=60 -artifact_prefix=.cache/

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# The repository's root is the package: mypy needs to see it under its own name.
	@mkdir -p .cache && ln -sfn .. .cache/curate
	cd .cache && ../$(BIN)/mypy -p curate --config-file ../pyproject.toml
	@# The scripts of these folders import each other by their bare names.
	@for folder in benchmarks experiments; do (cd $$folder && echo "mypy of $$folder" && \
		MYPYPATH=.:../.cache ../$(BIN)/mypy --explicit-package-bases --cache-dir ../.cache/.mypy_cache \
		--config-file ../pyproject.toml *.py) || exit 1; done

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed
	$(BIN)/curate docs-cli > docs/cli.md
	$(BIN)/python docs/generate.py

bench: .venv/installed
	$(BIN)/python benchmarks/run.py

bench-gpu: .venv/installed
	$(BIN)/python benchmarks/gpu.py

.venv/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "curate needs Python 3.11 or newer; give make PYTHON=/path/to/python3"; exit 1; }
	@echo "Setting up .venv with $(PYTHON) (a few minutes; torch and its libraries take 5.5 GB)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[dev]'
	@touch $@

.venv/engines: .venv/installed
	@echo "Installing Dask"
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[engines]'
	@touch $@

.venv/examples: .venv/installed
	@echo "Installing accelerate, lightning and transformers (a minute)"
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[examples]'
	@touch $@

clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache

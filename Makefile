# `make` sets up and runs the demo; `make test` sets up and tests, `make coverage` says which lines the tests run too (in
# twice the time), `make lint` looks for faults of form. Setting up happens once for each requirements.lock.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/requirements.lock

.PHONY: demo test coverage lint
demo: $(READY)
	@$(BIN)/snakemake --cores all

test: $(READY)
	@$(BIN)/python -m pytest

coverage: $(READY)
	@$(BIN)/python -m pytest --cov

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/snakefmt --check Snakefile workflow/rules
	@$(BIN)/snakemake --lint
	@$(BIN)/mypy

$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 is needed: make PYTHON=/path/to/python3.11")'
	@echo "installing requirements.lock into .venv (once)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@echo ../../../../scripts > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/loratory.pth"
	@cp $< $@

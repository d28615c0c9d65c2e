# `make` sets up and runs the demo; `make test` sets up, tests and says how much of the library the tests run; `make lint`
# looks for faults of form; `make docs` makes the pages of docs/ a site. Setting up happens once for each requirements.lock.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/requirements.lock
# Processes of `make test`, of 1 to 2 GB each.
WORKERS ?= 2

# What draws molecules in the report's pages, as its package has it.
VIEWER := scripts/loratory/reporting/viewer
VIEWER_VERSION ?= 2.5.5

.PHONY: demo test lint docs viewer
demo: $(READY)
	@$(BIN)/snakemake --cores all

test: $(READY)
	@$(BIN)/python -m slipcover -m pytest -n $(WORKERS) --dist loadfile
	@$(BIN)/python tests/print_coverage.py .pytest_cache/coverage.json

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/snakefmt --check workflow
	@$(BIN)/snakemake --lint
	@$(BIN)/mypy

docs: $(READY)
	@$(BIN)/mkdocs build --strict

# Needs npm and a registry of its packages; nothing else does, as the file is kept here.
viewer:
	@set -e; folder=$$(mktemp -d); npm pack --silent --pack-destination $$folder 3dmol@$(VIEWER_VERSION); \
	tar -xzf $$folder/*.tgz -C $$folder package/build/3Dmol-min.js package/LICENSE; \
	cp $$folder/package/build/3Dmol-min.js $(VIEWER)/; cp $$folder/package/LICENSE $(VIEWER)/3Dmol.LICENSE; \
	rm -r $$folder; cd $(VIEWER); sha256sum 3Dmol-min.js > 3Dmol-min.js.sha256

$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 is needed: make PYTHON=/path/to/python3.11")'
	@echo "installing requirements.lock into .venv (once)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $<
	@echo ../../../../scripts > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/loratory.pth"
	@printf '#!/bin/sh\nexec "$$(dirname "$$(readlink -f "$$0")")/python" -m loratory "$$@"\n' > $(BIN)/loratory
	@chmod +x $(BIN)/loratory
	@cp $< $@

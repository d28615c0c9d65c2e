# `make` sets up and runs the demo; `make test` sets up, tests and says how much of the library the tests run; `make lint`
# looks for faults of form; `make docs` makes the pages of docs/ a site; `make lock` renews the locks. Setting up happens once
# for each requirements.lock and torch.lock.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/requirements.lock
# Processes of `make test`, of 1 to 2 GB each.
WORKERS ?= 2

# What draws molecules in the report's pages, as its package has it.
VIEWER := scripts/loratory/reporting/viewer
VIEWER_VERSION ?= 2.5.5

.PHONY: demo test lint docs viewer lock
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

# Every version within pyproject.toml's ranges with the digests of all its files, as the package index that pip is set up with
# gives them; versions that fit stay (PIN='--upgrade-package NAME' lets one go). Then what is known to be wrong with them is
# looked up, of every one or the target fails. Where the index gives a CUDA build of torch, its CUDA packages would come in.
PIN ?=
# All of pyproject.toml but `cuda`, which machines without a GPU have no use for.
EXTRAS := cluster structure esm speech federated docs test
lock:
	@set -e; tools=$$(mktemp -d); $(PYTHON) -m venv $$tools; \
	$$tools/bin/pip install --quiet --disable-pip-version-check pip-tools pip-audit; \
	sed '/^[^#]/,$$d' requirements.lock > $$tools/head; \
	$$tools/bin/pip-compile --quiet $(EXTRAS:%=--extra %) --strip-extras --generate-hashes --unsafe-package torch $(PIN) \
		--no-header --no-annotate --output-file requirements.lock pyproject.toml; \
	sed '/^[#-]/d;/^$$/d' requirements.lock | cat $$tools/head - > $$tools/lock; cp $$tools/lock requirements.lock; \
	$$tools/bin/pip-audit --strict --disable-pip --no-deps -r requirements.lock -r torch.lock; \
	rm -r $$tools

$(READY): requirements.lock torch.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 is needed: make PYTHON=/path/to/python3.11")'
	@echo "installing requirements.lock and torch.lock into .venv (once)"
	@$(PYTHON) -m venv --clear .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r torch.lock
	@echo ../../../../scripts > "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/loratory.pth"
	@printf '#!/bin/sh\nexec "$$(dirname "$$(readlink -f "$$0")")/python" -m loratory "$$@"\n' > $(BIN)/loratory
	@chmod +x $(BIN)/loratory
	@cp $< $@

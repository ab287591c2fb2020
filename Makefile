# `make` alone prints what there is.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install demo serve-demo test check clean

help: ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: .venv/installed ## Make .venv with rushes in it

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rushes needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	@echo "installing rushes into .venv: a few minutes the first time"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	@echo "installing the tools for tests into .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: install ## Render examples/ads.parquet into out/demo with the embedded model
	@$(BIN)/rushes render examples/ads.parquet --output out/demo

serve-demo: install ## Serve the embedded model on http://127.0.0.1:8000/v1, nobody asked for a key
	@$(BIN)/rushes serve --output out/online --insecure

check: .venv/installed-dev ## Lint, types, import directions, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/codespell

test: check ## Run every check and the whole test suite
	$(BIN)/python -m pytest

clean: ## Remove the virtual environment and everything rendered by the demo
	rm -rf .venv out build dist *.egg-info

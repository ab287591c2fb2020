# `make` alone prints what there is.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install demo test check clean

help: ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: .venv/installed ## Make .venv with rushes and its tools in it

.venv/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rushes needs Python 3.11 or newer; try make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: install ## Render examples/ads.parquet into out/demo with the embedded model
	$(BIN)/rushes render examples/ads.parquet --output out/demo

check: install ## Lint, types, import directions, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright
	$(BIN)/codespell

test: check ## Run every check and the whole test suite
	$(BIN)/python -m pytest

clean: ## Remove the virtual environment and everything rendered by the demo
	rm -rf .venv out build dist *.egg-info

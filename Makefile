# Each target makes the virtual environment .venv at its first use; PYTHON=... chooses the interpreter (3.10 or later).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test style

demo: .venv/installed
	$(BIN)/python training/train.py training/configs/demo.yaml

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --numprocesses auto

style: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/installed: setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --editable '.[dev]'
	touch $@

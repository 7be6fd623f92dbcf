# Each target makes the virtual environment .venv at its first use; PYTHON=... chooses the interpreter (3.10 or later).
# Modules are compiled when they are first imported: of the environment's 19,000 a run imports few. Where the variable
# below is set, as in many images of containers, they would be compiled at each import, which takes three times as long.
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo space test test-faults test-docs notebook recipes docs style findings

demo: .venv/installed
	$(BIN)/python training/train.py training/configs/demo.yaml

# The app in a browser, at the address that it prints; MODEL_ID=... shows another model than the shipped one.
space: .venv/space
	$(BIN)/python space_app/app.py

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --numprocesses auto --dist loadgroup

# What goes wrong in training and loading: docs/reliability.md. Twenty kills take minutes; KILLS=2 is a short form.
test-faults: .venv/installed
	OMP_NUM_THREADS=1 KILLS=$(or $(KILLS),20) $(BIN)/python -m pytest tests/faults --numprocesses auto

# The tutorial, the recipes of README.md and docs/ (see docs/recipes.py), and the site with warnings as errors.
test-docs: notebook recipes docs

notebook: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python scripts/run_notebook.py notebooks/tutorial.ipynb --fast --answers

recipes: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p docs.recipes README.md docs --numprocesses auto --dist loadfile -rs --no-fold-skipped

docs: .venv/installed
	$(BIN)/python -m sphinx --fresh-env --fail-on-warning --keep-going --quiet docs build/docs

style: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What surprised us in libraries (findings/README.md): downloads their releases into temporary folders; not in CI.
findings:
	@status=0; for script in findings/*.sh; do \
		echo "$$script"; PYTHON="$(PYTHON)" bash "$$script" || status=1; \
	done; exit $$status

# What the app needs and no more; where all is installed, that is enough.
.venv/space: setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -e .venv/installed || $(BIN)/python -m pip install --editable '.[space]'
	touch $@

.venv/installed: setup.py pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --no-compile --editable '.[dev]'
	touch $@

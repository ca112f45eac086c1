# Each target does all the set-up it needs: .venv is built when missing or older than pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: fit test test-slow lint format dashboard

fit: .venv/ready
	$(BIN)/python scripts/fit.py

test: .venv/ready
	$(BIN)/python -m pytest -m "not slow" -n auto --cov --cov-report=term

test-slow: .venv/ready
	$(BIN)/python -m pytest -m slow

lint: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

dashboard: .venv/ready
	$(BIN)/tensorboard --logdir lightning_logs --host localhost

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

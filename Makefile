# Each target first builds .venv if it is missing or older than pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin
MINUTES ?= 10

.PHONY: fit test test-slow coverage stress mutants lint format dashboard

fit: .venv/ready
	$(BIN)/python scripts/fit.py

# SELECT= runs the slow ones too, in the same process, which imports and collects once
SELECT = -m "not slow"
test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SELECT) -n auto --dist worksteal

test-slow: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n 2 --dist worksteal

coverage: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --cov --cov-report=term

# Train with each part of Lightning; kill runs at random times, then try random inputs, for MINUTES each
stress: .venv/ready
	$(BIN)/python tests/stress/matrix.py
	$(BIN)/python tests/stress/exports.py
	$(BIN)/python tests/stress/clients.py
	$(BIN)/python tests/stress/kill_runs.py --minutes $(MINUTES)
	$(BIN)/python tests/stress/odd_inputs.py --minutes $(MINUTES)

# Plant one bug at a time; the tests must fail for each.
mutants: .venv/ready
	$(BIN)/python tests/stress/mutants.py

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

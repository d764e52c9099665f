# The two set-up commands: `make run` and `make test`. For developers: test-services, lint, lock, bench, clean.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

.PHONY: run test test-services lint lock bench clean

run: $(READY)
	$(BIN)/kiwi run --preset tiny --workdir runs/demo --summary runs/demo/summary.json

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# Against real services, one test after the other; what is not installed is skipped with its reason (.ci/run installs).
test-services: $(READY)
	$(BIN)/python -m pytest tests/integration -m services

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict -p kiwi

# One environment for everything, pinned by requirements.lock; the project itself is installed in place.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else "kiwi needs Python 3.11 to 3.13, this is %d.%d: make PYTHON=python3.12 run" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# Exact pins of what is installed in .venv: no addresses, no paths; CUDA packages only where there can be CUDA.
lock:
	$(BIN)/python infra/lock.py > requirements.lock.new
	mv requirements.lock.new requirements.lock

bench: $(READY)
	$(BIN)/python benchmarks/end_to_end.py

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache

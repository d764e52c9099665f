# The two set-up commands: `make run` and `make test`. For developers: test-services, lint, audit, lock,
# bench, clean; images, images-lock (containers), compose-up, compose-down (services on one host).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2

.PHONY: run test test-services lint audit lock bench clean images images-lock compose-up compose-down

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

# Our code by bandit, and the pinned packages by pip-audit where an advisory database answers (docs/security.md).
audit: $(READY)
	$(BIN)/python infra/audit.py

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

# The images client, cpu and gpu, named by git SHA, each looked at by kiwi doctor. IMAGES="--target cpu" builds one;
# IMAGES="--repository registry.example/kiwi --push" sends them. docs/containers.md has the rest.
images: $(READY)
	$(BIN)/python infra/images/build.py $(IMAGES)

# The images' packages with their hashes, after a change of requirements.lock.
images-lock: $(READY)
	$(BIN)/python infra/images/lock.py

# MLflow on PostgreSQL and an S3 service, for one workstation. The first start makes their passwords.
compose-up: $(READY)
	$(BIN)/python infra/compose/start.py

compose-down:
	$(PYTHON) infra/compose/start.py --stop

bench: $(READY)
	$(BIN)/python benchmarks/orchestration.py

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache

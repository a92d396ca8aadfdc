# make demo   environment, grid `demo` on this machine, its table and report
# make test   environment, every test, two files of them at a time
# make chaos  a grid harmed at random moments for MINUTES=60; SEED=N ROUND=K LAST_S=T replays a round
# make env    environment only; make lint: style and types

PYTHON ?= python3
BIN := .venv/bin
PY := $(BIN)/python

.PHONY: env demo test lint chaos

env: .venv/installed

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, {v.major}.{v.minor} was found; set PYTHON=python3.11")'
	@test -x $(PY) || $(PYTHON) -m venv .venv || { echo "cannot create .venv; on Debian and Ubuntu: apt install python3-venv" >&2; rm -rf .venv; exit 1; }
	$(PY) -m pip install --disable-pip-version-check -r requirements.lock
	$(PY) -m pip install --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: env
	$(PY) -m datasets.prepare digits
	$(PY) -m tuner.run --grid demo
	$(PY) -m analysis.tables --grid demo
	$(PY) -m analysis.report --grid demo

test: env
	$(PY) -m pytest --numprocesses 2 --dist loadfile

chaos: env
	PYTHONPATH=$(CURDIR)/tests/support:$(CURDIR) $(PY) tests/integration/faults.py --minutes $(or $(MINUTES),60) $(if $(SEED),--seed $(SEED)) $(if $(ROUND),--round $(ROUND)) $(if $(LAST_S),--last-s $(LAST_S))

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# make serve      the sentiment model on http://127.0.0.1:8000
# make test       the tests that need minutes;  make test-slow: those with a real Ray and real training too
# make check      lint and types
.PHONY: install serve test test-slow check constraints clean

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
# TORCH is installed first, so that no open range can choose another build; README, "CPU or CUDA".
TORCH ?= torch==2.13.0
SAY := @echo "==>"

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(SAY) "creating the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	$(SAY) "installing $(TORCH)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "$(TORCH)"
	$(SAY) "installing Heed with its test and lint tools"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,lint]"
	@touch $@

serve: install
	$(SAY) "serving the sentiment model (Ctrl-C stops)"
	@$(BIN)/heed serve

test: install
	$(SAY) "running the tests that need minutes"
	@$(BIN)/pytest -m "not slow and not gpu"

test-slow: install
	$(SAY) "running the tests with a real Ray and real training"
	@$(BIN)/pytest -m "slow and not gpu"

check: install
	$(SAY) "ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	$(SAY) "mypy --strict"
	@$(BIN)/mypy

# From the newest versions that pyproject.toml allows, in an environment of its own.
constraints:
	$(SAY) "resolving"
	@$(PYTHON) -m venv $(VENV)-constraints
	@$(VENV)-constraints/bin/pip install --quiet "$(TORCH)"
	@$(VENV)-constraints/bin/pip install --quiet ".[test,lint,bench]"
	@head -2 constraints.txt > constraints.new
	@$(VENV)-constraints/bin/pip freeze --all --exclude pip --exclude heed | sed 's/+cpu$$//' >> constraints.new
	@mv constraints.new constraints.txt && rm -rf $(VENV)-constraints

clean:
	rm -rf $(VENV) build *.egg-info

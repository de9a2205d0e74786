# make serve      the sentiment model on http://127.0.0.1:8000
# make test       the tests that need minutes;  make test-slow: those with a real Ray and real training too
# make check      lint and types
# make image      the image: built, started as in production, asked a question
# make wheel sbom notes     what a release is made of, in dist/;  make audit: known vulnerabilities in what it is pinned to
.PHONY: install serve test test-slow check image wheel sbom notes audit version image-tag constraints clean

.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
# TORCH is installed first, so that no open range can choose another build; README, "CPU or CUDA".
TORCH ?= torch==2.13.0
# Tools of a release, which nothing else needs.
SBOM := cyclonedx-bom==7.5.0
AUDIT := pip-audit==2.10.1
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
	$(SAY) "hadolint"
	@$(BIN)/hadolint Dockerfile

image:
	@deploy/try_image.sh $(BUILD_FLAGS)

wheel:
	$(SAY) "building the wheel"
	@$(PYTHON) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

dist/requirements.txt: install
	@mkdir -p dist
	@$(BIN)/python deploy/packages.py > $@

# In CycloneDX's form, of the packages that the image has.
sbom: dist/requirements.txt
	$(SAY) "listing what the image is made of: dist/sbom.json"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "$(SBOM)"
	@$(BIN)/cyclonedx-py requirements dist/requirements.txt --pyproject pyproject.toml --output-reproducible -o dist/sbom.json

notes:
	@mkdir -p dist
	@awk -v heading="## [$$($(MAKE) --silent version)]" '/^## \[/ { on = index($$0, heading) == 1 } on' CHANGELOG.md > dist/notes.md
	@test -s dist/notes.md || { echo "CHANGELOG.md has no section of this version: $$($(MAKE) --silent version)" >&2; exit 1; }

audit: dist/requirements.txt
	$(SAY) "looking for known vulnerabilities in what the image is made of"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "$(AUDIT)"
	@$(BIN)/pip-audit --no-deps --disable-pip -r dist/requirements.txt

version:
	@sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml

image-tag:
	@echo "$$($(MAKE) --silent version)-ray$$(sed -n 's/^ray==//p' constraints.txt)"

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

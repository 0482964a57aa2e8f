# Setup and common tasks. `make demo` and `make test` work on a fresh clone, on a CPU, with Python 3.11 or later.
# Variables, for example: `make test VENV=other-folder PYTHON=python3.12 PYTEST_ARGS='-k scheduler'`.

PYTHON ?= python3
VENV ?= .venv
LOWEST_VENV ?= .venv-lowest
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=
# Processes that run tests at the same time. Each computes with one thread (tests/conftest.py).
PYTEST_WORKERS ?= 2

DEMO_PROMPT ?= a red apple to the left of a blue car
DEMO_OUTPUT ?= build/demo.png

# pip keeps a build of torch that is already installed, so GPU users install the right build first (see README.md).
PIP_INSTALL = $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet -c $(CONSTRAINTS)
INSTALL_FILES = setup.cfg pyproject.toml $(CONSTRAINTS)

# Each stamp records a finished installation. It is repeated when one of INSTALL_FILES changes.
INSTALLED = $(VENV)/installed.stamp
TEST_INSTALLED = $(VENV)/test-installed.stamp

# One file stays in one process, so module fixtures are made once.
PYTEST = $(VENV)/bin/python -m pytest --numprocesses $(PYTEST_WORKERS) --dist loadfile

.PHONY: demo test test-slow browser test-lowest check docs wheel clean

demo: $(INSTALLED)
	@mkdir -p "$(dir $(DEMO_OUTPUT))"
	@echo "Making an image of \"$(DEMO_PROMPT)\" ..."
	@$(VENV)/bin/showo-hf generate "$(DEMO_PROMPT)" --seed 0 --output "$(DEMO_OUTPUT)" > /dev/null
	@echo "The image is in $(DEMO_OUTPUT)"

# The quick tests: some minutes.
test: $(TEST_INSTALLED)
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

# The slow tests: full sizes, compilation, killed processes, exports, wheels and environments.
test-slow: $(TEST_INSTALLED) browser
	$(PYTEST) -m slow $(PYTEST_ARGS)

# What the tests of the page need: Debian's Chromium if there is none, and axe-core. They skip what is missing.
browser:
	@command -v chromium > /dev/null || { apt-get update && apt-get install --yes --no-install-recommends chromium; } \
	    > /dev/null 2>&1 || echo "Chromium could not be installed: the tests in a browser are skipped."
	@test -f build/node_modules/axe-core/axe.min.js || npm install --silent --no-save --prefix build axe-core@4.14.1 \
	    > /dev/null 2>&1 || echo "axe-core could not be installed: its tests are skipped."

# The quick tests with the lowest versions that setup.cfg allows, in an environment of their own.
test-lowest:
	$(MAKE) test VENV="$(LOWEST_VENV)" CONSTRAINTS=constraints-lowest.txt

# mypy cannot follow the mapping of two top-level folders into the package, so it gets the installed layout. Gradio writes a
# stub beside the app's components, and does not keep it up to date.
check: $(TEST_INSTALLED)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	@rm -rf build/typed src/showo_hf/app/*.pyi && mkdir -p build/typed/showo_hf
	@ln -s $(foreach path,$(wildcard src/showo_hf/*) pipelines conversion,"$(CURDIR)/$(path)") build/typed/showo_hf/
	MYPYPATH=build/typed $(VENV)/bin/python -m mypy --package showo_hf

# The guides and the reference as one site. A broken link or an unknown name in a docstring is an error. Material warns that
# it will not follow MkDocs 2, which setup.cfg excludes.
docs: $(TEST_INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build
	@echo "The site is in build/site; open build/site/index.html"

wheel: $(TEST_INSTALLED)
	rm -rf build/lib
	$(VENV)/bin/python -m build --wheel
	@ls dist/*.whl

clean:
	rm -rf "$(VENV)" "$(LOWEST_VENV)" build dist src/showo_hf.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src pipelines conversion recipes tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2> /dev/null || true

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The environment is an order-only prerequisite: it must exist, and its age does not matter.
$(INSTALLED): $(INSTALL_FILES) | $(VENV)/bin/python
	@echo "Installing into $(VENV); the first time takes some minutes ..."
	@$(PIP_INSTALL) --editable .
	@touch $@

$(TEST_INSTALLED): $(INSTALL_FILES) | $(VENV)/bin/python
	@echo "Installing into $(VENV), with the test dependencies; the first time takes some minutes ..."
	@$(PIP_INSTALL) --editable '.[test]'
	@touch $(INSTALLED) $@

# Everything that needs setting up. `make demo` and `make test` work on a fresh clone, with Python 3.11 or later and
# on a CPU. Variables: `make test VENV=other-folder PYTHON=python3.12 PYTEST_ARGS='-m "not slow"'`.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=

DEMO_PROMPT ?= a red apple, flat style
DEMO_OUTPUT ?= build/demo.png

# A build of torch that is in the environment already stays: so a GPU user installs the right one first (see README.md).
PIP_INSTALL = $(VENV)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
INSTALL_FILES = setup.cfg pyproject.toml constraints.txt

# Stamps: what is installed is not installed again until one of these files changes.
INSTALLED = $(VENV)/installed.stamp
TEST_INSTALLED = $(VENV)/test-installed.stamp

.PHONY: demo test check wheel clean

demo: $(INSTALLED)
	@mkdir -p "$(dir $(DEMO_OUTPUT))"
	@echo "Making an image of \"$(DEMO_PROMPT)\" ..."
	@$(VENV)/bin/showo-hf generate "$(DEMO_PROMPT)" --seed 0 --output "$(DEMO_OUTPUT)" > /dev/null
	@echo "The image is in $(DEMO_OUTPUT)"

test: $(TEST_INSTALLED)
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

# mypy cannot follow the mapping of two top-level folders into the package, so it is shown the installed layout.
check: $(TEST_INSTALLED)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check .
	@rm -rf build/typed && mkdir -p build/typed/showo_hf
	@ln -s $(foreach path,$(wildcard src/showo_hf/*) pipelines conversion,"$(CURDIR)/$(path)") build/typed/showo_hf/
	MYPYPATH=build/typed $(VENV)/bin/python -m mypy --package showo_hf

wheel: $(TEST_INSTALLED)
	rm -rf build/lib
	$(VENV)/bin/python -m build --wheel
	@ls dist/*.whl

clean:
	rm -rf "$(VENV)" build dist src/showo_hf.egg-info
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src pipelines conversion tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2> /dev/null || true

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The environment's folder is an order-only prerequisite: it must be there, but its age says nothing.
$(INSTALLED): $(INSTALL_FILES) | $(VENV)/bin/python
	@echo "Installing into $(VENV); the first time takes some minutes ..."
	@$(PIP_INSTALL) --editable .
	@touch $@

$(TEST_INSTALLED): $(INSTALL_FILES) | $(VENV)/bin/python
	@echo "Installing into $(VENV) with what the tests need; the first time takes some minutes ..."
	@$(PIP_INSTALL) --editable '.[test]'
	@touch $(INSTALLED) $@

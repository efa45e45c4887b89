# Everything below runs in .venv, which is made on first use and again only when the dependencies change.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
DEMO_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
DEPENDENCIES := setup.cfg pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test lint wheel clean

help:
	@echo "make demo     install into $(VENV), then simulate, federate, personalise, evaluate: ./demo/report.html"
	@echo "make test     install into $(VENV), then run the tests"
	@echo "make lint     check the code with ruff"
	@echo "make wheel    build dist/*.whl, bundles included"
	@echo "make install  only install into $(VENV)"
	@echo "make clean    remove $(VENV), build products and caches (the results of runs stay)"

install: $(VENV)/.installed-demo

demo: $(VENV)/.installed-demo
	$(BIN)/fedsr demo $(DEMO_ARGS)

# One thread a worker: threads that wait for each other cost more than they bring at the tests' sizes.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .

wheel: $(VENV)/.made
	$(PIP) wheel --no-deps --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist fedsr_monai.egg-info .pytest_cache .ruff_cache
	find fedsr_monai tests bundles -name __pycache__ -type d -prune -exec rm -rf {} +

# fedsr-monai with the extra of that name; the file that is touched says that it is done.
$(VENV)/.installed-%: $(DEPENDENCIES) | $(VENV)/.made
	@echo "Installing fedsr-monai[$*] with the versions of constraints.txt into $(VENV)"
	$(PIP) install --quiet --constraint constraints.txt --editable ".[$*]"
	@touch $@

$(VENV)/.made:
	@echo "Making a virtual environment in $(VENV)"
	$(PYTHON) -m venv $(VENV)
	@touch $@

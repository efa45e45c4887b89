# Everything below runs in .venv, which is made on first use and again only when the dependencies change.
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
DEMO_ARGS ?=
LABEL_VENV ?= .venv-label
LABEL_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
LABEL_PIP := $(LABEL_VENV)/bin/pip --disable-pip-version-check
DEPENDENCIES := setup.cfg pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast lint format docs wheel clean label-env label test-label test-flare

help:
	@echo "make demo     install into $(VENV), then simulate, federate, personalise, evaluate: ./demo/report.html"
	@echo "make test     install into $(VENV), then run the tests"
	@echo "make test-fast  the same without the slow tests: under two minutes on two cores"
	@echo "make label STUDIES=DIR  serve the scans of a folder with MONAI Label, from an environment of its own, $(LABEL_VENV)"
	@echo "make label-env, make test-label  only install that environment, or test in it with a real server"
	@echo "make test-flare  test over real processes with mutual TLS, killed and aborted, on this machine alone (Linux)"
	@echo "make lint     check format, rules, docstrings (ruff) and types (mypy); make format: let ruff format the code"
	@echo "make docs     build the documentation site in build/docs; a warning is an error"
	@echo "make wheel    build dist/*.whl, bundles included"
	@echo "make install  only install into $(VENV)"
	@echo "make clean    remove $(VENV), $(LABEL_VENV), build products and caches (the results of runs stay)"

install: $(VENV)/.installed-demo

demo: $(VENV)/.installed-demo
	$(BIN)/fedsr demo $(DEMO_ARGS)

# One thread per worker: threads that wait for each other cost more than they bring at the tests' sizes.
# A file's tests stay in one worker: fixtures that take most of a minute are made once.
test: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-fast: $(VENV)/.installed-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m "not slow" $(PYTEST_ARGS)

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict --quiet
	@echo "build/docs/index.html"

wheel: $(VENV)/.made
	$(PIP) wheel --no-deps --wheel-dir dist .

# MONAI Label asks for numpy < 2, and for a torch with CUDA: an environment of its own, and --no-deps for what would bring them.
label-env: $(LABEL_VENV)/.installed

label: $(LABEL_VENV)/.installed
	@test -n "$(STUDIES)" || { echo "make label: STUDIES is empty, expected a folder of scans: make label STUDIES=DIR"; exit 2; }
	$(LABEL_VENV)/bin/fedsr label "$(STUDIES)" $(LABEL_ARGS)

test-label: $(LABEL_VENV)/.installed
	OMP_NUM_THREADS=1 $(LABEL_VENV)/bin/python -m pytest tests/monai_label $(PYTEST_ARGS)

# Server and hospitals as processes of their own, in a network namespace of their own; job processes are killed. Five to eight minutes.
test-flare: $(VENV)/.installed-test
	FEDSR_POC=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -rP tests/flare/test_poc.py $(PYTEST_ARGS)

$(LABEL_VENV)/.installed: setup.cfg pyproject.toml constraints-label.txt
	@echo "Installing MONAI Label and fedsr-monai with the versions of constraints-label.txt into $(LABEL_VENV)"
	test -x $(LABEL_VENV)/bin/pip || $(PYTHON) -m venv $(LABEL_VENV)
	$(LABEL_PIP) install --quiet --constraint constraints-label.txt --editable ".[label]"
	$(LABEL_PIP) install --quiet --constraint constraints-label.txt --no-deps monailabel pydicom-seg torchvision
	@touch $@

clean:
	rm -rf $(VENV) $(LABEL_VENV) build dist fedsr_monai.egg-info .pytest_cache .ruff_cache .mypy_cache
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

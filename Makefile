# `make run` serves the embedded model on http://127.0.0.1:8000; `make test` runs every check.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CPU_SOURCES := $(shell find plugins/cpu -path '*/build' -prune -o -type f -print)
CUDA_SOURCES := $(shell find plugins/cuda -path '*/build' -prune -o -path '*/csrc' -prune -o -type f -print)

.PHONY: run test lint install clean

run: $(VENV)/installed
	$(BIN)/fd serve $(ARGS)

test: $(VENV)/tested-with lint
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/tested-with
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/lint/check_style.py

install: $(VENV)/installed

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

$(VENV)/installed: $(VENV)/bin/python pyproject.toml requirements/constraints.txt $(CPU_SOURCES)
	$(BIN)/python -m pip install -q -c requirements/constraints.txt -e . ./plugins/cpu
	touch $@

# fd-cuda without kernels: its table, probe and diagnostics are tested on any machine.
$(VENV)/tested-with: $(VENV)/installed requirements/test.txt $(CUDA_SOURCES)
	$(BIN)/python -m pip install -q -c requirements/constraints.txt -r requirements/test.txt -e ./plugins/xpu
	FD_CUDA_ARCHS=none $(BIN)/python -m pip install -q --force-reinstall --no-deps ./plugins/cuda
	touch $@

clean:
	rm -rf $(VENV) build plugins/cpu/build plugins/cuda/build

# `make demo` and `make test` do everything on a machine with Python 3.11 or newer: they create .venv, install into it
# what constraints.txt pins, and run.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TRL    := .venv-trl
VLLM   := .vllm

.PHONY: install demo test lint bench bench-trl vllm test-vllm clean

install: $(STAMP)

# torch first and alone, so that the pinned build is taken before anything else can ask for another one.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "maieutic needs Python 3.11 or newer; got " + sys.version.split()[0] + ". Point make at one: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: install
	$(BIN)/maieutic demo $(ARGS)

# Two files of tests at a time, each with one thread: they are as many as two cores can do at once.
test: install lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

lint: install
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/ruff format --check src tests examples benchmarks
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks $(ARGS)

# TRL has an environment of its own, torch first here too.
$(TRL)/.installed: benchmarks/requirements-trl.txt
	$(PYTHON) -m venv $(TRL)
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check -c benchmarks/requirements-trl.txt torch
	$(TRL)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/requirements-trl.txt
	@touch $@

bench-trl: install $(TRL)/.installed
	$(BIN)/python -m benchmarks step $(ARGS)

# vLLM too (3.4 GB). The list is whole and is taken without what its packages ask for: torchvision and its like, which
# come along, are builds for another torch, and break it.
$(VLLM)/.installed: benchmarks/requirements-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -c benchmarks/requirements-vllm.txt torch
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/requirements-vllm.txt
	@touch $@

vllm: $(VLLM)/.installed

test-vllm: install vllm
	$(BIN)/python -m pytest tests/endpoint/test_vllm.py $(ARGS)

clean:
	rm -rf $(VENV) $(TRL) $(VLLM) .pytest_cache .mypy_cache .ruff_cache build src/*.egg-info

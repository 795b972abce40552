# `make demo` and `make test` need Python 3.11+ with venv, and make; everything else they install.
PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN = $(VENV)/bin
OLDEST = .venv-oldest
EXTRAS = vision,web,browser,train,dev
OLDEST_EXTRAS = vision,train,dev

# One thread for each test process: the tests' tensors are too small to gain from more.
PYTEST = OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(JOBS)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help env demo test test-all test-oldest lint types format docs bench clean

help:
	@echo "make demo         install, then compare all methods on the model that ships here"
	@echo "make test         lint, types and the fast tests"
	@echo "make test-all     the same with the slow tests"
	@echo "make test-oldest  the fast tests on the oldest transformers that is supported"
	@echo "make lint         ruff and mypy;  make format  lets ruff rewrite"
	@echo "make docs         build the documentation into site/"
	@echo "make bench        measure time and memory on this machine"

env: $(VENV)/.installed

# Makes a CUDA build of torchvision importable beside a CPU build of torch: see the module.
SHIM = import sysconfig; open(sysconfig.get_path("purelib") + "/torchvision_shim.pth", "w").write("$(CURDIR)/tests/torchvision_shim\nimport torchvision_shim\n")

# $(call install,FOLDER,CONSTRAINTS,EXTRAS): a virtual environment with foveate in it, editable.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "foveate needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12")'
	@test -x $(1)/bin/pip || $(PYTHON) -m venv $(1) || { echo "Python's venv is missing: apt install python3-venv"; exit 1; }
	@echo "Installing into $(1); the first time takes a few minutes."
	@$(1)/bin/pip install --quiet --constraint $(2) --editable '.[$(3)]'
	@$(1)/bin/python -c '$(SHIM)'
	@touch $(1)/.installed
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call install,$(VENV),constraints.txt,$(EXTRAS))

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(call install,$(OLDEST),constraints-oldest.txt,$(OLDEST_EXTRAS))

demo: env
	$(BIN)/foveate compare --out output/demo

test: lint
	$(PYTEST)

test-all: lint
	$(PYTEST) -m "not gpu and not network"

test-oldest: $(OLDEST)/.installed
	$(MAKE) --no-print-directory fast-tests VENV=$(OLDEST)

.PHONY: fast-tests
fast-tests:
	$(PYTEST)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: env
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

bench: env
	$(BIN)/python -m benchmarks.overhead

clean:
	rm -rf site output build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The commands that stay. What needs logic is Python in platform/stoker; see README.md for the plain commands.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
# Debian keeps the half of Python that makes virtual environments in a package of its own.
VENV_PACKAGE := { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing python3-venv" && \
	{ apt-get install -qq -y python3-venv || { apt-get update -qq && apt-get install -qq -y python3-venv; }; } >/dev/null; } || \
	{ echo "error: this Python cannot make virtual environments; on Debian: sudo apt install python3-venv"; exit 2; }
# libjpeg-turbo's program, which `jobs/prepare.py` marks JPEGs with; nothing else needs it.
JPEG_PACKAGE := { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing libjpeg-turbo-progs" && \
	{ apt-get install -qq -y libjpeg-turbo-progs || { apt-get update -qq && apt-get install -qq -y libjpeg-turbo-progs; }; } >/dev/null; } || \
	echo "note: no jpegtran here, which preparing JPEGs needs; on Debian: sudo apt install libjpeg-turbo-progs"
UV_VERSION := 0.13.9

.DEFAULT_GOAL := help
.PHONY: help install quickstart up down test test-long test-fast lint docs format bench-data bench-order bench-train bench-gpu verify-weights \
	clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed ## make the virtual environment and install the pinned packages

.venv/installed: cluster/requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: stoker needs Python 3.11 or newer; say which: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { test -x $(UV) || $(VENV_PACKAGE); }
	@test -x $(UV) || { $(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet uv==$(UV_VERSION); } || \
		{ rm -rf .venv; echo "error: the virtual environment .venv could not be made; the lines above say why"; exit 2; }
	@command -v jpegtran >/dev/null || $(JPEG_PACKAGE)
	$(UV) pip install --quiet --python $(BIN)/python -r cluster/requirements.txt
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

quickstart: install ## images to store to cluster to weights to an answer over HTTP
	@$(BIN)/python -m stoker.embedded.quickstart

up: install ## start the embedded store, cluster and endpoint, and keep them running
	@$(BIN)/python -m stoker.embedded up

down: install ## end them; the data stay in .stoker/
	@$(BIN)/python -m stoker.embedded down

test: install ## lint, then the suite (a store, a cluster and a server of its own); test-long runs what takes minutes
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

test-long: install ## the tests that take minutes each: fine-tuning on the cluster, runs that are stopped or lose nodes and store
	$(BIN)/python -m pytest -m long

test-fast: install ## the tests that need no store and no cluster
	$(BIN)/python -m pytest -m "not long and not store and not cluster and not browser and not gpu"

lint: install ## ruff, types, and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy platform/stoker jobs serve
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml --site-dir ../../build/lint-docs

# Never with --quiet: it hides the warnings from --strict too.
docs: install ## build the documentation into build/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml
	@echo "open build/docs/index.html"

format: install ## let ruff format and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-data: install ## the data path beside its peers' (BENCH="--rounds 1 --images 512" for a short look)
	@PYTHONPATH=tests $(BIN)/python -m bench.data $(BENCH)

bench-order: install ## order and seek at 10^9 samples and 4,096 ranks
	@PYTHONPATH=tests $(BIN)/python -m bench.order $(BENCH)

verify-weights: install ## one run on 1 to 4 ranks, killed, and elastic: the same sha256 of the weights, or exit 1
	@PYTHONPATH=tests $(BIN)/python -m weights

bench-train: install ## the step, the data path, starts and recoveries, beside a plain loop and stock Ray
	@PYTHONPATH=tests $(BIN)/python -m bench.train $(BENCH)

bench-gpu: install ## ResNet-50 in bf16 on one GPU (BENCH=--toy runs its code on the CPU)
	@PYTHONPATH=tests $(BIN)/python -m bench.train.gpu $(BENCH)

clean: down ## remove the virtual environment, the data and all caches
	rm -rf .venv .venv-peers .venv-peers-ffcv .stoker bench-data bench-train .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build

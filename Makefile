# Targets for people who work in a checkout. Logic is Python in platform/stoker; the command is `stoker`.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
# False without .venv, and when the Python that it was made of is gone.
WORKS := $(BIN)/python -S -c '' 2>/dev/null
# Debian packages venv separately from Python.
VENV_PACKAGE := { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing python3-venv" && \
	{ apt-get install -qq -y python3-venv || { apt-get update -qq && apt-get install -qq -y python3-venv; }; } >/dev/null; } || \
	{ echo "error: this Python cannot create virtual environments; on Debian: sudo apt install python3-venv"; exit 2; }
# jpegtran of libjpeg-turbo, which `stoker prepare` adds restart markers to JPEGs with; nothing else needs it.
JPEG_PACKAGE := { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing libjpeg-turbo-progs" && \
	{ apt-get install -qq -y libjpeg-turbo-progs || { apt-get update -qq && apt-get install -qq -y libjpeg-turbo-progs; }; } >/dev/null; } || \
	echo "note: jpegtran not found, which preparing JPEGs needs; on Debian: sudo apt install libjpeg-turbo-progs"
# The load generator of bench-serve.
WRK_PACKAGE := { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && echo "installing wrk" && \
	{ apt-get install -qq -y wrk || { apt-get update -qq && apt-get install -qq -y wrk; }; } >/dev/null; } || \
	{ echo "error: wrk not found, which asks for requests/s; on Debian: sudo apt install wrk"; exit 2; }
UV_VERSION := 0.13.9
# What a node needs at run time; what the embedded store needs on top; tools to develop, test and document. A fourth,
# requirements-aws.txt, is for heads on AWS.
REQUIREMENTS := cluster/requirements.txt cluster/requirements-embedded.txt cluster/requirements-dev.txt
# One resolution for Linux and macOS. uv prefers the versions that the output file pins already: delete a pin to move it.
COMPILE := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate

.DEFAULT_GOAL := help
.PHONY: FORCE help install lock quickstart demo up down test test-long test-fast lint docs format \
	bench-data bench-order bench-serve bench-train bench-pictures bench-gpu verify-weights mutants clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed ## create .venv and install the pinned packages, hashes checked

.venv/installed: $(REQUIREMENTS) pyproject.toml $(shell $(WORKS) || echo FORCE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: stoker needs Python 3.11 or newer; choose one: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(WORKS) && test -x $(UV); } || $(VENV_PACKAGE)
	@{ $(WORKS) && test -x $(UV); } || { new=; test -e .venv || new=.venv; $(WORKS) || rm -f $(BIN)/python*; \
		$(PYTHON) -m venv .venv && $(BIN)/python -m pip install --quiet uv==$(UV_VERSION); } || \
		{ rm -rf $$new; echo "error: cannot create the virtual environment .venv; see the lines above"; exit 2; }
	@command -v jpegtran >/dev/null || $(JPEG_PACKAGE)
	$(UV) pip install --quiet --python $(BIN)/python --require-hashes $(addprefix -r ,$(REQUIREMENTS))
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

lock: install ## resolve the pinned packages again, for what pyproject.toml asks now
	echo 'setuptools>=77' | $(COMPILE) pyproject.toml - --extra fast -o cluster/requirements.txt
	$(COMPILE) pyproject.toml --extra embedded -c cluster/requirements.txt -o cluster/requirements-embedded.txt
	$(COMPILE) pyproject.toml --extra audio --extra imagenet --extra test --extra docs --extra examples \
		-c cluster/requirements.txt -c cluster/requirements-embedded.txt -o cluster/requirements-dev.txt
	echo boto3 | $(COMPILE) - -c cluster/requirements.txt -o cluster/requirements-aws.txt

quickstart: install ## run the whole line on real data, from images to an HTTP answer
	@$(BIN)/stoker quickstart

demo: install ## serve a pretrained ImageNet model, ask it about photographs, keep it running until Ctrl-C
	@$(BIN)/stoker demo

up: install ## start the embedded store, cluster and endpoint, and keep them running
	@$(BIN)/stoker up

down: ## stop them; the data stay in .stoker/
	@if $(WORKS) && test -x $(BIN)/stoker; then $(BIN)/stoker down; else \
		echo "down: no working .venv here, so nothing can be stopped from here"; fi

test: install ## lint, then the test suite (starts its own store, cluster and server); test-long runs the slow tests
	@$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

test-long: install ## the tests that take minutes each: fine-tuning on the cluster, stopped runs, lost nodes, a wheel
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

format: install ## format with ruff and apply its safe fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-data: install ## the data path compared with its peers' (BENCH="--rounds 1 --images 512" for a short run)
	@PYTHONPATH=tests $(BIN)/python -m bench.data $(BENCH)

bench-order: install ## order and seek at 10^9 samples and 4,096 ranks
	@PYTHONPATH=tests $(BIN)/python -m bench.order $(BENCH)

verify-weights: install ## one run on 1 to 4 ranks, killed, and elastic: the same sha256 of the weights, or exit 1
	@PYTHONPATH=tests $(BIN)/python -m weights

mutants: install ## small mistakes in the pure parts, and whether a test notices each (MUTANTS="epoch.py --per-module 0")
	@PYTHONPATH=tests $(BIN)/python -m mutants $(MUTANTS)

bench-train: install ## the step, the data path, starts and recoveries, compared with a plain loop and stock Ray
	@PYTHONPATH=tests $(BIN)/python -m bench.train $(BENCH)

bench-serve: install ## the endpoint compared with FastAPI, LitServe and Serve's proxy; overload, faults, starts: 15 minutes
	@command -v wrk >/dev/null || $(WRK_PACKAGE)
	@PYTHONPATH=tests $(BIN)/python -m bench.serve $(BENCH)

bench-pictures: install ## fine-tuning on real pictures, three seeds of each recipe (BENCH="--seeds 1 --only probe")
	@PYTHONPATH=tests $(BIN)/python -m bench.pictures $(BENCH)

bench-gpu: install ## every figure that needs a GPU, on one, in 25 minutes (BENCH=--toy runs its code on the CPU)
	@PYTHONPATH=tests $(BIN)/python -m bench.train.gpu $(BENCH)

clean: down ## remove the virtual environment, the data and all caches
	@test ! -e .stoker/state.json || { echo "error: by .stoker/state.json something runs here, which 'make install down' stops;" \
		"if nothing does, delete that file"; exit 2; }
	@rm -rf .venv .venv-peers .venv-peers-ffcv .stoker bench-data bench-serve bench-train bench-pictures .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build

# All targets use .venv, which `make setup` fills from requirements.lock. Only Python 3.11 or newer is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
# uv, in the locked version; it installs the other packages
UV = $(shell sed -n "s/^\(uv==[^ ]*\).*/\1/p" requirements.lock)

# Tests start dozens of interpreters; without cached bytecode each would compile this project's modules.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup lock demo test unit integration check coverage bench quality gpu chaos upgrade fuzz clean

help: ## Show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

setup: $(STAMP) ## Install everything into .venv

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("streamgru needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Say which to use: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python -m deploy.compile_kernels # numba's machine code, once
	$(BIN)/python -m deploy.prefect_database # the tables of Prefect's empty database, once: its first start takes half the time
	touch $(STAMP)

lock: ## Update requirements.lock and the lock of Quix Streams to the newest allowed versions
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --upgrade --extra schema-registry --group dev pyproject.toml -o requirements.lock
	echo quixstreams | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --upgrade - -o tests/benchmarks/quix.lock

demo: setup ## Do the whole job on real sensor data, write a report, stop everything
	$(BIN)/streamgru demo

check: setup ## Check lint rules, layering, types and phrases that are hard to read
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m tests.prose

test: setup ## Run every check and every test
	@$(BIN)/python -m tests.side_by_side "nice $(MAKE) --no-print-directory unit" "$(MAKE) --no-print-directory integration" # integration tests have deadlines

unit: check ## Run every check and the tests that need no server
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder tests/unit tests/fuzz # long files first, see tests/conftest.py

integration: setup ## Run the tests against real servers
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=6 --dist=loadgroup --no-loadscope-reorder tests/chaos tests/integration # much of their time is waiting

coverage: setup ## Run every test, and list the lines of deploy, flows, model and pipeline that no test runs
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses=2 --dist=loadgroup --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered

bench: setup ## Measure throughput, latency, takeover, restore and more, into tests/benchmarks/SPEED.md
	$(BIN)/python -m tests.benchmarks

quality: setup ## Back-test on Beijing and on DATA=ETTh1.csv, three seeds and ablations, for hours; resumes after a stop
	$(BIN)/python -m tests.benchmarks.quality $(if $(DATA),--etth1 $(DATA)) $(if $(NAB),--nab $(NAB)) $(if $(SERIES),--series $(SERIES))

gpu: setup ## Train on a GPU, compare with a CPU, and time it, into tests/benchmarks/GPU.md
	$(BIN)/python -m tests.benchmarks.gpu

chaos: setup ## Kill, stall and rebalance forecasters and brokers for twenty minutes, and check every forecast
	$(BIN)/python -m tests.chaos --report tests/chaos

upgrade: setup ## Roll a live fleet from the commit BASE (by default the one of the golden files) to this tree and back
	$(BIN)/python -m tests.compatibility.fleet $(if $(BASE),--base $(BASE))

fuzz: setup ## Feed decoders, mappings, states, the model and settings broken bytes and absurd numbers, three minutes each
	$(BIN)/python -m tests.fuzz --seconds 180

clean: ## Remove the virtual environment and caches (data under .streamgru stays)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

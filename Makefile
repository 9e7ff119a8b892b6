# Two commands do everything on a fresh machine: `make demo` and `make test`.
# Both create .venv and install the locked requirements first; a second call skips that.

PYTHON ?= python3
# Which stack to install: cpu or cuda.
STACK ?= cpu
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(STACK)

.DEFAULT_GOAL := help
.PHONY: help install demo cluster-demo test lint format bench docker-check lock clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-13s %s\n", $$1, $$2}'

install: $(STAMP) ## Create .venv and install the locked requirements (STACK=cpu or cuda)

$(STAMP): requirements/$(STACK).lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: $(PYTHON) is `$(PYTHON) --version 2>&1`, this project needs Python 3.11 or newer."; \
	  echo "       Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@if ls $(VENV)/.installed-* >/dev/null 2>&1 && [ ! -e $@ ]; then \
	  echo "error: $(VENV) holds another stack; run make clean first, then make STACK=$(STACK) install."; \
	  exit 1; fi
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "error: could not create $(VENV). On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Installing requirements/$(STACK).lock into $(VENV) (once; some minutes) ..."
	@$(BIN)/python -m pip install --quiet --no-deps -r requirements/$(STACK).lock || { \
	  echo "error: pip could not install requirements/$(STACK).lock (its message is above)."; \
	  echo "       Check the network or the package index, then run make again: it goes on from here."; exit 1; }
	@$(BIN)/python -c 'import torch' 2>/dev/null || { \
	  echo "The package index gave torch's CUDA build: adding the CUDA libraries it loads ..."; \
	  grep -E '^(nvidia|cuda|triton)' requirements/cuda.lock | \
	    $(BIN)/python -m pip install --quiet --no-deps -r /dev/stdin || { \
	    echo "error: pip could not install the CUDA libraries; run make again when the index answers."; \
	    exit 1; }; }
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e . || { \
	  echo "error: pip could not install this project in editable mode (its message is above)."; exit 1; }
	@$(BIN)/python -c 'import torch, fbgemm_gpu, torchrec, ray, mlflow' 2>$(VENV)/import.log || { \
	  tail -n 3 $(VENV)/import.log; \
	  echo "error: the installed packages do not import. Remove $(VENV) (make clean) and run make again;"; \
	  echo "       if both fbgemm-gpu and fbgemm-gpu-cpu are installed, that is the cause."; exit 1; }
	@touch $@

demo: $(STAMP) ## Generate a click log, train PLE on Ray workers, register and score the model
	@$(BIN)/python -m jobs.prepare clicklog --output data/clicklog --rows 400000 --if-missing
	@$(BIN)/python -m jobs.train --config configs/demo.yaml

cluster-demo: $(STAMP) ## Three Ray nodes, S3 and MLflow on this machine; one node is killed
	@$(BIN)/python -m jobs.cluster_demo

test: $(STAMP) ## Run every test, the slow ones too
	@$(BIN)/python -m pytest

lint: $(STAMP) ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP) ## Rewrite the code in the project's format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docker-check: $(STAMP) ## Check docker/ without an engine: lint, schemas, what the manifests say
	@$(BIN)/python -m pytest -q tests/docker

bench: $(STAMP) ## Measure peak memory of preparing and reading
	@$(BIN)/python -m jobs.benchmark memory

COMPILE := $(VENV)-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header

lock: ## Resolve requirements/*.in anew into the lock files
	@$(PYTHON) -m venv $(VENV)-lock && $(VENV)-lock/bin/pip install --quiet uv
	@cd requirements && for stack in cpu cuda; do \
	  override=; [ $$stack = cuda ] || override='--override overrides.cpu.txt'; \
	  ../$(COMPILE) $$override $$stack.in dev.in -o $$stack.lock && \
	  ../$(COMPILE) $$override -c $$stack.lock $$stack.in -o $$stack-runtime.lock || exit 1; done
	@sed -i "/'never'/d" requirements/cpu.lock requirements/cpu-runtime.lock
	@cd requirements && ../$(COMPILE) -c cpu.lock server.in -o server.lock
	@rm -rf $(VENV)-lock

clean: ## Remove the virtual environment and caches (data/ and runs/ stay)
	@rm -rf $(VENV) $(VENV)-lock .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

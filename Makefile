# Each target sets up what it needs on a machine with only Python 3.11+ and git: `make -C path/to/checkout quickstart`.
# Paths are relative, so the checkout may lie anywhere, spaces in the path included.
# Less to download on Linux without a GPU: UV_TORCH_BACKEND=cpu make quickstart

PYTHON ?=
WORKERS ?= 2
FAMILY ?= prior
ARGS ?=
DFGAN ?=
SHELL := /bin/sh
BIN := .venv/bin
INSTALLED := .venv/installed
READY := .venv/ready

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test coverage torture bench figures lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' Makefile

setup: $(READY) ## install everything into .venv, tools for tests included

# The stamp comes last, so an installation that broke off is done again; uv does not read pip's own configuration, hence
# the second way.
$(INSTALLED): pyproject.toml
	@rm -f $(INSTALLED); set -e; \
	modern() { command -v "$$1" >/dev/null 2>&1 && "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }; \
	if ! modern $(BIN)/python; then \
	  for python in "$(PYTHON)" python3 python3.14 python3.13 python3.12 python3.11; do \
	    if [ -n "$$python" ] && modern "$$python"; then break; fi; \
	    python=; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "error: no Python 3.11 or newer found; install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 2; \
	  fi; \
	  echo "making .venv with $$("$$python" --version)"; \
	  "$$python" -m venv --clear .venv || { rm -rf .venv; \
	    echo "error: '$$python -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }; \
	fi; \
	export PIP_DISABLE_PIP_VERSION_CHECK=1; \
	$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet uv; \
	echo "installing t2i and its libraries into .venv"; \
	$(BIN)/python -m uv pip install --python $(BIN)/python -e . || $(BIN)/python -m pip install -e .; \
	touch $(INSTALLED)

$(READY): $(INSTALLED)
	@rm -f $(READY); set -e; export PIP_DISABLE_PIP_VERSION_CHECK=1; \
	$(BIN)/python -m uv pip install --python $(BIN)/python -e '.[test]' || $(BIN)/python -m pip install -e '.[test]'; \
	touch $(READY)

quickstart: $(INSTALLED) ## train, sample and score a small model (FAMILY=prior, cvae or cgan); runs/quickstart/index.html shows it
	@$(BIN)/python -m t2i.cli quickstart --family $(FAMILY) $(ARGS)

test: $(READY) ## run the test suite; ARGS="tests/config/test_config.py -k yaml" for a part
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

coverage: $(READY) ## run the test suite and report the lines that no test reaches
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS) --cov

torture: $(READY) ## proofs too long for the suite: kills, damage, hostile files, launches, memory up to a million rows, planted leaks
	@for proof in data_fuzz leaks memory torture_runs torture_order torture_files torture_launches; do \
	  echo; echo "== $$proof"; OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python benchmarks/$$proof.py || exit 1; done

bench: $(READY) ## speed and parity beside other packages, about 2 hours; DFGAN=path/to/checkout of tobran/DF-GAN adds the GAN's
	@$(BIN)/python -m uv pip install --quiet --python $(BIN)/python -e '.[bench]'
	@$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps dalle-pytorch
	@for bench in eval_parity eval_speed loader_speed prior_speed tokenizer_speed $(if $(DFGAN),"cgan_speed $(DFGAN)"); do set -- $$bench; \
	  echo; echo "== $$1"; program=benchmarks/$$1.py; shift; \
	  OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive $(BIN)/python $$program "$$@" || exit 1; done

figures: $(READY) ## regenerate the images of README.md and docs/ that show the shipped models
	@$(BIN)/python benchmarks/figures.py

lint: $(READY) ## ruff and pyright
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright

format: $(READY) ## let ruff lay out and sort
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean: ## remove the environment and everything built; runs/ stays
	rm -rf .venv build dist *.egg-info .coverage .coverage.* .pytest_cache .ruff_cache
	find t2i train sample eval configs tests -name __pycache__ -type d -prune -exec rm -rf {} +

# `make` shows what there is. Every experiment is a target of its name: `make cifar10-resnet56`.
# Options: RESULTS=DIR (default: outputs; for report and check: results/, the published records), METHODS=a,b or all,
# SEEDS=0-2, MACS_KEPT=0.5,0.3, PROFILE=quick|study|cpu|paper, JOBS=N (runs at a time; by default as many as suit),
# CHECKPOINTS=DIR, WANDB=online|offline|disabled, ARGS="any other option of python -m benchmarks run". They may be
# environment variables, too. A name that is not an option stops make; what a command reads from its environment goes
# before `make`: `OICSR_DATA=DIR make cifar10-resnet56`.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
RESULTS ?= outputs
VENV := .venv
BIN := $(VENV)/bin
AXE := build/axe/node_modules/axe-core
option = $(if $($1),--$2 "$(strip $($1))")
RUN_OPTIONS = --results "$(RESULTS)" $(call option,METHODS,methods) $(call option,SEEDS,seeds) \
  $(call option,MACS_KEPT,macs-kept) $(call option,PROFILE,profile) $(call option,WANDB,wandb) \
  $(call option,JOBS,jobs) $(call option,CHECKPOINTS,checkpoints) $(ARGS)
PUBLISHED = $(if $(filter file,$(origin RESULTS)),,--results "$(RESULTS)")
EXPERIMENTS := $(subst _,-,$(basename $(notdir $(filter-out %/__init__.py %/shared_profiles.py,$(wildcard benchmarks/experiments/*.py)))))
OPTIONS := ARGS CHECKPOINTS CHROMIUM JOBS MACS_KEPT METHODS MINUTES OUT PARTS PROFILE PYTHON RESULTS SEEDS TESTS VENV WANDB
MISSPELT := $(strip $(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),\
  $(filter-out $(OPTIONS) OICSR_% OMP_% CUDA_% WANDB_% UV_% PIP_% MAKE%,$(name)))))
$(if $(MISSPELT),$(error "$(MISSPELT)" is no option; the options are $(OPTIONS) (an environment variable goes before "make")))

.PHONY: help setup test lint docs notebooks package sbom types report check faults perf gpu paper test-web clean $(EXPERIMENTS)

help: ## show this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-22s %s\n", $$1, $$2}'
	@printf '  make %-22s run an experiment: train, prune, fine-tune, compare\n' '<experiment>'
	@printf '\nexperiments:\n'; printf '  %s\n' $(EXPERIMENTS)

setup: $(VENV)/.done ## make the environment in .venv (done by every other target where it is missing)

$(VENV)/.done: pyproject.toml requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "there is no program $(PYTHON); say PYTHON=PATH" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	  || { echo "Python 3.11 to 3.13 is needed; PYTHON=$(PYTHON) is $$($(PYTHON) --version)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@UV="$$(command -v uv || true)"; \
	  if [ -z "$$UV" ]; then UV=$(BIN)/uv; \
	    awk '/^uv==/ {found = 1; print; next} found && /^[^ ]/ {exit} found' requirements.lock > $(VENV)/uv.lock; \
	    $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(VENV)/uv.lock; fi; \
	  "$$UV" pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes --requirement requirements.lock; \
	  "$$UV" pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: MACS_KEPT ?= 0.5 # one target is enough to see the comparison; the published records have 0.3 too
$(EXPERIMENTS): setup
	@$(BIN)/python -m benchmarks run $@ $(RUN_OPTIONS)

test: setup ## run the tests, side by side on all cores
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadgroup $(TESTS)

lint: setup ## check style, spelling, dead code, links and the examples in docstrings
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/codespell
	@$(BIN)/vulture
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_documents.py tests/test_docstrings.py

docs: setup ## build the documentation site into build/site; any broken link is an error
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/mkdocs build --quiet --strict
	@printf 'build/site/index.html\n'

notebooks: setup ## run docs/notebooks again and save them with their outputs
	@OMP_NUM_THREADS=1 $(BIN)/python docs/_site/run_notebooks.py

package: setup ## build the wheel and source archive of the library and check their metadata
	@rm -rf build dist
	@$(BIN)/python -m build --outdir dist . >/dev/null
	@$(BIN)/twine check --strict dist/*

sbom: setup ## write the software bill of materials of requirements.lock (dist/sbom.json, CycloneDX)
	@mkdir -p dist
	@$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --output-file dist/sbom.json \
	  requirements.lock

types: setup ## check types
	@$(BIN)/mypy oicsr baselines benchmarks

report: setup ## make tables, plots, RESULTS.md and the README's block from the published records
	@$(BIN)/python -m benchmarks report $(PUBLISHED)

paper: report ## the same: every table, figure and verdict of the paper's comparison, offline

test-web: setup ## test HTML report and documentation in headless Chromium (CHROMIUM=path; axe-core comes from npm)
	@test -f $(AXE)/package.json || command -v npm >/dev/null || { echo 'axe-core comes from npm; install Node.js' >&2; exit 1; }
	@test -f $(AXE)/package.json || npm install --silent --no-save --prefix build/axe axe-core@4.14.1
	@OICSR_TEST_WEB=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/benchmarks/test_html_report.py \
	  tests/test_accessibility.py

check: setup ## compare every generated file with its records
	@$(BIN)/python -m benchmarks report --check $(PUBLISHED)

faults: setup ## kill sweeps, damage their files, fill their disk: what is lost? (results/reliability.json)
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks faults $(ARGS)

perf: setup ## measure penalty, training, pruning and latency against peers (results/perf)
	@$(BIN)/python -m benchmarks perf $(ARGS)

gpu: ## with a CUDA device: GPU tests, speed, missing runs (PARTS="tests perf runs" MINUTES=9 OUT=DIR PROFILE=paper)
	@PYTHON=$(PYTHON); test ! -x $(BIN)/python || PYTHON=$(BIN)/python; $$PYTHON -m benchmarks gpu $(PARTS) \
	  $(call option,OUT,out) --results "$(RESULTS)" $(call option,CHECKPOINTS,checkpoints) \
	  $(call option,MINUTES,minutes) $(call option,PROFILE,profile) $(ARGS)

clean: ## remove the environment and caches (never results, data or checkpoints)
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info

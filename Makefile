# rsna_ich: everything starts here. Needs make, git and Python 3.11 or newer; the rest comes from the package registry.
#   make demo     the whole way on simulated patients: competition folder, training, submission.csv, report.html
#   make test     every notebook and everything in tests/
#   make help     the other targets

# Which Python builds the environment, e.g. `make env PYTHON=python3.12`. Without it: the first of PYTHONS that is new enough.
PYTHON ?=
PYTHONS := python3 python3.13 python3.12 python3.11 python
CONSTRAINTS ?= constraints.txt
PYTEST_ARGS ?=
DEMO_ARGS ?=
HARD_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help env demo test docs lab bench bundle readme export hooks licences measures dist hard clean distclean FORCE

help: ## This list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1|/' | awk -F'|' '{printf "make %-10s %s\n", $$1, $$2}'

env: $(READY) ## The environment in .venv, rebuilt when what it is made from has changed

demo: $(READY) ## Simulate, check, store, train, evaluate, submit; prints where the report is
	@$(BIN)/ich demo $(DEMO_ARGS)

test: $(READY) ## Every test, two at a time; each notebook is one; e.g. PYTEST_ARGS='-k labels'
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

hard: $(READY) ## 100,000 damaged files, alone, in folders and in zips; hours; e.g. HARD_ARGS="--files 2000 --keep hard.json"
	@$(BIN)/python -W ignore tests/mutator.py $(HARD_ARGS)

docs: $(READY) ## The documentation site in docs/, from the notebooks, and README.md
	@$(BIN)/python tools/build_readme.py
	@$(BIN)/python tools/build_docs.py

lab: $(READY) ## JupyterLab on the notebooks
	@$(BIN)/jupyter lab --notebook-dir=nbs

bench: $(READY) nbs/benchmarks/01_benchmarks.ipynb ## Run the benchmarks notebook and keep its figures
	@$(BIN)/nbdev-test nbs/benchmarks/01_benchmarks.ipynb --flags slow --save --cell-timeout 0
	@$(BIN)/nbdev-clean --fname nbs/benchmarks/01_benchmarks.ipynb

bundle: $(READY) ## Train a small model on simulated patients, in place of the one in the package (which `ich ship --recipe further` made)
	@$(BIN)/ich ship

readme: $(READY) ## README.md from nbs/index.ipynb
	@$(BIN)/python tools/build_readme.py

export: $(READY) ## Modules from notebooks, notebooks cleaned, README.md
	@$(BIN)/nbdev-export
	@$(BIN)/nbdev-clean
	@$(BIN)/python tools/build_readme.py

hooks: $(READY) ## nbdev's git and Jupyter hooks: notebooks are cleaned when saved and merged cell by cell
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/nbdev-install-hooks

licences: $(READY) ## The licence of every package that this one needs
	@$(BIN)/python tools/licences.py

measures: ## How readable the notebooks are: lines a cell, density, words
	@$(or $(wildcard $(BIN)/python),python3) tools/measures.py

dist: $(READY) ## Wheel and sdist in dist/
	@$(BIN)/python -m build --no-isolation

clean: ## Remove what was built, but not the environment
	rm -rf demo build dist _proc _stage _docs .pytest_cache .hypothesis *.egg-info
	find rsna_ich tests tools nbs -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## Remove the environment too
	rm -rf $(VENV)

# The marker is written last and taken away first, and names the checkout (an environment holds absolute paths). With a marker that
# fits, a change of metadata is installed into what is there; without one, an installation was killed or moved: start afresh.
# pip keeps every wheel of a call on the disk until the last one is installed: fastai, which brings PyTorch, comes first and alone.
ifneq ($(shell cat $(READY) 2>/dev/null),$(CURDIR))
STALE := FORCE
endif

$(READY): settings.ini setup.py pyproject.toml constraints.txt $(STALE)
	@set -e; \
	if [ "$$(cat $@ 2>/dev/null)" = "$(CURDIR)" ] && $(BIN)/python -m pip --version >/dev/null 2>&1; then rm -f $@; else \
	  rm -f $@; new_enough='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'; \
	  for python in $(or $(PYTHON),$(PYTHONS)) ''; do \
	    if [ -n "$$python" ] && "$$python" -c "$$new_enough" >/dev/null 2>&1; then break; fi; \
	  done; \
	  if [ -z "$$python" ]; then \
	    echo "rsna_ich needs Python 3.11 or newer with its venv module; tried: $(or $(PYTHON),$(PYTHONS))." >&2; \
	    echo "Name one with: make $(or $(MAKECMDGOALS),env) PYTHON=/path/to/python3" >&2; exit 1; \
	  fi; \
	  echo "Building $(VENV) with $$("$$python" --version): some minutes and 7 GB the first time, 9 GB of room while it is built"; \
	  "$$python" -c 'import shutil; free = shutil.disk_usage(".").free/1e9; free < 9 and print(f"only {free:.1f} GB are free here: it may stop with a full disk")' >&2; \
	  "$$python" -m venv --clear $(VENV); \
	fi; \
	for what in fastai '-e .[train,dev]'; do $(BIN)/python -m pip install --disable-pip-version-check -c $(CONSTRAINTS) $$what; done; \
	printf '%s\n' "$(CURDIR)" > $@

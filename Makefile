# Everything a person types. PYTHON can name an interpreter; else the first of these that is 3.11 or newer is taken.
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$name" && break; done)
VENV := .venv
RUN := $(VENV)/bin/python
EXTRAS := dev
# uv installs in a fraction of pip's time.
UV := $(shell command -v uv 2>/dev/null)
# Tests run file by file in so many processes of one thread each.
WORKERS ?= 2
# Which records verify-records repeats: others every day, all of them in the long run.
SEED ?= $(shell date +%j)
RUNS ?= $(or $(ET_RUNS_DIR),runs)

.PHONY: help setup demo app test lint docs tables verify-records report clean

help: ## say what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(VENV)/.ready ## create the environment in .venv (about 6 GB)

$(VENV)/.ready: pyproject.toml
ifeq ($(PYTHON),)
	$(error No Python 3.11 or newer is on the PATH: install one, or name it with PYTHON=/path/to/python)
endif
	@echo "Python: $$(command -v $(PYTHON)), $$($(PYTHON) --version)"
	@echo "Installing into $(VENV) with $(if $(UV),uv,pip): about 6 GB, some minutes"
ifeq ($(UV),)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check --editable '.[$(EXTRAS)]'
else
	$(UV) venv --allow-existing --python "$$(command -v $(PYTHON))" $(VENV)
	$(UV) pip install --python $(RUN) --editable '.[$(EXTRAS)]'
endif
	@touch $@

demo: export ET_RUNS_DIR := $(RUNS)
demo: setup ## complete photographs with the authors' model, then train a small one for a few minutes
	@$(RUN) complete.py --embedded --report --scores-only --if-available --output $(RUNS)/pretrained/demo
	$(RUN) train.py experiment=demo_inpainting
	@$(RUN) -m et.results.figures experiment=demo_inpainting
	@$(RUN) -m et.results.report --runs $(RUNS)/demo_inpainting --descents $(RUNS)/pretrained/demo

app: setup ## a page to hide patches of photographs and watch them being completed: http://127.0.0.1:7860
	@$(RUN) -c "import gradio" 2>/dev/null || $(RUN) -m pip install --quiet --editable '.[$(EXTRAS),app]'
	@$(RUN) -m et.inpainting.app

test: setup ## run all tests; those on real data need ET_DATA_DIR
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist worksteal

lint: setup ## check style, format and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

docs: setup ## build the documentation in build/site; a broken link is an error
	$(RUN) -m mkdocs build --strict

tables: setup ## render every table from the recorded results
	$(RUN) -m et.results.tables
	$(RUN) -m et.results.gadbench

verify-records: setup ## repeat a random few recorded runs; SEED (the day of the year) chooses them
	OMP_NUM_THREADS=1 $(RUN) -m et.training.verify --seed $(SEED)

report: setup ## build/report.html: all tables on one page, with the runs, curves and pictures in RUNS (runs)
	@mkdir -p $(RUNS)
	$(RUN) -m et.results.report --runs $(RUNS)

clean: ## remove the environment and caches, not the runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

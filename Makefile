# `make minibench` and `make test` need no preparation: they create .venv and install what it lacks.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# The pinned packages. Another file is remembered in the environment that it was installed into.
REQUIREMENTS ?= $(shell cat $(VENV)/.requirements 2>/dev/null || echo requirements.txt)
# Arguments of pytest: make test ARGS="tests/modeling/inference/test_gate.py -x"
ARGS ?=
# Processes of pytest.
WORKERS ?= 2
# Port of the web page, and of docs-serve.
PORT ?= 7860

# Each step of the set-up ends with its stamp, so an interrupted one is done again.
CREATED := $(VENV)/.created
INSTALLED = $(VENV)/.installed-$(subst /,-,$(REQUIREMENTS))
DETECTRON2 := $(VENV)/.detectron2
READY := $(VENV)/.ready
DEMO := $(VENV)/.demo
BULK := $(VENV)/.bulk
DOCS := $(VENV)/.docs

PYTHON_FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PIP_WORKS := import pip; from importlib.metadata import distribution; \
	assert distribution("pip").read_text("INSTALLER")

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help env demo-env bulk-env test test-slow lint format minibench gallery webdemo docs docs-serve \
	notebooks clean-env

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env: $(READY) ## Create .venv (PYTHON=python3) and install REQUIREMENTS=requirements.txt into it

test: $(READY) ## Run the tests (ARGS: arguments of pytest)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(RUN) -m pytest -n $(WORKERS) $(ARGS)

test-slow: $(READY) ## Run the tests that need minutes: large models, long runs
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(RUN) -m pytest -m slow $(ARGS)

lint: $(READY) ## Check style and format
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(READY) ## Format the code
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

minibench: $(READY) ## Generate MiniBench, train and evaluate TagCLIP on it, write output/minibench
	$(RUN) projects/MiniBench/run_minibench.py

gallery: minibench ## Draw the picture of README.md anew: docs/images/gallery.png
	cp output/minibench/gallery.png docs/images/gallery.png

webdemo: $(DEMO) ## Serve the web page on MiniBench's model (PORT=7860)
	$(RUN) projects/WebDemo/serve.py --port $(PORT)

notebooks: $(READY) ## Run the notebooks of docs/notebooks in an empty folder and write them anew
	PYTHONPATH=tests OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(RUN) -m helpers.notebooks

docs: $(DOCS) ## Build the site of docs/ in site/
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

docs-serve: $(DOCS) ## Serve the site, built anew at each change (PORT=7860)
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs serve --dev-addr 127.0.0.1:$(PORT)

demo-env: $(DEMO) ## Install what the web page needs, too

bulk-env: $(BULK) ## Install what clusters of tagclip bulk need, too

clean-env: ## Remove .venv
	rm -rf $(VENV)

$(CREATED):
	@if [ -x $(RUN) ]; then python=$(RUN); remedy="run: make clean-env"; \
	else python="$(PYTHON)"; remedy="name another: make PYTHON=python3.12"; fi; \
	found=$$("$$python" --version 2>&1) || found="no such program"; \
	"$$python" -c '$(PYTHON_FITS)' 2>/dev/null || { \
		echo "$$python: found $$found, expected Python 3.11, 3.12 or 3.13; $$remedy" >&2; exit 1; }; \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$$python: its venv module is missing; install it" \
			"(Debian, Ubuntu: apt install python3-venv) or $$remedy" >&2; exit 1; }
	@$(RUN) -c '$(PIP_WORKS)' 2>/dev/null || { \
		echo "Creating $(VENV)"; "$(PYTHON)" -m venv --clear $(VENV); }
	@touch $@

# pip writes INSTALLER last; without it an interrupted package would pass for an installed one.
$(INSTALLED): $(REQUIREMENTS) requirements-dev.txt $(CREATED)
	@echo "Installing $(REQUIREMENTS) into $(VENV): some minutes, 6 GB"
	@for info in $(VENV)/lib/python3*/site-packages/*.dist-info; do \
		[ -s "$$info/INSTALLER" ] || rm -rf "$$info"; done
	$(RUN) -m pip install 'pip>=23,<26.3'
	$(RUN) -m pip install -r $(REQUIREMENTS) -r requirements-dev.txt
	@rm -f $(VENV)/.installed-*
	@echo "$(REQUIREMENTS)" >$(VENV)/.requirements
	@touch $@

$(DETECTRON2): $(INSTALLED) tools/install_detectron2.py tools/detectron2_edits.json
	$(RUN) tools/install_detectron2.py
	@touch $@

$(READY): $(DETECTRON2) setup.py pyproject.toml
	$(RUN) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

$(DEMO): $(READY) requirements-demo.txt
	$(RUN) -m pip install -r $(REQUIREMENTS) -r requirements-demo.txt
	@touch $@

$(BULK): $(READY) requirements-bulk.txt
	$(RUN) -m pip install -r $(REQUIREMENTS) -r requirements-bulk.txt
	@touch $@

$(DOCS): $(READY) requirements-docs.txt
	$(RUN) -m pip install -r $(REQUIREMENTS) -r requirements-docs.txt
	@touch $@

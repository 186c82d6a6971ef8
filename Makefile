# The only commands a newcomer needs. `make help` lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CACHE := $(or $(TUNELOOP_CACHE),$(HOME)/.cache/tuneloop)
# What other tools would keep in the home folder (pip, Hugging Face's libraries, vLLM, matplotlib, kubectl) lies there too.
export XDG_CACHE_HOME := $(CACHE)/others
export MPLCONFIGDIR := $(CACHE)/others/matplotlib
export KUBECACHEDIR := $(CACHE)/others/kubectl
UV := scripts/uv
PYTHON := .venv/bin/python
BENCHES := $(filter-out _%,$(patsubst benchmarks/%.py,%,$(wildcard benchmarks/*.py)) $(patsubst benchmarks/%/__main__.py,%,$(wildcard benchmarks/*/__main__.py)))

.PHONY: help demo images test test-fast lint format generate clean sync

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z%-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: sync ## tune, evaluate and serve a real model; CONTEXT= and REGISTRY= use a cluster that you have
	@$(PYTHON) -m tuneloop_demo $(if $(CONTEXT),--context '$(CONTEXT)') $(if $(REGISTRY),--registry '$(REGISTRY)') $(ARGS)

images: sync ## build the images and push them: REGISTRY=HOST/PREFIX, and ENGINE=gpu for servers on GPUs
	@$(if $(REGISTRY),,echo "make images: say where to push them, for instance REGISTRY=registry.example.com/me" >&2; exit 2)
	@$(PYTHON) -m tuneloop_localcluster load-image operator trainer server --registry '$(REGISTRY)' $(if $(ENGINE),--build-arg 'ENGINE=$(ENGINE)')

test: sync ## every tier: fast, apiserver, trainer, e2e
	@$(PYTHON) tests/run.py $(ARGS)

test-fast: sync ## only the fast tier: lint, types, layers, unit and golden tests
	@$(PYTHON) tests/run.py --tier fast $(ARGS)

lint: sync ## ruff, formatting, mypy --strict, the layer rules, generated files
	@$(PYTHON) tests/run.py --tier lint $(ARGS)

format: sync ## let ruff format and fix what it can
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

generate: sync ## write the generated files anew: crds/, the chart's copy of them, and its dashboards
	@$(PYTHON) scripts/generate.py $(ARGS)

bench-%: sync ## a benchmark by name, for instance `make bench-operator`
	@$(if $(filter $*,$(BENCHES)),,echo "make $@: no such benchmark. There are: $(or $(BENCHES),none)" >&2; exit 2)
	@$(PYTHON) '$(if $(wildcard benchmarks/$*.py),benchmarks/$*.py,benchmarks/$*)' $(ARGS)

clean: ## take the local cluster down; remove environments and caches from the checkout
	@scripts/clean

sync: ## bring .venv to the lock (done by the other commands)
	@$(UV) sync --quiet --locked --all-packages --all-groups

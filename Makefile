.DEFAULT_GOAL := help
SHELL := bash
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(BIN)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "anygpu needs Python 3.11 or newer")'
	@echo "installing the locked dependencies into .venv (once; about a minute)" >&2
	@$(PYTHON) -m venv .venv || { echo "on Debian: apt install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: setup
setup: $(BIN)/.installed ## install the locked dependencies into .venv

.PHONY: demo
demo: setup ## the main job on a bundled cluster: no Kubernetes, no GPU
	@$(BIN)/anygpu demo

.PHONY: check
check: setup ## lint, types, layering and unit tests: about a minute
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports > /dev/null || $(BIN)/lint-imports
	$(BIN)/python manifests/generate.py --check
	$(BIN)/pytest -q -n auto --dist worksteal tests/unit tests/property

.PHONY: test
test: check ## everything, with a real control plane and a real registry
	$(PYTHON) tests/controlplane/build.py
	$(PYTHON) tests/controlplane/registry.py
	ANYGPU_REQUIRE_REAL=1 ANYGPU_EXAMPLES=300 $(BIN)/pytest -q tests/agent tests/registry tests/cluster \
	  tests/property/test_counting.py
	$(BIN)/python tests/chaos/chaos.py --pods 100

.PHONY: chaos
chaos: setup ## late and claim binding at capacity, with everything failing: PODS=500 CLAIMS=300 NODES=100
	@$(BIN)/python tests/chaos/chaos.py $(if $(PODS),--pods $(PODS)) $(if $(CLAIMS),--claims $(CLAIMS)) \
	  $(if $(NODES),--nodes $(NODES)) $(if $(SEED),--seed $(SEED))

.PHONY: counting
counting: setup ## the model-based test of the counting at length: EXAMPLES=3000 sequences, some minutes
	ANYGPU_EXAMPLES=$(or $(EXAMPLES),3000) $(BIN)/pytest -q tests/property/test_counting.py

.PHONY: cluster
cluster: setup ## a control plane with the demo's nodes and anygpu on it, for play
	@$(BIN)/python tests/controlplane/up.py up --nodes manifests/demo/cluster.yaml

.PHONY: cluster-down
cluster-down: setup ## end it
	@$(BIN)/python tests/controlplane/up.py down

.PHONY: generate
generate: setup ## write the files that follow from the data and the models
	$(BIN)/python manifests/generate.py
	$(BIN)/python manifests/demo/generate.py

.PHONY: format
format: setup ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.PHONY: lock
lock: ## lock the newest allowed dependencies (needs uv)
	uv pip compile -q pyproject.toml --group build --group test --group lint --python-version 3.11 --upgrade \
	  --generate-hashes --no-emit-index-url --no-header --no-annotate -o requirements.lock

.PHONY: clean
clean: ## remove what the targets made here
	rm -rf .venv .cluster .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache dist

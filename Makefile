# Start with `make demo` to try the plugin, and `make test` to test a change. See the README for the rest.

SHELL := /bin/bash
.DEFAULT_GOAL := help
# Each recipe starts its own private clusters and servers, so -j gains nothing
.NOTPARALLEL:

# Not PYTHON: that variable of the environment chooses the Python for the venv
VENV_PYTHON := .venv/bin/python
STACK := $(VENV_PYTHON) -m development.stack

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: venv
venv: ## Create .venv with NetBox, the plugin and the tools (all other targets do this by themselves)
	@development/bootstrap.sh

.PHONY: demo
demo: venv ## Run NetBox with workers and example data until Ctrl-C
	@$(STACK) demo

.PHONY: up
up: venv ## Run the same in the background; development/.state/demo.json has the URL and the credentials
	@$(STACK) up

.PHONY: down
down: venv ## Stop it
	@$(STACK) down

.PHONY: test
test: ## Run all tests in two processes, or some in one: make test ARGS="tests/engine -k claim -x"
	@development/bootstrap.sh test
	@$(STACK) template
	@$(VENV_PYTHON) -m pytest $(or $(ARGS),-n 2 --dist loadfile --no-loadscope-reorder)

.PHONY: neighbours
neighbours: ## Run the tests with other software: NetBox Branching, Flower, gevent, PgBouncer and more
	@development/bootstrap.sh test
	@$(STACK) template
	@$(VENV_PYTHON) -m pytest --neighbours $(or $(ARGS),-n 2 --dist loadfile -p no:randomly tests/neighbours)

.PHONY: chaos
chaos: ## Kill processes and servers while 2,000 tasks run, and compare rows with side effects: make chaos N=500 SEED=7
	@development/bootstrap.sh test
	@$(STACK) template
	@NETBOX_CHAOS=$(or $(N),2000) NETBOX_CHAOS_SEED=$(SEED) $(VENV_PYTHON) -m pytest tests/integration/test_chaos.py $(ARGS)

.PHONY: celery-suite
celery-suite: ## Run Celery's own integration tests on the plugin and on plain Celery: make celery-suite ARGS="-k chord"
	@development/bootstrap.sh
	@$(STACK) template
	@$(VENV_PYTHON) -m development.celery_suite $(ARGS)

.PHONY: bench
bench: venv ## Measure against bare Celery: make bench, or make bench ARGS="drain delay --quick"
	@$(VENV_PYTHON) -m development.bench $(ARGS)

.PHONY: hooks
hooks: venv ## Let git run the checks before each commit and push (pre-commit)
	.venv/bin/pre-commit install

.PHONY: check
check: lint types migrations-check compose-check docs wheel-check ## Run all checks except the tests

.PHONY: lint
lint: venv ## Check style (NetBox's rules), the direction of imports, and spelling
	$(VENV_PYTHON) -m ruff check
	.venv/bin/lint-imports --no-cache
	git ls-files -z | xargs -0 .venv/bin/codespell

.PHONY: types
types: venv ## Check the types
	$(VENV_PYTHON) -m mypy

.PHONY: migrations-check
migrations-check: venv ## Check that no model has changed without a migration
	$(STACK) run netbox makemigrations --check --dry-run netbox_celery

.PHONY: compose-check
compose-check: venv ## Check docker-compose.yml against the schema of compose files
	$(VENV_PYTHON) -m check_jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(VENV_PYTHON) -m development.checks compose

.PHONY: docs
docs: venv ## Build the documentation into site/
	@.venv/bin/zensical build --clean --strict

.PHONY: screenshots
screenshots: venv ## Take the screenshots of the documentation from the running demo (make up)
	@$(VENV_PYTHON) -m development.screenshots $(ARGS)

.PHONY: wheel-check
wheel-check: venv ## Build the wheel, and test it in a fresh venv
	$(VENV_PYTHON) -m development.checks wheel

.PHONY: migrations
migrations: venv ## Write the migrations for changed models
	@DEVELOPER=1 $(STACK) run netbox makemigrations netbox_celery $(ARGS)

.PHONY: shell
shell: venv ## Open NetBox's shell on a fresh database; another command: make shell ARGS="netbox check"
	@$(STACK) run $(or $(ARGS),netbox shell)

.PHONY: clean
clean: ## Stop the demo, and remove everything that running the plugin has created in the checkout
	@[ ! -e development/.state/demo ] || $(STACK) down
	@rm -rf development/.state .venv .venv.lock build dist site .mypy_cache .pytest_cache .ruff_cache

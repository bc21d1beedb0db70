# Every target works from a fresh clone: .venv is made, and renewed when pyproject.toml or constraints.txt changes.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: install serve test check bench soak clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev]'
	touch $@

serve: $(READY) ## make serve ARGS="--config draftgate.toml"
	$(BIN)/draftgate serve $(ARGS)

test: $(READY) ## make test ARGS="-k policy"
	$(BIN)/python -m pytest -m 'not slow' $(ARGS)

check: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python -m benchmarks.end_to_end --requests 500 --json docs/benchmarks/end_to_end.json $(ARGS)

soak: $(READY) ## the tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

clean: ## keeps .venv, and .build, where training runs leave their checkpoints
	rm -rf dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

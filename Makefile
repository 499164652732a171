# make demo: environment and the whole pipeline. make test: environment and tests. See README.md.
.PHONY: demo test test-quick test-long lint env

env:
	@python3 tools/setup_env.py

demo: env
	.venv/bin/align experiment=tiny

# Two processes; all tests of a file in one of them, since they share an engine. Slow files first (tests/conftest.py).
PYTEST = .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: env
	$(PYTEST) -m "not long"

# The two-minute inner loop.
test-quick: env
	$(PYTEST) -m "not slow and not long and not vllm and not deepspeed"

test-long: env
	.venv/bin/python -m pytest -m long

lint: env
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

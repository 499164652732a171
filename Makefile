# make demo: environment and the whole pipeline. make test: environment and tests. See README.md.
.PHONY: demo test test-long lint env

env:
	@python3 tools/setup_env.py

demo: env
	.venv/bin/align experiment=tiny

test: env
	.venv/bin/python -m pytest -m "not long"

test-long: env
	.venv/bin/python -m pytest -m long

lint: env
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

"""Imports for the server from which trials are forked: every trial has them at once."""

from importlib import import_module

from align_runs.compose import prepare, specs

prepare()  # before torch reads the environment
for spec in specs().values():
    import_module(spec.build.rpartition(".")[0])

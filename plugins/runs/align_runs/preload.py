"""Imports for the server from which trials are forked: every trial has them at once."""

from importlib import import_module

from align.surroundings import prepare

prepare()  # before torch reads the environment

from align_runs.stages import MODULES  # noqa: E402

for name in MODULES:
    import_module(name)

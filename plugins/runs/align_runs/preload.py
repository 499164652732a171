"""Imports for the server from which trials are forked: every trial has them at once."""

from importlib import import_module

from align_runs.compose import prepare
from align_runs.stages import MODULES

prepare()  # before torch reads the environment
for name in MODULES:
    import_module(name)

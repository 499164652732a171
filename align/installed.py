"""Checks that an optional package is installed, without importing it."""

from __future__ import annotations

import importlib.util

from align.errors import AlignError


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def require(package: str, setting: str, instead: str, extra: str | None = None) -> None:
    """Raises AlignError with the setting, how to install the package, and what to use instead.

    `extra` is align's that brings it, where that has another name.
    """
    if not installed(package):
        name = extra or package
        raise AlignError(f"{setting}: {package} is not installed\n  pip install 'align-rlhf[{name}]', or use {instead}")

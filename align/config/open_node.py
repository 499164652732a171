"""A node of a configuration that is open to any key."""

from __future__ import annotations

from omegaconf import DictConfig


def open_node() -> DictConfig:
    """A node that takes any key without `+`: arguments of other libraries and of users' functions."""
    return DictConfig({}, flags={"struct": False})

"""Folders of models: what may not be read, and names of the hub."""

import os

import pytest

from align.errors import AlignError
from align.roles.folder import CAUSAL, inspect, is_hub_name


def test_a_file_that_the_user_may_not_read_is_named(base, monkeypatch):
    """Without it safetensors says that there is no such file."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda file, mode: not str(file).endswith(".safetensors") and access(file, mode))
    with pytest.raises(AlignError, match=r"actor.path: this user cannot read .*model.safetensors\n  use chmod"):
        inspect(base, "actor.path", CAUSAL)


@pytest.mark.parametrize("path", ["org/name", "gpt2", "distilgpt2"])
def test_names_of_the_hub_have_an_owner_or_are_known(path):
    assert is_hub_name(path) and not inspect(path, "model", CAUSAL).local


@pytest.mark.parametrize("path", ["gpt3", "./gpt2/x", "runs/tiny", "a/b/c"])
def test_other_paths_are_folders(path):
    assert not is_hub_name(path)

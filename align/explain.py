"""Errors in a few lines: what was wrong, where, and what to write instead."""

from __future__ import annotations

import difflib
import re
import traceback
from pathlib import Path

from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from align.errors import AlignError

MORE = "HYDRA_FULL_ERROR=1 shows the traceback"


def explain(error: BaseException) -> str:
    """The message for the terminal."""
    if isinstance(error, AlignError):
        return f"align: {error}"
    if isinstance(error, OverrideParseException):
        return f"align: {_lines(error, 2)}\n  overrides are key=value; quote what has spaces or commas: \"key='a, b'\""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return f"align: {_hydra(error)}"
    frame = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    place = f" at {Path(frame.filename).name}:{frame.lineno}" if frame else ""
    return f"align: {type(error).__name__}{place}: {_lines(error, 5) or 'no message'}\n  not a known error: {MORE}"


def _hydra(error: BaseException) -> str:
    cause = error.__cause__
    text = str(error)
    if isinstance(cause, AlignError):
        return str(cause)
    if found := re.search(r"Could not override '([^']+)'", text):
        return f"{found.group(1)}: there is no such key{nearest(found.group(1))}"
    if found := re.search(r"Could not find '([^']+)'", text):
        return _unknown_choice(found.group(1), text)
    if isinstance(cause, OmegaConfBaseException):
        key = getattr(cause, "full_key", None) or "a value"
        return f"{key}: {_lines(cause, 1)}"
    return _lines(error, 6)


def _unknown_choice(choice: str, text: str) -> str:
    group, _, name = choice.rpartition("/")
    options = [word.strip() for word in text.partition("Available options in")[2].splitlines()[1:] if word.strip()]
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.4)
    known = f"\n  nearest: {', '.join(near)}" if near else ""
    return (
        f"{group}={name}: there is no such {group or 'configuration'}{known}\n  one of: {', '.join(options) or 'none'}"
    )


def nearest(key: str) -> str:
    """The names nearest to a key among all keys and groups of the default configuration."""
    names = all_keys()
    last = key.rpartition(".")[2]
    close = difflib.get_close_matches(key, names, n=3, cutoff=0.75)
    close += [name for name in names if name.rpartition(".")[2] == last and name not in close][: 3 - len(close)]
    close += difflib.get_close_matches(key, names, n=3, cutoff=0.5)
    unique = list(dict.fromkeys(close))[:3]
    return f"\n  nearest: {', '.join(unique)}" if unique else "\n  all keys: align --cfg job"


def all_keys() -> list[str]:
    """Every key and group of the composed default configuration."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with initialize_config_module("align.conf", version_base="1.3"):
        cfg = compose("config", return_hydra_config=True)
        groups = list(cfg.hydra.runtime.choices)
        flat = OmegaConf.to_container(cfg, resolve=False)
    flat.pop("hydra")
    return [*_flatten(flat), *(str(group) for group in groups if not str(group).startswith("hydra/"))]


def _flatten(node: dict, prefix: str = "") -> list[str]:
    out = []
    for name, value in node.items():
        out.append(f"{prefix}{name}")
        if isinstance(value, dict):
            out += _flatten(value, f"{prefix}{name}.")
    return out


def _lines(error: BaseException, count: int) -> str:
    return "\n".join([line for line in str(error).splitlines() if line.strip()][:count])

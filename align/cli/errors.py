"""Errors in a few lines: what was wrong, where, and what to write instead."""

from __future__ import annotations

import difflib
import re
import traceback
from pathlib import Path

from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from align.cli.plugins import keys_of
from align.cli.schema import ROOT, all_settings, register, stage_specs
from align.errors import AlignError

MORE = "HYDRA_FULL_ERROR=1 shows the traceback"
KINDS = {
    "integer": "a whole number", "float": "a number", "bool": "true or false", "boolean": "true or false",
    "string": "a word",
}  # fmt: skip
ALIASES = {"lr": "learning_rate", "max_steps": "steps", "num_train_epochs": "epochs"}
"""Settings by the names that other programs use."""
MANY = 4
"""Choices that are listed."""
LINES, WIDTH = 16, 400
"""A message is cut to these: one screen, even where a plugin's own message is a page."""


def message_of(error: BaseException) -> str:
    """The message for the terminal."""
    return _screen(f"align: {_message_of(error)}")


def _message_of(error: BaseException) -> str:
    if isinstance(error, AlignError):
        return str(error)
    if isinstance(error.__cause__, AlignError):  # Hydra wraps what its plugins raise
        return str(error.__cause__)
    if isinstance(error, OverrideParseException):
        return _unparsed(error)
    if isinstance(error, HydraException | OmegaConfBaseException) and not isinstance(error, InstantiationException):
        return _hydra(error)
    if "Config group override must be a string" in str(error):
        return "a group was given null\n  use GROUP=none (align --help lists the choices)"
    frame = traceback.extract_tb(error.__traceback__)[-1] if error.__traceback__ else None
    place = f" at {Path(frame.filename).name}:{frame.lineno}" if frame else ""
    return (
        f"{type(error).__name__}{place}: {_lines(error, 5) or 'no message'}\n  align does not know this error: {MORE}"
    )


def _screen(text: str) -> str:
    lines = text.splitlines()
    cut = [line if len(line) <= WIDTH else f"{line[:WIDTH]} …" for line in lines[:LINES]]
    return "\n".join(cut if len(lines) <= LINES else [*cut, f"  … ({len(lines) - LINES} lines more: {MORE})"])


def _unparsed(error: OverrideParseException) -> str:
    word = str(error.override)
    if "=" not in word:
        return f"{word} is no setting: use KEY=VALUE, such as experiment=tiny (align --help lists commands and choices)"
    for pair in ("()", "[]", "{}"):
        opened, closed = map(word.count, pair)
        if opened != closed:
            missing = pair[1] if opened > closed else pair[0]
            return f"{word} cannot be read: a {missing} is missing\n  use it, or quote text twice: \"key='a, b'\""
    if word.startswith("'") or word.startswith('"'):
        return f"{word} cannot be read\n  quote the value, not the key: \"key='a, b'\""
    return f"{word} cannot be read\n  quote a value with spaces, commas, = or brackets twice: \"key='a, b'\""


def _hydra(error: BaseException) -> str:
    cause, text = error.__cause__, str(error)
    if found := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(found.group(1))
    if found := re.search(r"Could not (?:find|load) '([^']+)'", text):
        return _unknown_choice(found.group(1), text)
    if found := re.search(r"Ambiguous value for argument '([^=]+)=([^']*)'", text):
        key, value = found.groups()
        return f"{key}={value} are several values\n  use '{key}=[{value}]' for a list, or align -m … for a run for each"
    if found := re.search(r"Key '\w+' not in '\w+'\s+full_key: ([\w.]+)", text):
        return unknown_key(found.group(1))
    if found := re.search(r"Multiple values for (\w+)\.", text):
        return f"{found.group(1)} is given twice\n  use {found.group(1)}=NAME once, without +"
    if isinstance(cause, OmegaConfBaseException):
        error = cause
    if isinstance(error, OmegaConfBaseException):
        return _value(error)
    return _lines(error, 6)


def _value(error: OmegaConfBaseException) -> str:
    """A value of the wrong type, or a reference to a key that is not there."""
    key = getattr(error, "full_key", None) or "a value"
    if found := re.search(
        r"Value '(.*?)' (?:of type '\w+' )?(?:could not be converted to|is not a valid) (\w+)", str(error)
    ):
        value, kind = found.groups()
        return f"{key}={value}: use {KINDS.get(kind.lower(), kind)}"
    return f"{key}: {_lines(error, 1)}"


def unknown_key(key: str) -> str:
    """The message for a key that is not there: the nearest, or the choice that has it."""
    names, groups = all_keys()
    if several := [group for group in groups if group.startswith(f"{key}@")]:
        return f"{key}= is a choice for several nodes\n  use one of {', '.join(f'{group}=…' for group in several)}"
    owner = key.rpartition(".")[0]
    packages = [group.partition("@")[2] or group for group in groups if not group.startswith("stage@")]
    if other := _other_choice(key, names, groups):
        return f"{key}: {other}"
    if owner in packages:
        near = nearest(key, [name for name in names if name != key])
        return f"{key}: the {owner} that is chosen has no such key{near}\n  all it has: align … --cfg job -p {owner}"
    return f"{key}: there is no such key{nearest(key, [*names, *groups])}"


def _other_choice(key: str, names: list[str], groups: list[str]) -> str:
    """Message for a key below a plug that other choices of its group have, or one much like it; else ''.

    `names` are the keys of the default configuration, among which `nearest` looks better.
    """
    homes = {group.partition("@")[2] or group: group for group in groups if not group.startswith("stage@")}
    key = key.rpartition("@")[2]
    home = max((package for package in homes if key.startswith(f"{package}.")), key=len, default=None)
    if home is None:
        return ""
    first, _, below = key.removeprefix(f"{home}.").partition(".")
    having = keys_of(homes[home].partition("@")[0])
    near = [first] if first in having else difflib.get_close_matches(first, having, n=1, cutoff=0.75)
    if not near or (near != [first] and f"{home}.{near[0]}" in names):
        return ""
    meant = ".".join([home, *near, *([below] if below and near != [first] else [])])
    choices = having[near[0]]
    some = f"{homes[home]}={', '.join(choices[:MANY])}" + (" and others" if len(choices) > MANY else "")
    problem = f"the {home} that is chosen has no such key" if near == [first] else "there is no such key"
    what = f"{meant} comes with {some}" if near == [first] else f"nearest: {meant} (of {some})"
    return f"{problem}\n  {what}\n  all that is there: align … --cfg job -p {home}"


def _unknown_choice(choice: str, text: str) -> str:
    group, _, name = choice.rpartition("/")
    listed = text.partition("Available options in")[2].partition("Config search path")[0]
    options = [word.strip() for word in listed.splitlines()[1:] if word.strip()]
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.4)
    known = f"\n  nearest: {', '.join(near)}" if near else ""
    return f"{group}={name}: there is no such {group}{known}\n  one of: {', '.join(options) or 'none'}"


def nearest(key: str, names: list[str]) -> str:
    """A line with the names nearest to a key."""
    if found := re.match(r"(?:peft@)?(dpo|kto)\.peft\b", key):
        return f"\n  use peft@actor.peft=NAME, and its settings as actor.peft.KEY: {found[1]} trains the actor"
    home, _, last = key.rpartition(".")
    last = ALIASES.get(last, last)
    key = f"{home}.{last}" if home else last
    close = difflib.get_close_matches(key, names, n=3, cutoff=0.75)
    close += [name for name in names if last in (name.rpartition(".")[2], name.partition("@")[0])][:3]
    close += difflib.get_close_matches(key, names, n=3, cutoff=0.6)
    unique = list(dict.fromkeys(close))[:4]
    return f"\n  nearest: {', '.join(unique)}" if unique else "\n  all keys: align --cfg job"


def all_keys() -> tuple[list[str], list[str]]:
    """Every key and every group of the default configuration; none where that cannot be composed."""
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    register(stage_specs())
    try:
        with initialize_config_module("align.conf", version_base="1.3"):
            cfg = compose(ROOT, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):
        return [], []
    groups = [str(group) for group in cfg.hydra.runtime.choices if not str(group).startswith("hydra/")]
    names = flatten(OmegaConf.to_container(cfg, resolve=False))
    return list(dict.fromkeys([*names, *all_settings(stage_specs())])), groups


def flatten(node: dict, prefix: str = "") -> list[str]:
    """Every dotted key of a configuration, Hydra's own left out."""
    out = []
    for name, value in node.items():
        if prefix or name != "hydra":
            out.append(f"{prefix}{name}")
            out += flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else []
    return out


def _lines(error: BaseException, count: int) -> str:
    return "\n".join([line for line in str(error).splitlines() if line.strip()][:count])

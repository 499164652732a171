"""Errors in a few lines: what was wrong, where, and what to write instead."""

from __future__ import annotations

import difflib
import re
import shlex
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, InstantiationException, OverrideParseException
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from align.cli.plugins import keys_of
from align.cli.schema import all_settings, default_choices, stage_specs
from align.config.fields import ALIASES, unknown_setting
from align.errors import AlignError

MORE = "HYDRA_FULL_ERROR=1 shows the traceback"
MANY = 4
"""Choices that are listed."""
LINES, WIDTH = 16, 400
"""A message is cut to these: one screen, even where a plugin's own message is a page."""


def message_of(error: BaseException) -> str:
    """The message for the terminal."""
    return _screen(f"align: {_message_of(error)}")


@contextmanager
def composing_errors() -> Iterator[None]:
    """Raise Hydra's errors of a configuration as AlignError, with the nearest name."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise AlignError(_message_of(error)) from error


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
            return f"{word} cannot be read: a {missing} is missing\n  use it, or, for plain text, {quoted(word)}"
    return f"{word} cannot be read\n  use {quoted(word)}"


def quoted(word: str) -> str:
    """An override whose value is plain text, quoted for Hydra and for the shell.

    >>> print(quoted("actor.path=runs/lr=0.1, a/sft"))
    "actor.path='runs/lr=0.1, a/sft'"
    >>> print(quoted("name=it's $HOME"))
    'name="it'"'"'s $HOME"'
    """
    key, _, value = word.strip("'\"").partition("=")
    mark = '"' if "'" in value else "'"
    text = f"{key}={mark}{value}{mark}"
    plain = mark == "'" and not set(text) & set('"$`\\!')
    return f'"{text}"' if plain else shlex.quote(text)


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
    if isinstance(error, InterpolationResolutionError):
        return str(unresolved(error))
    if found := re.search(r"Multiple values for (\w+)\.", text):
        return f"{found.group(1)} is given twice\n  use {found.group(1)}=NAME once, without +"
    if isinstance(cause, OmegaConfBaseException):
        error = cause
    if isinstance(error, OmegaConfBaseException):
        return _value(error)
    return _lines(error, 6)


def _value(error: OmegaConfBaseException) -> str:
    """The message for what OmegaConf does not take."""
    key = getattr(error, "full_key", None) or "a value"
    if "Cannot merge DictConfig with ListConfig" in str(error):
        return f"{key}: it is a list, not settings\n  use {key}=[A,B]"
    return f"{key}: {_lines(error, 1)}"


def unresolved(error: InterpolationResolutionError) -> AlignError:
    """The error for a reference to a key, or to a variable of the environment, that is not there."""
    if found := re.search(r"Environment variable '(\w+)' not found", str(error)):
        name = found[1]
        problem, remedy = f"the environment has no {name}", f"export {name}=VALUE, or ${{oc.env:{name},DEFAULT}}"
    else:
        problem, remedy = _lines(error, 1), "a key that is there (align --cfg job)"
    return AlignError(f"{error.full_key}: {problem}\n  use {remedy}")


def unknown_key(key: str) -> str:
    """The message for a key that is not there: the nearest, or the choice that has it."""
    specs = stage_specs()
    choices = default_choices(specs)
    if several := [group for group in choices if group.startswith(f"{key}@")]:
        return f"{key}= is a choice for several sections\n  use one of {', '.join(f'{group}=…' for group in several)}"
    hint = at_actor(key) or ("@" in key and coming_with(key.rpartition("@")[2], choices))
    return f"{key}: there is no such key\n  {hint or nearest(key, [*specs, *all_settings(specs), *choices])}"


def unknown_below(key: str, found: Any, known: list[str], choices: Mapping[str, str | None]) -> AlignError:
    """The error for a key that its section does not have."""
    if hint := at_actor(key):
        return AlignError(f"{key}: there is no such key\n  {hint}")
    return unknown_setting(key, found, known, instead=coming_with(key, choices))


def at_actor(key: str) -> str:
    """The remedy for a PEFT method at dpo or kto; '' for another key."""
    found = re.match(r"(?:peft@)?(dpo|kto)\.peft\b", key)
    advice = "use peft@actor.peft=NAME, and its settings as actor.peft.KEY"
    return f"{advice}: {found[1]} trains the actor" if found else ""


def coming_with(key: str, choices: Mapping[str, str | None]) -> str:
    """The other choices of a group that have a key, or one much like it; '' where none has."""
    homes = {group.partition("@")[2] or group: group for group in choices if not group.startswith("stage@")}
    home = max((package for package in homes if key.startswith(f"{package}.")), key=len, default=None)
    if home is None:
        return ""
    group, name = homes[home], key.removeprefix(f"{home}.").partition(".")[0]
    found = {one: [choice for choice in there if choice != choices[group]] for one, there in keys_of(group).items()}
    near = difflib.get_close_matches(name, [one for one, there in found.items() if there], n=1, cutoff=0.75)
    if not near:
        return ""
    some = ", ".join(found[near[0]][:MANY]) + (" and others" if len(found[near[0]]) > MANY else "")
    return f"{home}.{near[0]} comes with {group}={some}"


def _unknown_choice(choice: str, text: str) -> str:
    group, _, name = choice.rpartition("/")
    listed = text.partition("Available options in")[2].partition("Config search path")[0]
    options = [word.strip() for word in listed.splitlines()[1:] if word.strip()]
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.4)
    known = f"\n  nearest: {', '.join(near)}" if near else ""
    return f"{group}={name}: there is no such {group}{known}\n  one of: {', '.join(options) or 'none'}"


def nearest(key: str, names: list[str]) -> str:
    """A line with the names nearest to a key."""
    home, _, last = key.rpartition(".")
    last = ALIASES.get(last, last)
    key = f"{home}.{last}" if home else last
    close = difflib.get_close_matches(key, names, n=3, cutoff=0.75)
    close += [name for name in names if last in (name.rpartition(".")[2], name.partition("@")[0])][:3]
    close += difflib.get_close_matches(key, names, n=3, cutoff=0.6)
    unique = list(dict.fromkeys(close))[:4]
    return f"nearest: {', '.join(unique)}" if unique else "all keys: align --cfg job"


def _lines(error: BaseException, count: int) -> str:
    return "\n".join([line for line in str(error).splitlines() if line.strip()][:count])

"""Secrets of a run, which stand in none of its files and on no screen: `***` stands in their place.

A secret is what a key says to be one (`api_key`, `hub_token`, `password`, a header), a variable of the environment with
such a name, or a user, password or query in a URL. It is known by its value, so that it is found wherever it comes
back: in a message of a server, say. No torch at import.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO
from urllib.parse import quote

HIDDEN = "***"
KEY = re.compile(
    r"(?i)(api|access|secret|private|auth|hub|hf|bearer)[_-]?(key|token)$|(^|\.)token$|password$|passwd$|secret$"
    r"|credentials?$|authorization$|cookie$|\.headers\.[^.]+$"
)
NO_KEY = re.compile(r"(?i)\.headers\.(accept|accept-.*|content-.*|user-agent)$")
VARIABLE = re.compile(r"(?i)(_|^)(key|token|secret|password|passwd|credentials?)$")
IN_URL = re.compile(r"\w+://(?:(?P<user>[^/@\s]+)@)?[^/?#\s@]+[^?#\s]*(?:\?(?P<query>[^#\s]+))?")
SHORTEST = 6
"""Characters of a secret: a shorter one would be found in other words."""
_known: set[str] = set()


def learn(key: str, value: Any) -> None:
    """Know a setting, and those inside it, as secrets where it is one or holds one."""
    if isinstance(value, Mapping | list | tuple):
        pairs = value.items() if isinstance(value, Mapping) else ((key, one) for one in value)
        for name, one in pairs:
            learn(f"{key}.{name}" if isinstance(value, Mapping) else key, one)
        return
    if not isinstance(value, str):
        return
    if KEY.search(key) and not NO_KEY.search(key):
        _know([value, *value.split()])
    for found in IN_URL.finditer(value):
        user = found["user"] or ""
        _know([*user.split(":", 1), base64.b64encode(user.encode()).decode()])  # the header that it becomes
        _know(pair.partition("=")[2] or pair for pair in (found["query"] or "").split("&"))


def learn_words(words: Iterable[str]) -> None:
    """Know the secrets among overrides, and those of the environment."""
    for name, value in os.environ.items():
        if VARIABLE.search(name) and not os.path.exists(value):
            _know([value])
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        learn(key.partition("@")[0], value.strip("'\""))


def _know(values: Iterable[str]) -> None:
    for value in values:
        if len(value) >= SHORTEST and "$" not in value:
            _known.update({value, quote(value), quote(value, safe=""), json.dumps(value)[1:-1]})


def hide(text: str) -> str:
    """The text with *** in the place of every secret.

    >>> learn("reward.url", "http://me:open-sesame@judge/score?key=abc-123"); learn("sft.args.hub_token", "hf_12345")
    >>> hide("http://me:open-sesame@judge/score?key=abc-123 refuses hf_12345")
    'http://me:***@judge/score?key=*** refuses ***'
    >>> learn("sft.args.eos_token", "<|end|>"); hide("it ends with <|end|>")
    'it ends with <|end|>'
    """
    for secret in sorted(_known, key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text


def hide_in(value: Any) -> Any:
    """A value with every text in it hidden so."""
    if isinstance(value, Mapping):
        return {name: hide_in(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [hide_in(one) for one in value]
    return hide(value) if isinstance(value, str) else value


class Screen:
    """A stream whose text goes out with its secrets hidden."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(hide(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def hidden() -> Iterator[None]:
    """Inside, no secret is printed."""
    with redirect_stdout(Screen(sys.stdout)), redirect_stderr(Screen(sys.stderr)):
        yield

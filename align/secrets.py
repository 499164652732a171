"""Secrets of a run, which stand in none of its files and on no screen: `***` stands in their place.

A secret is what a key says to be one (`api_key`, `hub_token`, `password`, a header), a variable of the environment with
such a name, or in a URL a password or a value of the query. It is known by its value, so that it is found wherever it
comes back: in a message of a server, say. Files of rows that are trained on stay as they are. No torch at import.
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
from urllib.parse import quote, unquote

HIDDEN = "***"
KEY = re.compile(
    r"(?i)(api|access|secret|private|auth|hub|hf|bearer)[_-]?(key|token)$|(^|\.)token$|password$|passwd$|secret$"
    r"|credentials?$|authorization$|cookie$|\.headers\.[^.]+$"
)
NO_KEY = re.compile(r"(?i)\.headers\.(accept|accept-.*|content-.*|user-agent)$")
VARIABLE = re.compile(r"(?i)(_|^)(key|token|secret|password|passwd|credentials?)$")
QUERY = re.compile(r"(?<=[?&])(?P<name>[^=&#\s]+)=(?P<value>[^&#\s]+)")
IN_QUERY = re.compile(r"(?i)(key|token|secret|password|sig|signature|auth)$")
USER = re.compile(r"(?<=://)(?:[^/\s:@]*:)?(?P<password>[^/\s]*)@")
SCHEME = re.compile(r"(?i)^(bearer|basic|token)\s+")
REFERENCE = re.compile(r"(\w+\s+)?\$(\w+|\{.*\})")
SHORTEST = 8
"""Characters of a secret: a shorter one would be found in other words."""
_known: set[str] = set()


def learn(key: str, value: Any) -> None:
    """Know a setting, and those inside it, as secrets where it is one or holds one.

    A text that only refers to the environment (`$NAME`, `Bearer $NAME`, `${oc.env:NAME}`) is none.
    """
    if isinstance(value, Mapping):
        for name, one in value.items():
            learn(f"{key}.{name}", one)
    elif isinstance(value, list | tuple):
        for one in value:
            learn(key, one)
    elif isinstance(value, str) and not REFERENCE.fullmatch(value):
        if KEY.search(key) and not NO_KEY.search(key):
            _know(value, SCHEME.sub("", value))
        for found in USER.finditer(value):
            _know(found["password"], base64.b64encode(found[0][:-1].encode()).decode())  # as in a header
        _know(*(found["value"] for found in QUERY.finditer(value) if IN_QUERY.search(found["name"])))


def learn_words(words: Iterable[str]) -> None:
    """Know the secrets among overrides, and those of the environment."""
    for name, value in os.environ.items():
        if VARIABLE.search(name) and not os.path.exists(value):
            _know(value)
    for word in words:
        key, _, value = word.lstrip("+~").partition("=")
        learn(key.partition("@")[0], value.strip("'\""))


def _know(*values: str) -> None:
    for value in values:
        if len(value) >= SHORTEST:
            _known.update({value, quote(value), quote(value, safe=""), unquote(value), json.dumps(value)[1:-1]})


@contextmanager
def forgotten_after() -> Iterator[None]:
    """Inside, secrets are learned that are none afterwards."""
    before = set(_known)
    try:
        yield
    finally:
        _known.intersection_update(before)


def hide(text: str) -> str:
    """The text with *** in the place of every secret, and of users and passwords in URLs.

    >>> learn("reward.url", "http://me:pw@judge/score?page=12345678&key=abc-12345")
    >>> learn("sft.args.hub_token", "hf_123456")
    >>> hide("http://me:pw@judge/score?page=12345678&key=abc-12345 refuses hf_123456")
    'http://***@judge/score?page=12345678&key=*** refuses ***'
    >>> learn("sft.args.eos_token", "<|end_of_text|>")
    >>> hide("it ends with <|end_of_text|>")
    'it ends with <|end_of_text|>'
    """
    for secret in sorted(_known, key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return USER.sub(f"{HIDDEN}@", text) if "@" in text else text


def hide_in(value: Any) -> Any:
    """A value with every text in it hidden so, names among them."""
    if isinstance(value, Mapping):
        return {hide_in(name): hide_in(one) for name, one in value.items()}
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

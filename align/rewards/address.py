"""Where a server is and what it is told about us, with secrets that only the environment knows."""

from __future__ import annotations

import os
import re
import string

import httpx2


def from_environment(text: str, key: str) -> str:
    """`text` with every `$NAME` replaced by that environment variable; `$$` is a dollar sign.

    Raises ValueError for a variable that is not set; `key` is the setting that holds `text`.
    """
    if not isinstance(text, str):
        raise ValueError(f"{key}={text}: write text")
    try:
        return string.Template(text).substitute(os.environ)
    except KeyError as error:
        name = error.args[0]
        raise ValueError(f"{key} names ${name}, which the environment does not have: export {name}=…") from None
    except ValueError:
        raise ValueError(f"{key} has a $ that begins no name: write $NAME for a variable, or $$ for a $") from None


def address(url: str) -> str:
    """`url` as it is; raises ValueError unless it is a whole http or https URL."""
    try:
        parsed = httpx2.URL(url)
        whole = parsed.scheme in ("http", "https") and bool(parsed.host)
    except httpx2.InvalidURL:
        whole = False
    if not whole:
        # Whatever stands before an @ may be a password.
        raise ValueError(f"url={url.rpartition('@')[2]} is no URL: write http://HOST:PORT/PATH, or https")
    return url


def shown(url: str) -> str:
    """A URL for messages: without user, password and query, which may hold secrets.

    >>> shown("https://me:secret@judge.example:8443/score?key=secret")
    'https://judge.example:8443/score'
    """
    parsed = httpx2.URL(url)
    port = f":{parsed.port}" if parsed.port else ""
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    return f"{parsed.scheme}://{host}{port}{parsed.path}"


def header(name: str, value: str) -> tuple[str, str]:
    """Both as they are; raises ValueError, without the value, for what HTTP does not take."""
    if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII):
        raise ValueError(f"headers.{name} is no name of a header: write letters, digits and dashes")
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"headers.{name} holds a line break or another character that no header may have")
    return name, value

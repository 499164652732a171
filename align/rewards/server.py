"""A server over HTTP that rewards ask: with patience, within bounds of time and size, several requests at a time."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import string
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from align.errors import AlignError
from align.rewards.function import wait
from align.secrets import learn

LARGEST = 2**24
"""Bytes of a response; a score takes about 20, a judge's words a few thousand."""
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Status codes after which it is tried again."""
PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before the second try, doubled before each further one."""
LONGEST_WAIT = 120.0
"""Seconds of the server's own wish, in the header Retry-After, that are heeded."""
KNOCKS = 2
"""Further tries, at most, of a server that has had no request yet: most often it was not started."""

Read = TypeVar("Read")


class Away(Exception):
    """The server is not there for now, and why; `pause`, seconds that it wants to be left alone, 0 if it says none."""

    def __init__(self, why: str, pause: float = 0.0) -> None:
        super().__init__(why)
        self.pause = pause


@dataclass
class Response:
    status: int
    body: bytes

    def beginning(self) -> str:
        """For messages: the beginning of the response, quoted."""
        text = self.body[:160].decode("utf-8", "replace").strip()
        return repr(text) if text else "nothing"


class Unreadable(AlignError):
    """A response that is not what such a server sends; another try may be."""


LOCAL = ("localhost", "127.0.0.1", "::1")


class Server:
    """Server to which a reward named `name` posts JSON.

    url: http or https. timeout: seconds for one request, from the connection to the last byte of the response.
    retries: further tries, after pauses of 1, 2, 4 … 30 seconds (longer if it asks for that by Retry-After), of a
    server that cannot be reached, takes too long or responds with one of BUSY. headers: sent with each request. `$NAME`
    in url and headers stands for an environment variable, which is read here and stands in no file of the run.

    Raises ValueError for settings that cannot be, a variable that is not set among them.
    """

    def __init__(self, name: str, url: str, timeout: float, retries: int, headers: dict[str, str] | None) -> None:
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout={timeout}: use a number of seconds above 0")
        if retries < 0:
            raise ValueError(f"retries={retries}: use 0 or more")
        self.url = address(from_environment(url, "url"))
        given = dict(header(key, from_environment(value, f"headers.{key}")) for key, value in (headers or {}).items())
        self.headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **given}
        self.timeout, self.retries = timeout, retries
        self.here = f"reward {name!r} ({shown(self.url)})"

    def knock(self) -> None:
        """Raise AlignError where no server responds.

        A HEAD request, to which any response will do: few servers know it, and 405 and 501 show that one is there.
        """

        async def knocking() -> None:
            async with self._client(1) as client:
                await self._tried(lambda: self._sign_of_life(client), min(self.retries, KNOCKS))

        wait(knocking())

    def ask(
        self, bodies: list[bytes], read: Callable[[Response], Read], at_once: int = 1,
        unreadable: Callable[[str], Read] | None = None,
    ) -> list[Read]:  # fmt: skip
        """Results of `read` on the response to each body, in their order; `at_once` requests are under way together.

        A response of which `read` raises Unreadable is asked for again; where none of the tries can be read,
        `unreadable(message)` is the result. Raises AlignError where the server stays away or responds with more than
        LARGEST bytes, and what `read` raises of a response; the other requests are given up then.
        """

        async def tried(client: httpx2.AsyncClient, body: bytes) -> Read:
            return read(await self._post(client, body))

        async def one(client: httpx2.AsyncClient, body: bytes, place: asyncio.Semaphore) -> Read:
            async with place:
                try:
                    return await self._tried(lambda: tried(client, body), self.retries)
                except Unreadable as error:
                    if unreadable is None:
                        raise
                    return unreadable(str(error))

        async def asking() -> list[Read]:
            place = asyncio.Semaphore(at_once)
            async with self._client(at_once) as client:
                tasks = [asyncio.ensure_future(one(client, body, place)) for body in bodies]
                try:
                    return list(await asyncio.gather(*tasks))
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

        return wait(asking())

    def accepted(self, response: Response) -> Any:
        """The JSON of a response with status 200; AlignError, with how it begins, for any other."""
        if response.status != 200:
            raise AlignError(f"{self.here} responds with status {response.status}, not 200: {response.beginning()}")
        try:
            return json.loads(response.body)
        except (ValueError, RecursionError):  # not UTF-8, not JSON, or too deep to be a response
            raise AlignError(f"{self.here} does not respond with JSON but with {response.beginning()}") from None

    def _client(self, at_once: int) -> httpx2.AsyncClient:
        # Its own timeouts are for a read each, which a server that sends a byte at a time never fails.
        limits = httpx2.Limits(max_connections=at_once, max_keepalive_connections=at_once)
        local = urlsplit(self.url).hostname in LOCAL  # which the environment's proxy cannot reach
        return httpx2.AsyncClient(headers=self.headers, timeout=None, limits=limits, trust_env=not local)

    async def _tried(self, request: Callable[[], Awaitable[Read]], retries: int) -> Read:
        """Result of a request, the whole of it in `timeout` seconds, at the first try that is not in vain."""
        least, garbled = 0.0, None
        for attempt in range(retries + 1):
            if attempt:
                await asyncio.sleep(max(min(PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE), min(least, LONGEST_WAIT)))
            least, garbled = 0.0, None
            try:
                return await asyncio.wait_for(request(), self.timeout)
            except TimeoutError:
                why = f"no whole response within timeout={self.timeout:g} seconds"
            except (Away, httpx2.TransportError) as error:
                why = str(error) or type(error).__name__
                least = error.pause if isinstance(error, Away) else 0.0
            except Unreadable as error:
                garbled = error
        if garbled is not None:
            raise garbled
        tries = f"{retries + 1} tries" if retries else "one try"
        raise AlignError(
            f"{self.here} stayed away for {tries}, the last time: {why}\n"
            "  use the url of a server that runs, or more timeout or retries, among the settings of this reward"
        )

    async def _sign_of_life(self, client: httpx2.AsyncClient) -> None:
        async with client.stream("HEAD", self.url) as response:
            if response.status_code in (502, 503, 504):
                raise Away(f"status {response.status_code}")

    async def _post(self, client: httpx2.AsyncClient, body: bytes) -> Response:
        async with client.stream("POST", self.url, content=body) as stream:
            whole, status = bytearray(), stream.status_code
            pause = seconds(stream.headers.get("Retry-After", ""))
            async for part in stream.aiter_raw():
                whole += part
                if len(whole) > LARGEST:
                    raise AlignError(f"{self.here} responds with more than {LARGEST} bytes")
        response = Response(status, bytes(whole))
        if status in BUSY:
            raise Away(f"status {status} {response.beginning()}", pause)
        return response


def seconds(wish: str) -> float:
    """Seconds from now in a Retry-After header (RFC 9110, 10.2.3), a number of them or a date; 0 for anything else."""
    if wish.strip().isdecimal():
        return float(wish)
    try:
        return max((parsedate_to_datetime(wish) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):  # no date; a date without a zone
        return 0.0


def from_environment(text: str, key: str) -> str:
    """`text` with every `$NAME` replaced by that environment variable; `$$` is a dollar sign.

    Raises ValueError for a variable that is not set; `key` is the setting that holds `text`.
    """
    if not isinstance(text, str):
        raise ValueError(f"{key}={text}: use text")
    try:
        found = string.Template(text).substitute(os.environ)
    except KeyError as error:
        name = error.args[0]
        raise ValueError(f"{key} names ${name}, which the environment does not have: export {name}=…") from None
    except ValueError:
        raise ValueError(f"{key} has a $ that begins no name: write $NAME for a variable, or $$ for a $") from None
    learn(f"reward.{key}", found)
    return found


def address(url: str) -> str:
    """`url` as it is; raises ValueError unless it is a whole http or https URL."""
    try:
        parsed = httpx2.URL(url)
        whole = parsed.scheme in ("http", "https") and bool(parsed.host)
    except httpx2.InvalidURL:
        whole = False
    if not whole:
        # Whatever stands before an @ may be a password.
        raise ValueError(f"url={url.rpartition('@')[2]} is no URL: use http://HOST:PORT/PATH, or https")
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
        raise ValueError(f"headers.{name} is no name of a header: use letters, digits and dashes")
    if not (value.isascii() and value.isprintable()):
        raise ValueError(f"headers.{name} holds a line break or another character that no header may have")
    return name, value

"""Scores by a server: a POST of JSON for each batch of completions.

    align stages=[ppo] actor.path=FOLDER ppo.data.path=prompts.jsonl reward=http reward.url=http://localhost:8000/score

What is sent, one entry a completion in every list, as a reward function of TRL's gets it by keyword:

    {"prompts": [...], "completions": [...], "COLUMN": [...], ...}     the data set's other columns by their names

What comes back, with status 200; null is no opinion, and `terms`, for the log, may be left out:

    {"scores": [0.5, null], "terms": {"kind": [0.2, null]}}

Shapes: B completions.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
from torch import Tensor

from align.errors import AlignError
from align.rewards.address import address, from_environment, header, shown
from align.rewards.answers import scores_of
from align.rewards.function import WITHHELD
from align.rewards.waiting import wait
from align.types import RewardState, Rollout, Scored, Texts

LARGEST = 2**24
"""Bytes of an answer; a score takes about 20."""
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Status codes after which it is tried again."""
PAUSE, LONGEST_PAUSE = 1.0, 30.0
"""Seconds before the second try, doubled before each further one."""


class Away(Exception):
    """The server is not there for now, and why."""


class HTTPReward:
    """Scores that a server gives, and its terms by name.

    url: http or https. timeout: seconds for one request, from the connection to the last byte of the answer.
    retries: further tries, after pauses of 1, 2, 4 … 30 seconds, of a server that cannot be reached, takes too long or
    answers with one of BUSY. batch_size: completions in a request; requests follow one another. headers: sent
    with each request. `$NAME` in url and headers stands for an environment variable, which is read here and
    stands in no file of the run.

    Raises ValueError for settings that cannot be, a variable that is not set among them.
    """

    name = "http"

    def __init__(
        self,
        url: str,
        timeout: float = 60.0,
        retries: int = 4,
        batch_size: int = 64,
        headers: dict[str, str] | None = None,
    ) -> None:
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout={timeout}: write a number of seconds above 0")
        if retries < 0:
            raise ValueError(f"retries={retries}: write 0 or more")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: write 1 or more")
        self.url = address(from_environment(url, "url"))
        given = dict(header(key, from_environment(value, f"headers.{key}")) for key, value in (headers or {}).items())
        self.headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **given}
        self.timeout, self.retries, self.batch_size = timeout, retries, batch_size
        self.wants: set[str] = set()
        self.here = f"reward {self.name!r} ({shown(self.url)})"

    def check_reachable(self) -> None:
        """Raises AlignError where no server answers; tells nothing about its scores.

        A HEAD request, to which any answer will do, since few servers know it: 405 and 501 say that somebody is there.
        """

        async def knock() -> None:
            async with self._client() as client:
                await self._tried(lambda: self._sign_of_life(client))

        wait(knock())

    def __call__(self, rollout: Rollout, texts: Texts, state: RewardState) -> Scored:
        """score_B, float32, on the rollout's device; NaN for null.

        Raises AlignError where the server stays away, refuses the request, or answers with anything else
        than what the head of this file says, longer than LARGEST among it.
        """
        columns = {name: values for name, values in rollout.columns.items() if name not in WITHHELD}
        lists = {"prompts": texts.prompts, "completions": texts.completions, **columns}
        parts = [slice(first, first + self.batch_size) for first in range(0, len(rollout), self.batch_size)]
        bodies = [self._body({name: values[part] for name, values in lists.items()}) for part in parts]
        answers = wait(self._all(bodies))
        sizes = [len(texts.completions[part]) for part in parts]
        score_B = self._joined([answer["scores"] for answer in answers], sizes, rollout, "scores")
        terms = {}
        for term in dict.fromkeys(name for answer in answers for name in answer["terms"]):
            values = [answer["terms"].get(term, [None] * size) for answer, size in zip(answers, sizes, strict=True)]
            terms[term] = self._joined(values, sizes, rollout, f"terms.{term}")
        return Scored(score_B, {**terms, self.name: score_B})

    def _body(self, lists: dict[str, list]) -> bytes:
        texts = []
        for name, values in lists.items():
            try:
                texts.append(f"{json.dumps(name)}: {json.dumps(values, allow_nan=False)}")
            except (TypeError, ValueError) as error:
                raise AlignError(
                    f"{self.here}: the column {name} cannot be sent as JSON ({error})\n  write a data set without it"
                ) from error
        return f"{{{', '.join(texts)}}}".encode()

    def _joined(self, parts: list, sizes: list[int], rollout: Rollout, what: str) -> Tensor:
        here = f"{self.here}: {what}"
        for part, size in zip(parts, sizes, strict=True):
            if not isinstance(part, list):
                raise AlignError(f"{here} is {part!r:.60}, not a list of numbers")
            if len(part) != size:
                raise AlignError(f"{here} has {len(part)} entries for {size} completions")
        return scores_of([score for part in parts for score in part], rollout, here)

    # -- on the wire ----------------------------------------------------------------------------

    async def _all(self, bodies: list[bytes]) -> list[dict]:
        async with self._client() as client:
            return [self._understood(await self._tried(lambda b=body: self._post(client, b))) for body in bodies]

    def _client(self) -> httpx2.AsyncClient:
        # Its own timeouts are for a read each, which a server that sends a byte at a time never fails.
        return httpx2.AsyncClient(headers=self.headers, timeout=None)

    async def _tried(self, request: Callable[[], Awaitable]) -> Any:
        """What a request gives, the whole of it in `timeout` seconds, at the first try that is not in vain."""
        for attempt in range(self.retries + 1):
            if attempt:
                await asyncio.sleep(min(PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE))
            try:
                return await asyncio.wait_for(request(), self.timeout)
            except asyncio.TimeoutError:  # before Python 3.11 another class than TimeoutError
                why = f"no whole answer within reward.timeout={self.timeout:g} seconds"
            except (Away, httpx2.TransportError) as error:
                why = str(error) or type(error).__name__
        tries = f"{self.retries + 1} tries" if self.retries else "one try"
        raise AlignError(
            f"{self.here} stayed away for {tries}, the last time: {why}\n"
            "  write reward.url=URL of a server that runs, or more reward.timeout or reward.retries"
        )

    async def _sign_of_life(self, client: httpx2.AsyncClient) -> None:
        async with client.stream("HEAD", self.url) as response:
            if response.status_code in (502, 503, 504):
                raise Away(f"status {response.status_code}")

    async def _post(self, client: httpx2.AsyncClient, body: bytes) -> bytes:
        async with client.stream("POST", self.url, content=body) as response:
            answer, status = bytearray(), response.status_code
            async for part in response.aiter_raw():
                answer += part
                if len(answer) > LARGEST:
                    raise AlignError(f"{self.here} answers with more than {LARGEST} bytes, and a score takes about 20")
        if status in BUSY:
            raise Away(f"status {status} {_beginning(answer)}")
        if status != 200:
            raise AlignError(f"{self.here} answers with status {status}, not 200: {_beginning(answer)}")
        return bytes(answer)

    def _understood(self, answer: bytes) -> dict:
        """The answer's `scores` and `terms`, neither looked at yet."""
        form = '{"scores": [NUMBER or null, …]}'
        try:
            said = json.loads(answer)
        except (ValueError, RecursionError):  # not UTF-8, not JSON, or too deep to be an answer
            raise AlignError(f"{self.here} does not answer with JSON but with {_beginning(answer)}") from None
        if not isinstance(said, dict) or "scores" not in said:
            raise AlignError(f"{self.here} answers {_beginning(answer)}\n  the answer's form is {form}")
        terms = said.get("terms") or {}
        if not isinstance(terms, dict):
            raise AlignError(f"{self.here}: terms is {terms!r:.60}, not lists by name")
        return {"scores": said["scores"], "terms": terms}


def _beginning(answer: bytes | bytearray) -> str:
    text = answer[:160].decode("utf-8", "replace").strip()
    return repr(text) if text else "nothing"

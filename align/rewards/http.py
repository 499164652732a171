"""Scores by a server: a POST of JSON for each batch of completions.

    align stages=[ppo] actor.path=FOLDER ppo.data.path=prompts.jsonl reward=http reward.url=http://localhost:8000/score

What is sent, one entry a completion in every list, as a reward function of TRL's gets it by keyword:

    {"prompts": [...], "completions": [...], "COLUMN": [...], ...}     the data set's other columns by their names

What comes back, with status 200; null is no opinion, and `terms`, for the log, may be left out:

    {"scores": [0.5, null], "terms": {"kind": [0.2, null]}}

Shapes: B completions.
"""

from __future__ import annotations

import json

from torch import Tensor

from align.errors import AlignError
from align.rewards.function import WITHHELD, scores_of
from align.rewards.server import Response, Server
from align.types import RewardState, Rollout, Scored, Texts
from align.words import counted


class HTTPReward:
    """Scores that a server gives, and its terms by name.

    batch_size: completions in a request; requests follow one another. url, timeout, retries, headers: as
    align/rewards/server.py has them.

    Raises ValueError for settings that cannot be.
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
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: use 1 or more")
        self.server = Server(self.name, url, timeout, retries, headers)
        self.batch_size = batch_size
        self.wants: set[str] = set()

    def check_reachable(self) -> None:
        """Raise AlignError where no server responds; its scores are not looked at."""
        self.server.knock()

    def __call__(self, rollout: Rollout, texts: Texts, state: RewardState) -> Scored:
        """score_B, float32, on the rollout's device; NaN for null.

        Raises AlignError where the server stays away, refuses the request, or responds with anything else
        than what the head of this file says.
        """
        columns = {name: values for name, values in rollout.columns.items() if name not in WITHHELD}
        lists = {"prompts": texts.prompts, "completions": texts.completions, **columns}
        parts = [slice(first, first + self.batch_size) for first in range(0, len(rollout), self.batch_size)]
        bodies = [self._body({name: values[part] for name, values in lists.items()}) for part in parts]
        responses = self.server.ask(bodies, self._understood)
        sizes = [len(texts.completions[part]) for part in parts]
        score_B = self._joined([response["scores"] for response in responses], sizes, rollout, "scores")
        terms = {}
        for term in dict.fromkeys(name for response in responses for name in response["terms"]):
            values = [
                response["terms"].get(term, [None] * size) for response, size in zip(responses, sizes, strict=True)
            ]
            terms[term] = self._joined(values, sizes, rollout, f"terms.{term}")
        return Scored(score_B, {**terms, self.name: score_B})

    def _body(self, lists: dict[str, list]) -> bytes:
        texts = []
        for name, values in lists.items():
            try:
                texts.append(f"{json.dumps(name)}: {json.dumps(values, allow_nan=False)}")
            except (TypeError, ValueError) as error:
                raise AlignError(
                    f"{self.server.here}: the column {name} cannot be sent as JSON ({error})\n"
                    "  use a data set without it"
                ) from error
        return f"{{{', '.join(texts)}}}".encode()

    def _joined(self, parts: list, sizes: list[int], rollout: Rollout, what: str) -> Tensor:
        here = f"{self.server.here}: {what}"
        for part, size in zip(parts, sizes, strict=True):
            if not isinstance(part, list):
                raise AlignError(f"{here} is {part!r:.60}, not a list of numbers")
            if len(part) != size:
                raise AlignError(f"{here} has {counted(len(part), 'number')} for {counted(size, 'completion')}")
        return scores_of([score for part in parts for score in part], rollout, here)

    def _understood(self, response: Response) -> dict:
        """The response's `scores` and `terms`, neither looked at yet."""
        form = '{"scores": [NUMBER or null, …]}'
        parsed = self.server.accepted(response)
        if not isinstance(parsed, dict) or "scores" not in parsed:
            raise AlignError(f"{self.server.here} responds {response.beginning()}\n  the response's form is {form}")
        terms = parsed.get("terms") or {}
        if not isinstance(terms, dict):
            raise AlignError(f"{self.server.here}: terms is {terms!r:.60}, not lists by name")
        return {"scores": parsed["scores"], "terms": terms}

"""The data that passes between the parts of align, and the Protocols of what is pluggable.

Shapes: B completions, P prompt tokens, T response tokens, N = P + T, V vocabulary, D hidden size, K reward models.
A mask is True on real tokens. Log-probabilities are natural logarithms, in float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Settings for sampling a response: from the untruncated distribution, at a temperature, up to a stop token."""

    temperature: float
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    greedy: bool = False


@dataclass
class Generation:
    """Result of a rollout engine: responses padded on the right, and their log-probabilities."""

    response_ids_BT: Tensor
    mask_BT: Tensor
    logp_BT: Tensor
    finished_B: Tensor
    version_B: Tensor


@dataclass
class Rollout:
    """Prompts (padded left) with sampled responses (padded right), one row a completion."""

    prompt_ids_BP: Tensor
    prompt_mask_BP: Tensor
    response_ids_BT: Tensor
    response_mask_BT: Tensor
    loss_mask_BT: Tensor
    """Tokens that the policy wrote: all response tokens, as long as dialogues have one turn."""
    logp_BT: Tensor
    """By the engine that sampled, at `temperature`."""
    row_B: Tensor
    """Row of the data set."""
    sample_B: Tensor
    """Index among the K samples of that row."""
    finished_B: Tensor
    """Ended by a stop token."""
    version_B: Tensor
    """Version of the policy that wrote it."""
    temperature: float
    columns: dict[str, list] = field(default_factory=dict)
    """The data set's other columns, as TRL hands them to reward functions."""

    def __len__(self) -> int:
        return len(self.row_B)

    def __getitem__(self, rows: Tensor) -> Rollout:
        return _take(self, rows, columns={k: [v[int(i)] for i in rows] for k, v in self.columns.items()})

    def trim(self) -> Rollout:
        """The same rows without the columns of padding that no row needs."""
        first, length = _extent(self.prompt_mask_BP, self.response_mask_BT)
        return dataclasses.replace(
            self,
            prompt_ids_BP=self.prompt_ids_BP[:, first:],
            prompt_mask_BP=self.prompt_mask_BP[:, first:],
            response_ids_BT=self.response_ids_BT[:, :length],
            response_mask_BT=self.response_mask_BT[:, :length],
            loss_mask_BT=self.loss_mask_BT[:, :length],
            logp_BT=self.logp_BT[:, :length],
        )

    def to(self, device: torch.device) -> Rollout:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return dataclasses.replace(self, **{k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)})

    def length_B(self) -> Tensor:
        """Real tokens of each row, prompt and response."""
        return self.prompt_mask_BP.sum(1) + self.response_mask_BT.sum(1)

    def input_ids_BN(self) -> Tensor:
        return torch.cat([self.prompt_ids_BP, self.response_ids_BT], dim=1)

    def mask_BN(self) -> Tensor:
        return torch.cat([self.prompt_mask_BP, self.response_mask_BT], dim=1)


@dataclass
class Scores:
    """Outputs of the roles for a rollout; None for those that were not requested."""

    logp_BT: Tensor | None = None
    ref_logp_BT: Tensor | None = None
    value_BT: Tensor | None = None
    entropy_BT: Tensor | None = None
    reward_BK: Tensor | None = None
    """A column for each reward model on the actor's base, in the order in which they were placed."""

    def __getitem__(self, rows: Tensor) -> Scores:
        return _take(self, rows)


@dataclass
class Experience:
    """Batch that an update slices: a rollout, the scores of the policy that wrote it, advantages and returns."""

    rollout: Rollout
    old: Scores
    advantage_BT: Tensor
    return_BT: Tensor | None

    def __len__(self) -> int:
        return len(self.rollout)

    def __getitem__(self, rows: Tensor) -> Experience:
        return _take(self, rows, rollout=self.rollout[rows], old=self.old[rows])

    def trim(self) -> Experience:
        rollout = self.rollout.trim()
        length = rollout.response_ids_BT.shape[1]

        def cut(record):
            names = [f.name for f in dataclasses.fields(record) if f.name.endswith("_BT")]
            values = {name: getattr(record, name) for name in names}
            return {name: value[:, :length] for name, value in values.items() if value is not None}

        return dataclasses.replace(
            self, rollout=rollout, old=dataclasses.replace(self.old, **cut(self.old)), **cut(self)
        )


def _take(record, rows: Tensor, **given):
    """`record` with every tensor indexed by `rows`, but for the fields that are given."""
    values = {f.name: getattr(record, f.name) for f in dataclasses.fields(record) if f.name not in given}
    taken = {name: value[rows] for name, value in values.items() if isinstance(value, Tensor)}
    return dataclasses.replace(record, **taken, **given)


def _extent(prompt_mask_BP: Tensor, response_mask_BT: Tensor) -> tuple[int, int]:
    """First prompt column and number of response columns that some row needs (one at least of each)."""
    prompt = int(prompt_mask_BP.sum(1).max())
    response = int(response_mask_BT.sum(1).max())
    return prompt_mask_BP.shape[1] - max(prompt, 1), max(response, 1)


@dataclass
class Texts:
    """Prompts and completions as the data set has them: strings, or lists of messages."""

    prompts: list
    completions: list
    completion_ids: list[list[int]]

    def __getitem__(self, rows: Tensor) -> Texts:
        return Texts(*([column[row] for row in rows.tolist()] for column in vars(self).values()))


@dataclass
class RewardState:
    """Information that a reward may use beside the texts."""

    step: int
    scores: Scores = field(default_factory=Scores)
    log_metric: Callable[[str, float], None] = lambda name, value: None
    log_extra: Callable[[str, list], None] = lambda column, values: None
    place: str = "rewards"
    """Place in the log of a reward's own figures, beside those of its terms."""
    training: bool = False
    """The batch is trained on, so that a reward may learn from it."""

    def within(self, name: str) -> RewardState:
        return dataclasses.replace(self, place=f"{self.place}/{name}")


@dataclass
class Scored:
    """A score a completion (NaN: no opinion on that row), and each term by name for the log."""

    score_B: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)
    penalty_B: Tensor | None = None
    """Part of the score that is for length or repetition, whatever the completion says; None: no part."""

    def judged_B(self) -> Tensor:
        """The score without its penalty."""
        return self.score_B if self.penalty_B is None else self.score_B - self.penalty_B

    def __getitem__(self, rows: Tensor) -> Scored:
        return _take(self, rows, terms={name: term_B[rows] for name, term_B in self.terms.items()})


@dataclass
class SyncReceipt:
    """Receipt for the weights that reached the engine in one sync."""

    version: int
    mode: str
    bytes: int
    seconds: float
    hash: str
    gap: float = 0.0
    """The most that the engine's log-probability of a token was seen to differ from the trainer's, in nats."""


class Policy(Protocol):
    """The actor as a rollout engine sees it."""

    backbone: Any
    version: int
    full_precision: bool

    def save_adapter(self, directory: Path) -> None: ...
    def save_as_lora(self, directory: Path) -> None: ...
    def tensors(self, merged: bool) -> Iterator[tuple[str, Tensor]]: ...
    def generating(self) -> AbstractContextManager: ...
    def opening(self, rows: int) -> Any: ...
    def hash(self) -> str: ...


class RolloutEngine(Protocol):
    """Writes responses. A row's tokens depend on its prompt, its key and the policy alone. `exact`, once a policy is
    attached: by the trainer's own modules in float32, so that log-probabilities are the trainer's but for rounding."""

    name: str
    """For logs and cards."""
    exact: bool

    def attach(self, policy: Policy) -> SyncReceipt: ...
    def generate(self, prompts: list[list[int]], keys: list[int], sampling: Sampling) -> Generation: ...
    def sync(self, policy: Policy) -> SyncReceipt: ...
    def close(self) -> None: ...


class TrainEngine(Protocol):
    """Backward and optimizer step of one module: plain torch, or DeepSpeed. A frozen one has no rates."""

    module: Any
    sharded: bool

    def forward(self, *args: Any, **kwargs: Any) -> Any: ...
    def backward(self, loss: Tensor, last: bool) -> None: ...
    def step(self) -> dict[str, float]: ...
    def check(self) -> Any: ...
    def clear(self) -> None: ...
    def rates(self) -> dict[str, float]: ...
    def set_rate(self, role: str, rate: float) -> None: ...
    def gathered(self) -> AbstractContextManager: ...


class Reward(Protocol):
    """Scores completions. `wants` names what it needs of `Roles.score` (a field of Scores, without its suffix);
    what else one may have: align/rewards/parts.py."""

    wants: set[str]

    def __call__(self, rollout: Rollout, texts: Texts, state: RewardState) -> Scored: ...


class Advantage(Protocol):
    """Turns rewards into advantages and, for a critic, returns."""

    needs_critic: bool
    min_samples: int

    def __call__(
        self, score_B: Tensor, reward_BT: Tensor, value_BT: Tensor | None, mask_BT: Tensor, group_B: Tensor
    ) -> tuple[Tensor, Tensor | None]: ...


class PolicyLoss(Protocol):
    """The loss of every token that the policy wrote, before any mean; 0 gradient where it has no say."""

    def __call__(self, logp_BT: Tensor, old_logp_BT: Tensor, advantage_BT: Tensor, mask_BT: Tensor) -> Tensor: ...


class Roles(Protocol):
    """Actor, critic, reference, perhaps the reward model: which role is on which backbone is hidden here."""

    actor: Policy
    device: torch.device

    def score(self, rollout: Rollout, want: set[str]) -> Scores: ...
    def micro_batches(self, length_B: Tensor, roles: Iterable[str]) -> Iterator[Tensor]: ...
    def train(
        self, micro: Experience, loss: Callable[[Scores], dict[str, Tensor]], last: bool, roles: Iterable[str]
    ) -> None: ...
    def step(self) -> dict[str, float]: ...
    def check(self) -> None: ...
    def clear(self) -> None: ...
    def anneal(self, step: int, steps: int) -> None: ...
    def rates(self) -> dict[str, float]: ...
    def save(self, directory: Path) -> None: ...


class Role(Protocol):
    """Critic or reference as a section of the configuration describes it; it puts itself on a backbone.

    `placement` is `align.roles.placement.Placement`. An actor has `load(context)` instead, which gives
    `align.roles.start.Start`, and `learning_rate`, `schedule`, `warmup_steps` and `zero`.
    """

    def place(self, placement: Any) -> None: ...


class Stage(Protocol):
    """One stage of the pipeline: `check` finds what can be known before a model loads, `run` does the work."""

    def check(self, inputs: dict[str, str]) -> None: ...
    def run(self, inputs: dict[str, str], out: Path, report: Any) -> None: ...

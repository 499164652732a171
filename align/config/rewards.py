"""Options of rewards."""

from __future__ import annotations

from align.config.choices import REWARD_BACKBONES
from align.config.fields import choice, open_settings, section, value
from align.config.values import Plug, Settings


@section("reward")
class RewardModelOptions:
    TARGET = "align.rewards.model.ModelReward"

    path: str = "auto"
    """A reward model's folder or hub name; auto: this run's reward model."""
    normalize: bool = True
    """Shift and scale scores to mean 0 and deviation 1 on the samples that the model's card.json has."""
    backbone: str = choice("auto", *REWARD_BACKBONES)
    """shared (its adapter and score on the actor's base), own (a separate model), or auto: shared where it can be."""
    zero: Plug | None = None
    """As `reference.zero`."""


@section("reward")
class RewardFunctionOptions:
    TARGET = "align.rewards.function.FunctionReward"

    fn: str = value()
    """module.function with TRL's signature, from an installed package or the folder one stands in."""
    args: Settings = open_settings()
    """Further keyword arguments of the function."""
    name: str | None = None
    """Name in logs; unset: the function's own."""


@section("reward")
class RewardSumOptions:
    TARGET = "align.rewards.sum.SumReward"

    terms: Settings = open_settings()
    """Rewards by name: +reward@reward.terms.polite=kind_words"""
    weights: Settings = open_settings()
    """Weight of each term, 1 where none is given: a number, or points of a weight that moves over PPO's steps,
    [[0,1.0],[50,0.2]] or [cosine,[0,1.0],[50,0.2]] (align/rewards/sum.py)."""
    normalize: str = "none"
    """batch or running: before its weight, each term is divided by its deviation over the batch, or over all so far."""


@section("reward")
class RewardEnsembleOptions(RewardModelOptions):
    """Of the models at `path`, which share the settings of one; or of `terms`, which have their own."""

    TARGET = "align.rewards.ensemble.EnsembleReward"

    path: str | tuple[str, ...] = "auto"
    """Reward models: [A,B,C]; a glob, 'runs/rm/*/rm'; the folder of a stage with `rm.members`; auto: this run's."""
    terms: Settings = open_settings()
    """Or rewards of any kind by name, two or more: +reward@reward.terms.a=model reward.terms.a.path=FOLDER"""
    combine: str = "lower_bound"
    """mean, lower_bound (the mean less `spread_coef` deviations of the members' scores), or minimum."""
    spread_coef: float = 1.0
    """Price of one deviation, of lower_bound alone."""


@section("reward")
class RewardHTTPOptions:
    TARGET = "align.rewards.http.HTTPReward"

    url: str = value()
    """Address to which a batch is posted as JSON; request and reply: align/rewards/http.py. `$NAME` stands for
    an environment variable."""
    timeout: float = 60.0
    """Seconds for one request, from the connection to the last byte of the answer."""
    retries: int = 4
    """Further tries after pauses of 1, 2, 4 … 30 seconds, where the server is away or busy."""
    batch_size: int = 64
    """Completions in a request."""
    headers: Settings = open_settings()
    """Sent with each request: 'reward.headers.Authorization="Bearer $TOKEN"' takes TOKEN from the environment, and no
    file of the run holds it."""


@section("reward")
class RewardLLMJudgeOptions:
    TARGET = "align.rewards.judge.LLMJudge"

    url: str = value()
    """Address of an OpenAI-compatible server's chat/completions. `$NAME` stands for an environment variable."""
    model: str = value()
    """The judge, by the name that the server has for it."""
    template: str | None = None
    """A file with a jinja template of the question, given prompt, completion, messages, low, high and the data set's
    columns; unset: the one in align/rewards/judge.py."""
    scale: tuple[float, ...] = (1.0, 10.0)
    """The worst and the best grade, which become scores of 0 and 1; another number is no grade."""
    pattern: str | None = None
    """Regular expression with one group, the number, in the judge's reply; unset: `Score: 8` on the last line that
    begins so, a reply that is the number alone, or a JSON object's `score` (docs/reference/rewards.md)."""
    temperature: float | None = 0.0
    """Of the judge's sampling; null leaves the field out of the request, as some hosted models want it."""
    max_tokens: int | None = 1024
    """The most tokens of the judge's reply; null leaves the field out (args.max_completion_tokens is its new name)."""
    args: Settings = open_settings()
    """Further fields of the request, such as "reward.args.structured_outputs.choice=['1','2','3']" (vLLM)."""
    concurrency: int = 16
    """Requests under way at the same time."""
    max_unread: float = 0.5
    """The run ends when a larger share of a batch's replies holds no grade; else these rows are no opinion, and their
    share is logged."""
    timeout: float = 120.0
    """As that of http."""
    retries: int = 6
    """As that of http."""
    headers: Settings = open_settings()
    """As that of http."""


@section("reward")
class RewardByColumnOptions:
    TARGET = "align.rewards.by_column.ByColumn"

    column: str = value()
    """Column of the data set whose value names the case that scores a row."""
    cases: Settings = open_settings()
    """Rewards by that value: +reward@reward.cases.math=fn; the case `default` takes all other values."""


@section("reward")
class RewardGateOptions:
    TARGET = "align.rewards.gate.Gate"

    score: Plug | None = None
    """The reward that is to be had: +reward@reward.score=model"""
    condition: Plug | None = None
    """The reward that opens it: +reward@reward.condition=format"""
    threshold: float = 1.0
    """Lowest score of the condition that opens the gate."""
    otherwise: float = 0.0
    """The score of a row whose condition scores less."""


@section("reward")
class RewardFormatOptions:
    TARGET = "align.rewards.format.FormatReward"

    pattern: str = value()
    """Regular expression that the whole completion matches, as in `evaluate.pattern`."""
    timeout: float = 10.0
    """Seconds for one completion, after which the run ends: the pattern is one that takes for ever."""


@section("reward")
class RewardJSONOptions:
    TARGET = "align.rewards.format.JSONReward"

    schema: str | Settings = value()
    """A file with a JSON schema, or the schema itself."""


@section("reward")
class RewardOverlongOptions:
    TARGET = "align.rewards.penalties.Overlong"

    buffer: int = value()
    """The last tokens before `max_length`, over which the penalty grows from 0 to -1 (Yu et al. 2025, eq. 13)."""
    max_length: int = value(None, follows="rollout.max_new_tokens")
    """Tokens from which on it is -1."""


@section("reward")
class RewardRepetitionOptions:
    TARGET = "align.rewards.penalties.Repetition"

    ngram_size: int = 3
    """Tokens in a row that count as a repetition."""
    max_penalty: float = -1.0
    """The score of a completion that repeats itself all the time; one that repeats a share gets that share of it."""

"""Completions of held-out demonstrations against their references, after none or some examples in the context.

    align stages=[evaluate] actor.path=FOLDER data@sft.data=prompt_completion sft.data.path=FILE evaluate.shots=[0,4]

The model that fine-tuning started from completes prompts after each number of examples in `evaluate.shots`, which are
rows that fine-tuning learns from; later policies complete them after none, as they were trained. Decoding is greedy.
"""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from align.data.encode import completion_as, prompt_ids, shared_length, text_of, whole_ids
from align.data.files import FileData
from align.data.mixture import TASK
from align.data.source import Source, Split
from align.errors import AlignError
from align.installed import require
from align.ppo.rollouts import Row, texts_of
from align.rewards.format import FormatReward, JSONReward
from align.roles.policy import TrainedPolicy
from align.stages.evaluate.spec import EvaluateOptions
from align.stages.rm.quality import padded, sampled
from align.types import Rollout
from align.words import counted

BETWEEN = "\n\n"
"""Between examples of text; a model that goes on with another prompt stops counting there."""
MOST_LABELS = 50


def check_metrics(options: EvaluateOptions) -> None:
    """Raise AlignError for a pattern or schema that is missing or broken, and for a missing package."""
    if "format" in options.metrics and options.pattern is None and options.schema is None:
        raise AlignError(
            "evaluate.metrics: format has nothing to check by\n  use evaluate.pattern=REGEX or schema=FILE"
        )
    format_check(options.pattern, options.schema)
    if options.diversity:
        require("sacrebleu", "evaluate.diversity=true", "evaluate.diversity=false")


@dataclass
class Demonstrations:
    """Held-out rows of `prompt` and `completion`, and rows to take examples and labels from."""

    rows: list[dict]
    examples: list[dict]
    metrics: list[str]
    pattern: str | None = None
    schema: str | None = None

    def prompts(self, shots: int, seed: int) -> list[str | list[dict]]:
        """The prompts with `shots` examples of the same task before each, the same for all prompts of a task.

        No example stands before those of a task that is not trained on. Raises AlignError where a task has fewer.
        """
        chosen: dict[str | None, list[dict]] = {}
        for task in {row.get(TASK) for row in self.rows}:
            own = [row for row in self.examples if row.get(TASK) == task]
            if own and len(own) < shots:
                raise AlignError(
                    f"evaluate.shots={shots}: only {counted(len(own), 'row')} to take examples from\n  use fewer"
                )
            chosen[task] = random.Random(f"{seed}/shots/{task}").sample(own, min(shots, len(own)))
        return [with_examples(row["prompt"], chosen[row.get(TASK)]) for row in self.rows]


def demonstrations(rows: list[dict]) -> list[dict]:
    """Rows as `prompt` and `completion`; of messages the completion is the assistant's last turn.

    Raises AlignError for text alone, and for messages without a prompt or without a completion at the end.
    """
    found = []
    for row in rows:
        if "messages" in row:
            *prompt, last = row["messages"]
            if last["role"] != "assistant" or not prompt:
                raise AlignError(
                    "evaluate.shots: a row of sft.data is no prompt with its completion; it ends with the "
                    f"{last['role']}'s {last['content']!r:.60}\n"
                    "  use messages that end with a turn of the assistant, or evaluate.shots=[]"
                )
            row = {**{name: value for name, value in row.items() if name != "messages"}, "prompt": prompt}
            row["completion"] = [last]
        elif "completion" not in row:
            raise AlignError(
                "evaluate.shots: the rows of sft.data are text, without prompt and completion\n"
                "  use data@sft.data=prompt_completion or conversational, or evaluate.shots=[]"
            )
        found.append(row)
    return found


def with_examples(prompt: str | list[dict], examples: list[dict]) -> str | list[dict]:
    """The prompt behind examples: text after text with a blank line between, or turn after turn."""
    if not isinstance(prompt, str):
        return [turn for row in examples for turn in (*row["prompt"], *row["completion"])] + prompt
    return BETWEEN.join([*(row["prompt"] + row["completion"] for row in examples), prompt])


def figures_of(
    policy: TrainedPolicy, path: str, rows: Demonstrations, shots: int, tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int, batch_size: int, seed: int,
) -> dict[str, float]:  # fmt: skip
    """The metrics' means over all rows, and over each task's (`f1/topic`), for the policy of the folder `path`.

    Raises AlignError where a prompt with its examples does not fit the model.
    """
    prompts = rows.prompts(shots, seed)
    encoded = [Row(i, prompt, prompt_ids(prompt, tokenizer)) for i, prompt in enumerate(prompts)]
    check_room(policy, encoded, shots, max_new_tokens)
    rollout = sampled(policy, path, encoded, tokenizer, max_new_tokens, batch_size, seed, "demonstrations", greedy=True)
    texts = [text_of(one).partition(BETWEEN)[0] for one in texts_of(rollout, tokenizer).completions]
    found = {name: _scores(name, rows, texts) for name in rows.metrics if name != "accuracy"}
    if "accuracy" in rows.metrics:
        found["accuracy"] = _accuracy(policy, rows, prompts, tokenizer, batch_size)
    figures = {name: sum(values) / len(values) for name, values in found.items()}
    for task in dict.fromkeys(row[TASK] for row in rows.rows if TASK in row):
        own = [i for i, row in enumerate(rows.rows) if row.get(TASK) == task]
        figures |= {f"{name}/{task}": sum(values[i] for i in own) / len(own) for name, values in found.items()}
    return figures


def check_room(policy: TrainedPolicy, rows: list[Row], shots: int, max_new_tokens: int) -> None:
    config = policy.model.config
    room = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    longest = max(len(row.ids) for row in rows) + max_new_tokens
    if room and longest > room:
        raise AlignError(
            f"evaluate.shots={shots}: prompt, examples and completion take up to {longest} tokens, and the model has "
            f"{room} positions\n  use fewer shots, or a smaller rollout.max_new_tokens ({max_new_tokens})"
        )


def _scores(metric: str, rows: Demonstrations, completions: list[str]) -> list[float]:
    if metric == "format":
        return [*map(format_check(rows.pattern, rows.schema), completions)]
    references = [text_of(row["completion"]) for row in rows.rows]
    return [*map({"exact_match": exact_match, "f1": f1}[metric], completions, references)]


def labels_of(rows: Demonstrations) -> dict[str | None, list[str]]:
    """The different completions of each task, among which accuracy chooses.

    Raises AlignError where there is one alone, or more than MOST_LABELS.
    """
    labels: dict[str | None, list[str]] = {}
    for row in (*rows.examples, *rows.rows):
        known = labels.setdefault(row.get(TASK), [])
        if text_of(row["completion"]) not in known:
            known.append(text_of(row["completion"]))
    for task, known in labels.items():
        if not 1 < len(known) <= MOST_LABELS:
            count = f"every one is {known[0]!r:.60}" if len(known) == 1 else f"there are {len(known)} different ones"
            raise AlignError(
                f"evaluate.metrics: accuracy chooses among the completions{f' of {task}' if task else ''} as labels, 2 "
                f"to {MOST_LABELS} of them, and {count}\n  use exact_match or f1 instead"
            )
    return labels


@torch.no_grad()
def _accuracy(
    policy: TrainedPolicy, rows: Demonstrations, prompts: list, tokenizer: PreTrainedTokenizerBase, batch_size: int
) -> list[float]:
    """1 where the right one of the task's labels is the likeliest, by the sum of its tokens' log-probabilities."""
    labels = labels_of(rows)
    pairs = [(i, label) for i, row in enumerate(rows.rows) for label in labels[row.get(TASK)]]
    labelled = [{"prompt": prompts[i], "completion": completion_as(prompts[i], label)} for i, label in pairs]
    wholes = whole_ids(labelled, "completion", tokenizer)
    ids = [one[:-1] if one[-1] == tokenizer.eos_token_id else one for one in wholes]
    starts = [prompt_ids(prompt, tokenizer) for prompt in prompts]
    begun = [shared_length(starts[i], one) for (i, _), one in zip(pairs, ids, strict=True)]
    best: dict[int, tuple[float, str]] = {}
    for (i, label), value in zip(pairs, label_logp(policy, ids, begun, batch_size), strict=True):
        best[i] = max(best.get(i, (-torch.inf, "")), (value, label))
    return [float(best[i][1] == text_of(row["completion"])) for i, row in enumerate(rows.rows)]


def label_logp(policy: TrainedPolicy, ids: list[list[int]], begun: list[int], batch_size: int) -> list[float]:
    """Nats of each sequence from its `begun`-th token on."""
    found = torch.zeros(len(ids))
    with policy.generating():
        for part, ids_BN, mask_BN in padded(ids, batch_size, policy.device):
            logits_BNV = policy.model(input_ids=ids_BN, attention_mask=mask_BN.long()).logits
            logits_BNV = logits_BNV[:, -ids_BN.shape[1] :].float()  # behind virtual tokens
            logp_BN = logits_BNV[:, :-1].log_softmax(-1).gather(2, ids_BN[:, 1:, None]).squeeze(2).cpu()
            begun_B = torch.tensor([begun[i] for i in part.tolist()])
            wanted_BN = mask_BN[:, 1:].cpu() & (torch.arange(1, ids_BN.shape[1])[None] >= begun_B[:, None])
            found[part] = (logp_BN * wanted_BN).sum(1)
    return found.tolist()


MOST_FOR_BLEU = 100


def exact_match(completion: str, reference: str) -> float:
    """1 where both are the same, letter for letter, but for white space around them; nothing else is normalised.

    Stricter than SQuAD's measure of that name, which compares what `f1` counts.
    """
    return float(completion.strip() == reference.strip())


def f1(completion: str, reference: str) -> float:
    """Harmonic mean of precision and recall of words, as SQuAD has it (Rajpurkar et al. 2016, arXiv 1606.05250, 6.1).

    Words are what its evaluation script counts: in lower case, without ASCII punctuation and the articles a, an, the.
    A completion and a reference without a word agree, as in SQuAD 2.0's.

    >>> f1("The red kite.", "a red, red kite")
    0.8
    """
    given, wanted = Counter(_words(completion)), Counter(_words(reference))
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((given & wanted).values())
    return 2 * shared / (sum(given.values()) + sum(wanted.values()))


def format_check(pattern: str | None, schema: str | None) -> Callable[[str], float]:
    """1 for a completion that the regular expression matches as a whole, and that is JSON by the schema in a file.

    Raises AlignError for a pattern or a schema that is none.
    """
    if schema is not None:
        require("jsonschema", f"evaluate.schema={schema}", "evaluate.pattern=REGEX")
    try:
        form = None if pattern is None else FormatReward(pattern)
        data = None if schema is None else JSONReward(schema)
    except ValueError as error:
        raise AlignError(f"evaluate.{error}") from error

    def check(completion: str) -> float:
        formed = form is None or form.fits(completion, "evaluate.pattern")
        return float(formed and (data is None or data.fits(completion)))

    return check


def distinct(texts: Sequence[str], n: int) -> float:
    """Share of different n-grams of words among all (Li et al. 2016, arXiv 1510.03055, section 5).

    >>> distinct(["a b a b", "a b"], 2)
    0.5
    """
    grams = [gram for text in texts for gram in _grams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU of each text with all others as its references, from 0 to 1 (Zhu et al. 2018, arXiv 1802.01886).

    1: all say the same. By sacrebleu, sentences smoothed; of the first hundred texts.
    """
    from sacrebleu.metrics import BLEU

    bleu, texts = BLEU(effective_order=True), list(texts)[:MOST_FOR_BLEU]
    if len(texts) < 2:
        return 0.0
    scores = [bleu.sentence_score(one, texts[:i] + texts[i + 1 :]).score for i, one in enumerate(texts)]
    return sum(scores) / len(scores) / 100


def _words(text: str) -> list[str]:
    """As `normalize_answer` of SQuAD's evaluate-v1.1.py, split."""
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _grams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


LONGEST = 512


def general_texts(source: Source, seed: int, held_out: Callable[[Split], list[dict]]) -> list[str]:
    """The texts of `evaluate.general`: all of a file's, and of what is made on the spot those that are `held_out`.

    Raises AlignError for what is wrong with it, under that key; a source knows the purpose `pretrain`.
    """
    try:
        split = source.load("pretrain", seed)
    except AlignError as error:
        raise AlignError(str(error).replace("pretrain.data", "evaluate.general")) from error
    whole = isinstance(source, FileData) and source.eval_path is None
    return [row["text"] for row in ([*split.train, *split.eval] if whole else held_out(split))]


def text_loss(policy: TrainedPolicy, texts: list[str], tokenizer: PreTrainedTokenizerBase, batch_size: int) -> float:
    """Nats a token of texts as they are, each from its second token on, up to 512 of them.

    Raises AlignError where no text has two tokens.
    """
    ids = [one[:LONGEST] for one in tokenizer(texts)["input_ids"]]
    ids = [one for one in ids if len(one) > 1]
    if not ids:
        raise AlignError("evaluate.general: no text has two tokens, so that none has a loss\n  use longer texts")
    total = sum(label_logp(policy, ids, [1] * len(ids), batch_size))
    return -total / sum(len(one) - 1 for one in ids)


def diversity(rollout: Rollout, texts: list[str]) -> dict[str, float]:
    """distinct-1 and -2, self-BLEU (0 to 1, the higher the more alike), and entropy in nats a token.

    The entropy is the mean of -log p of the sampled tokens, an estimate without bias at temperature 1.
    """
    mask_BT = rollout.response_mask_BT
    entropy = -float((rollout.logp_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1))
    return {
        "distinct_1": distinct(texts, 1), "distinct_2": distinct(texts, 2), "self_bleu": self_bleu(texts),
        "entropy": entropy,
    }  # fmt: skip

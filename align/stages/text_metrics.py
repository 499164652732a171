"""How an answer compares with what was asked for, and how diverse answers are. Plain strings in, numbers out."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from align.errors import AlignError
from align.installed import require
from align.rewards.format import FormatReward
from align.rewards.json_schema import JSONReward

NAMED = ("exact_match", "f1", "accuracy", "format")
MOST_FOR_BLEU = 100


def exact_match(answer: str, reference: str) -> float:
    """1 where both are the same, letter for letter, but for white space around them; nothing else is normalised.

    Stricter than SQuAD's measure of that name, which compares what `f1` counts.
    """
    return float(answer.strip() == reference.strip())


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of words, as SQuAD has it (Rajpurkar et al. 2016, arXiv 1606.05250, 6.1).

    Words are what its evaluation script counts: in lower case, without ASCII punctuation and the articles a, an, the.
    An answer and a reference without a word agree, as in SQuAD 2.0's.

    >>> f1("The red kite.", "a red, red kite")
    0.8
    """
    given, wanted = Counter(_words(answer)), Counter(_words(reference))
    if not given or not wanted:
        return float(given == wanted)
    shared = sum((given & wanted).values())
    return 2 * shared / (sum(given.values()) + sum(wanted.values()))


def format_check(pattern: str | None, schema: str | None) -> Callable[[str], float]:
    """1 for an answer that the regular expression matches as a whole, and that is JSON by the schema in a file.

    Raises AlignError for a pattern or a schema that is none.
    """
    if schema is not None:
        require("jsonschema", f"evaluate.schema={schema}", "evaluate.pattern=REGEX")
    try:
        form = None if pattern is None else FormatReward(pattern)
        data = None if schema is None else JSONReward(schema)
    except ValueError as error:
        raise AlignError(f"evaluate.{error}") from error

    def check(answer: str) -> float:
        formed = form is None or form.fits(answer, "evaluate.pattern")
        return float(formed and (data is None or data.fits(answer)))

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

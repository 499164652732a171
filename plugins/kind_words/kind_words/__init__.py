"""A reward for kind words.

The signature is that of TRL's reward functions: lists with one entry a completion, and **kwargs for the
keywords that it does not need.
"""

import re

WORDS = ["please", "thanks", "thank", "sorry", "welcome", "glad", "happy", "kind", "kindly", "gladly"]


def kind_words(completions: list, words: list[str] = WORDS, maximum: float = 0.2, **kwargs) -> list[float]:
    """One score a completion from 0 to `maximum`: the share of its words that are among `words`.

    Shares above `maximum` earn no more, so that a completion of nothing but kind words does not pay.

    >>> kind_words(["Thank you, I am glad to help", "No", "please please"], maximum=0.5)
    [0.2857142857142857, 0.0, 0.5]
    """
    kind = {word.lower() for word in words}
    return [min(_share(_text(completion), kind), maximum) for completion in completions]


def _share(text: str, kind: set[str]) -> float:
    found = re.findall(r"[\w']+", text.lower())
    return sum(word in kind for word in found) / max(len(found), 1)


def _text(completion: str | list[dict]) -> str:
    """The text of a completion: a string, or the last of a list of messages."""
    return completion if isinstance(completion, str) else completion[-1]["content"]

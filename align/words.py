"""Words with numbers, for lines that people read, and words without what may be a secret."""

import re

SECRET = re.compile(r"(?i)^(\S*(?:token|secret|password|api_?key|authorization)|\S*\.headers\.\S+)=[^$]+$")
IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)|(?<=\?)\S+")


def counted(number: int, noun: str) -> str:
    """A number with its noun, which gets an s unless the number is 1.

    >>> counted(1, "held-out row"), counted(1200, "row")
    ('1 held-out row', '1200 rows')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def masked(word: str) -> str:
    """An override for a file that stays: values of secrets' keys, and users and queries in URLs, become ***.

    >>> masked("reward.url=http://me:pw@judge/score?key=3"), masked("hub.api_key=sk-1")
    ('reward.url=http://***@judge/score?***', 'hub.api_key=***')
    >>> masked("rollout.max_new_tokens=8"), masked("reward.headers.Key=$KEY")
    ('rollout.max_new_tokens=8', 'reward.headers.Key=$KEY')
    """
    return IN_URL.sub("***", SECRET.sub(r"\1=***", word))

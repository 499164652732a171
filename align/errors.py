"""Errors that a user can mend, and one for a rollout that is not the policy's."""

import re
import shlex


class AlignError(ValueError):
    """Bad input: the message says what was wrong, where, and what to use instead.

    The command line prints it without a traceback (unless HYDRA_FULL_ERROR=1).
    """


class AlignWarning(UserWarning):
    """Finding that is worth a second look: the command line prints it as one line, as it prints an error."""


class StaleRolloutError(AlignError):
    """The rollout engine does not serve the policy that is trained."""


def typed(key: str, value: str) -> str:
    """`KEY=VALUE` to paste into a shell: what is no plain word is quoted once for Hydra and once for the shell.

    >>> print(typed("sft.data.columns.prompt", "question"), typed("reward.pattern", "<a>.*"))
    sft.data.columns.prompt=question "reward.pattern='<a>.*'"
    >>> print(typed("reward.headers.Authorization", "Bearer $NAME"))
    'reward.headers.Authorization="Bearer $NAME"'
    """
    if re.fullmatch(r"[\w./:-]+", value, re.ASCII) and value.lower() not in ("null", "true", "false", "nan", "inf"):
        return f"{key}={value}"
    if not set(value) & set("'\"$`!\\"):
        return f"\"{key}='{value}'\""
    escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ("\\" if found[2] else "") + found[2], value)
    return shlex.quote(f'{key}="{escaped}"')

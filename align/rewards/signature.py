"""Whether a reward function can be called the way TRL calls it."""

import difflib
import inspect
import warnings
from collections.abc import Callable, Iterable

from align.errors import AlignError, AlignWarning


def check_takes(fn: Callable, given: Iterable[str], args: Iterable[str], here: str) -> None:
    """Nothing, if `fn` takes the keywords that TRL gives and those of `args`; ValueError if not.

    Warns of an argument that only **kwargs takes, if its name is almost that of one that `fn` has.
    """
    signature = _signature(fn)
    if signature is None:
        return
    for group, name, remedy in ((given, "fn", "; end its arguments with **kwargs, as TRL's do"), (args, "args", "")):
        try:
            signature.bind_partial(**dict.fromkeys(group))
        except TypeError as error:
            raise ValueError(f"{name} does not fit {here}: {error}{remedy}") from None
    for name in set(args) - signature.parameters.keys():
        if near := difflib.get_close_matches(name, signature.parameters, n=1, cutoff=0.75):
            warnings.warn(f"{here}: only **kwargs takes args.{name}; is it {near[0]}?", AlignWarning, stacklevel=3)


def check_call(fn: Callable, keywords: dict, columns: Iterable[str], here: str) -> None:
    """Nothing, if `fn` can be called with `keywords`; AlignError, with the columns there are, if not."""
    signature = _signature(fn)
    if signature is None:
        return
    try:
        signature.bind(**keywords)
    except TypeError as error:
        have = ", ".join(sorted(columns)) or "none beside the prompt"
        raise AlignError(f"{here}: {error}; columns of the data set: {have}; others come from its args") from None


def _signature(fn: Callable) -> inspect.Signature | None:
    try:
        return inspect.signature(fn)
    except ValueError:  # a builtin that does not say what it takes
        return None

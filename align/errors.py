"""The one exception for what a user can mend."""


class AlignError(ValueError):
    """Bad input: the message says what was wrong, where, and what to write instead.

    The command line prints it without a traceback (unless HYDRA_FULL_ERROR=1).
    """

"""What a user can mend, and a rollout that is not the policy's."""


class AlignError(ValueError):
    """Bad input: the message says what was wrong, where, and what to write instead.

    The command line prints it without a traceback (unless HYDRA_FULL_ERROR=1).
    """


class StaleRolloutError(AlignError):
    """The rollout engine does not serve the policy that is trained."""

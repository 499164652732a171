"""RLHF from one Hydra configuration: SFT, reward model and PPO, every role a plugin.

`align.run(["experiment=tiny", "seed=1"])` is the command line as a function.
"""

from align.library_variables import quiet

__version__ = "0.1.0"
quiet()


def run(overrides: list[str]) -> dict:
    """Run the pipeline that the overrides compose; returns the run's summary, as in summary.json.

    Raises align.errors.AlignError (a ValueError) on bad input, in the words of the command line.
    """
    from align.cli.errors import composing_errors
    from align.cli.main import run as run_command
    from align.secrets import forgotten_after

    with forgotten_after(), composing_errors():
        return run_command(["run", *overrides]) or {}

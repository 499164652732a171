"""What a message says to write survives the shell and Hydra."""

import shlex
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from align.errors import typed

VALUES = [
    "question", "my question", "a/b-c.jsonl", "http://localhost:8000/v1", "<think>.*</think>.*", "{{ text }} a, b",
    "Bearer $HOME", "it's", 'say "hi"', "^\\d+$", "ends in \\", 'a \\" b', "`date`", "wow!", "naïve", "null", "True",
    "a=b", "x(y)", "[1,2]", "",
]  # fmt: skip


@pytest.fixture(scope="module")
def from_bash() -> dict[str, str]:
    """What bash makes of each value's words."""
    words = " ".join(typed("key.part", value) for value in VALUES)
    out = subprocess.run(["bash", "-c", f"printf '%s\\0' {words}"], capture_output=True, text=True, check=True).stdout
    return dict(zip(VALUES, out.split("\0")[:-1], strict=True))


@pytest.mark.parametrize("value", VALUES)
def test_a_setting_to_paste_means_the_value_to_hydra(from_bash, value):
    override = OverridesParser.create().parse_override(from_bash[value])
    assert (override.key_or_group, override.value()) == ("key.part", value)
    assert shlex.split(typed("key.part", value)) == [from_bash[value]]

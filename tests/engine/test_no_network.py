"""DeepSpeed without any network interface."""

import subprocess
import sys

import pytest

WITHOUT = ["unshare", "--net", "--map-root-user"]
CHECK = """
from align.build.zero import zero_of
from align.config.values import Plug, Settings
zero_of(Plug("align.config.Zero", Settings((("stage", 2),)), "actor.zero"))
"""


@pytest.mark.deepspeed
def test_a_machine_without_any_interface_is_told_at_the_start():
    try:
        subprocess.run([*WITHOUT, "true"], check=True, capture_output=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("network namespaces cannot be made here")
    done = subprocess.run([*WITHOUT, sys.executable, "-c", CHECK], capture_output=True, text=True)
    assert done.returncode and done.stderr.rstrip().endswith(
        "no network interface is up here, nor lo\n  ip link set lo up, or use zero@actor.zero=none"
    ), done.stderr

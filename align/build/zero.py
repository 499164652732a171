"""ZeRO settings of a role from its plug."""

from __future__ import annotations

from align.build.plugs import make
from align.config import Zero
from align.config.values import Plug
from align.errors import AlignError
from align.installed import require


def zero_of(plug: Plug | None, trained: bool = True) -> Zero | None:
    """A role's ZeRO settings; checks that DeepSpeed can run here, and that the stage is one that the role can have."""
    if plug is None:
        return None
    zero = make(plug)
    if zero.stage not in ((1, 2, 3) if trained else (3,)):
        allowed = (
            "stage1, stage2 or stage3" if trained else "stage3 or stage3_offload (a frozen model has no optimizer)"
        )
        raise AlignError(f"zero@{plug.key}=stage{zero.stage}: not possible here\n  use zero@{plug.key}=none, {allowed}")
    setting, instead = f"zero@{plug.key}=stage{zero.stage}", f"zero@{plug.key}=none"
    require("deepspeed", setting, instead)
    import torch.distributed

    try:
        torch.distributed.ProcessGroupGloo.create_default_device()
    except RuntimeError as error:
        raise AlignError(
            f"{setting}: DeepSpeed connects even one process to itself, and no network interface is up here, nor lo\n"
            f"  ip link set lo up, or use {instead}"
        ) from error
    return zero

"""What a run imports before it starts, imported once for all trials. For the server that they are forked from."""

# ruff: noqa: E402, F401
from align.library_variables import prepare

prepare()

import align.stages.evaluate.stage
import align.stages.ppo.stage
import align.stages.pretrain.stage
import align.stages.rm.stage
import align.stages.sft.stage

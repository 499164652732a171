"""What a run imports before it starts, imported once for all trials. For the server that they are forked from."""

# ruff: noqa: E402, F401
from align.surroundings import prepare

prepare()

import align.stages.evaluate
import align.stages.ppo_stage
import align.stages.pretrain
import align.stages.rm
import align.stages.sft

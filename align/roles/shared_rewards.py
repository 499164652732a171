"""Reward models apart from the actor: those whose adapters stand on one base share it, and one trunk pass.

Shapes: B completions, N tokens, K reward models on one base.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from peft import PeftConfig, PeftModel
from torch import Tensor, nn

from align.config import Zero
from align.engine.linear import give_kernel
from align.peft.adapters import routed, routes_rows
from align.roles.folder import SCORE, Folder
from align.roles.loading import load_plain
from align.roles.modules import BATCH, ScoreModule, score_rollout
from align.roles.placement import RunContext, real_path
from align.types import Rollout, TrainEngine


class SharedScores(nn.Module):
    """Reward models on one base: adapters of one PEFT model, a score head each."""

    def __init__(self, module: ScoreModule) -> None:
        super().__init__()
        self.module = module
        self.adapters = ["default"]

    def add(self, path: str) -> None:
        """The adapter and head of the reward model at `path`, frozen."""
        name = f"reward_{len(self.adapters) + 1}"
        self.module.model.load_adapter(path, name)
        self.module.requires_grad_(False).eval()
        self.adapters.append(name)

    def forward(self, ids_BN: Tensor, mask_BN: Tensor) -> Tensor:
        """score_BK."""
        count = len(self.adapters)
        if count == 1:
            return self.module(ids_BN, mask_BN)[:, None]
        with routed(self.module.model, [name for name in self.adapters for _ in range(len(ids_BN))]):
            return self.module(ids_BN.repeat(count, 1), mask_BN.repeat(count, 1)).view(count, -1).T


@dataclass
class RewardSlot:
    """Reward models on one base, whose scores of a rollout are computed once for all of them."""

    shared: SharedScores
    engine: TrainEngine
    path: str
    """Of the first reward model here."""
    last: tuple[Rollout, Tensor] | None = None

    def scores(self, rollout: Rollout) -> Tensor:
        """score_BK of a rollout's own tokens."""
        if self.last is None or self.last[0] is not rollout:
            count, rows = len(self.shared.adapters), BATCH.get(rollout.prompt_ids_BP.device.type, BATCH["cuda"])
            self.last = rollout, score_rollout(self.engine.forward, rollout, max(rows // count, 1), (count,))
        return self.last[1]


@dataclass
class SharedRewardModels:
    """Reward models, apart from the actor, that score the same rollouts."""

    context: RunContext
    slots: dict[tuple[str, str], RewardSlot] = field(default_factory=dict)

    def add(self, folder: Folder, zero: Zero | None) -> tuple[RewardSlot, int]:
        """Loads a reward model, on the base of an earlier one where it can stand there; its slot and column."""
        peft = PeftConfig.from_pretrained(folder.path) if folder.base else None
        if peft is None or zero is not None or not routes_rows(peft) or getattr(peft, "bias", "none") != "none":
            return self._load(folder, zero), 0
        key = real_path(folder.base), str(peft.peft_type)
        if key in self.slots:
            shared = self.slots[key].shared
            shared.add(folder.path)
            give_kernel(shared.module.model)
            shared.to(self.context.device)
            return self.slots[key], len(shared.adapters) - 1
        self.slots[key] = self._load(folder, zero)
        return self.slots[key], 0

    def _load(self, folder: Folder, zero: Zero | None) -> RewardSlot:
        context = self.context
        model = load_plain(folder.base or folder.path, SCORE, context.dtype)
        if folder.base:
            model = PeftModel.from_pretrained(model, folder.path)
        give_kernel(model)
        module = ScoreModule(model.requires_grad_(False).eval(), context.autocast)
        shared = SharedScores(module).to(context.device)
        return RewardSlot(shared, context.engine(shared, None, 0.0, zero), folder.path)

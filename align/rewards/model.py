"""A learned reward model as a reward: it scores the rollout's own token ids, never re-tokenised text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from align.config import Zero
from align.config.choices import REWARD_BACKBONES
from align.errors import AlignError
from align.rewards.typed import chosen_at
from align.roles.folder import SCORE, inspect
from align.roles.placement import Placement, RunContext
from align.roles.shared_rewards import RewardSlot, SharedRewardModels
from align.roles.tokenizer import load_tokenizer
from align.types import RewardState, Rollout, Scored, Texts


class ModelReward:
    """score_B of a reward model, by default shifted and scaled to mean 0 and deviation 1 on SFT samples."""

    name = "model"

    def __init__(
        self,
        path: str,
        context: RunContext,
        tokenizer: PreTrainedTokenizerBase,
        normalize: bool = True,
        zero: Zero | None = None,
        backbone: str = "own",
        placement: Placement | None = None,
        shared: SharedRewardModels | None = None,
        key: str = "reward",
    ) -> None:
        """`tokenizer` is the policy's: a reward model with another one is refused.

        `backbone` is shared (its adapter and head on the actor's base, in the same trunk pass as the other roles,
        which needs `placement`), own, or auto. Raises AlignError where `shared` cannot be. On a backbone of its
        own it stands together with those of `shared` that have its base. Errors name it by its `key`.
        """
        if backbone not in REWARD_BACKBONES:
            raise AlignError(f"{key}.backbone={backbone}: use one of {', '.join(REWARD_BACKBONES)}")
        folder = inspect(path, f"{key}.path", SCORE)
        check_same_tokenizer(load_tokenizer(path, f"{key}.path"), tokenizer, f"{key}.path")
        self.path, self.key = path, key
        self.mean, self.std = (0.0, 1.0) if not normalize else score_scale(Path(path))
        for warning in warnings_of(Path(path)):
            context.tell(f"reward: warning about {path}: {warning}")
        scale = f"score shifted by {-self.mean:.2f} and divided by {self.std:.2f}"
        self.column, apart = -1, "backbone=own" if backbone == "own" else "there is no actor"
        if backbone != "own" and placement:
            self.column, apart = placement.place_reward(folder, zero)
        if apart and backbone == "shared":
            raise AlignError(
                f"{key}.backbone=shared: the reward model cannot sit on the actor's base: {apart}\n"
                f"  use {key}.backbone=own"
            )
        self.slot: RewardSlot | None = None
        self.wants = {"reward"}
        if not apart:
            context.tell(f"reward: the adapter of {path} on the actor's base, {scale}")
            return
        self.slot, self.column = (shared or SharedRewardModels(context)).add(folder, zero)
        self.wants = set()
        whose = f"on the backbone of {self.slot.path}" if self.column else "its own backbone"
        context.tell(f"reward: {path}, {scale}; {whose} ({apart})")

    def __call__(self, rollout: Rollout, texts: Texts, state: RewardState) -> Scored:
        raw_BK = self.slot.scores(rollout) if self.slot else state.scores.reward_BK
        score_B: Tensor = (raw_BK[:, self.column] - self.mean) / self.std
        if not score_B.isfinite().all():  # no opinion is for rewards that say so; here weights are broken
            raise AlignError(
                f"{self.key}.path={self.path}: a score is not finite at step {state.step}\n"
                f"  use a reward model whose weights are finite"
            )
        return Scored(score_B, {self.name: score_B})


def score_scale(folder: Path) -> tuple[float, float]:
    """Mean and deviation of the score on SFT samples, from card.json; (0, 1) where nothing is known."""
    card = _card(folder)
    score = card.get("score", {"mean": 0.0, "std": 1.0})
    return score["mean"], score["std"]


def warnings_of(folder: Path) -> list[str]:
    """Warnings about a reward model by the stage that trained it, from card.json."""
    return _card(folder).get("report", {}).get("warnings", [])


def _card(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "card.json").read_text(encoding="utf-8")) if (folder / "card.json").exists() else {}


def check_same_tokenizer(other: PreTrainedTokenizerBase, policy: PreTrainedTokenizerBase, key: str) -> None:
    """Token ids must mean the same to the policy and to the model at `key`, which is handed them."""
    if other.get_vocab() != policy.get_vocab():
        role = key.removesuffix(".path")
        scores = role.startswith("reward") or ".judge" in role
        instead = f", or {chosen_at(role)}=fn with a function that reads the text" if scores else ""
        raise AlignError(
            f"{key}: its tokenizer ({other.name_or_path}, {len(other)} tokens) is not the policy's "
            f"({policy.name_or_path}, {len(policy)} tokens), so it would misread the policy's token ids\n"
            f"  use a model made from the policy's own base{instead}"
        )

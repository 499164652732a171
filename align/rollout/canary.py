"""Proof that an engine serves the policy it was handed: fixed prompts, written by the engine and scored by the trainer.

The prompts take the way of every rollout (`engine.generate`). The engine's log-probability of each token that it
writes is held against the trainer's for the policy of now, of the sync before, and for the base. Right is what is
as near to now as kernels allow, and nearer to now than to the others. As long as the policy has not moved, serving
it or the one before looks the same: the canary is blind there, and has nothing to find.

Shapes: K prompts, P tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from align.peft.adapters import use_adapter
from align.peft.prompts import inputs_of
from align.types import Policy, RolloutEngine, Sampling

LENGTHS = (3, 3, 40, 40)
"""Of the prompts: within one block of a key-value cache, and beyond."""
FLOOR = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Nats that two kernels may differ by on a token, however little they differed before."""
LOUD = {torch.float32: 1e-2, torch.bfloat16: 1.0}
"""Nats that no two kernels differ by on a token: the weights are others."""
NOW, BEFORE, BASE = "now", "before", "base"
CAUSES = {
    BEFORE: "it serves the policy of the sync before: an id, name or path was used twice, a cache was kept, or a push "
    "did not happen",
    BASE: "it serves the base without the adapter: the adapter's names match nothing there, or requests do not name it",
    NOW: "it computes neither the new policy nor the old one: some weights did not arrive, such as a tied head, or its "
    "kernels are another function",
}


@dataclass
class Canary:
    """Watches `engine`; `longest` is the most tokens of a prompt with its response."""

    engine: RolloutEngine
    longest: int
    noise: float = 0.0
    """The gap that was seen where nothing had to be handed over."""
    gap: float = 0.0
    """The most that the engine's log-probability of a token differs from the trainer's, in nats; of the last check."""
    cause: str = ""
    """Likely cause, after a check that failed."""
    logp_KV: dict[str, Tensor] = field(default_factory=dict)

    def learn(self, policy: Policy) -> bool:
        """Before anything is handed over: how far the engine's kernels are from the trainer's on the plain base.

        False where that is so far that the engine's base is another, and the canary would be deaf.
        """
        self.logp_KV[BASE] = self._trainer(policy, base=True)
        token_K, engine_K = self._written(policy)
        self.noise = float((self._of(BASE, token_K) - engine_K).abs().max())
        return self.noise < LOUD.get(policy.backbone.dtype, LOUD[torch.bfloat16])

    def right(self, policy: Policy) -> bool:
        """After a sync: whether the engine serves the policy of now."""
        self.logp_KV[NOW] = self._trainer(policy)
        token_K, engine_K = self._written(policy)
        gaps = {name: float((self._of(name, token_K) - engine_K).abs().max()) for name in self.logp_KV}
        self.gap = gaps.pop(NOW)
        allowed = max(2 * self.noise, FLOOR.get(policy.backbone.dtype, FLOOR[torch.bfloat16]))
        moved = {name: float((self._of(name, token_K) - self._of(NOW, token_K)).abs().max()) for name in gaps}
        nearer = [name for name, gap in gaps.items() if gap < self.gap and moved[name] > allowed]
        if self.gap <= allowed and not nearer:
            self.logp_KV[BEFORE] = self.logp_KV[NOW]
            return True
        self.cause = CAUSES[min(nearer, key=gaps.get) if nearer else NOW]
        return False

    def _of(self, name: str, token_K: Tensor) -> Tensor:
        return self.logp_KV[name].gather(1, token_K[:, None])[:, 0]

    def _prompts(self, policy: Policy) -> list[list[int]]:
        """Token ids of all over the vocabulary, the same in every run."""
        vocabulary = policy.backbone.config.vocab_size
        lengths = [min(length, self.longest - 1) for length in LENGTHS]
        return [[(997 * row + 31 * column + 5) % vocabulary for column in range(n)] for row, n in enumerate(lengths)]

    def _written(self, policy: Policy) -> tuple[Tensor, Tensor]:
        """The engine's first token after each prompt, and its log-probability."""
        prompts = self._prompts(policy)
        written = self.engine.generate(prompts, list(range(len(prompts))), Sampling(1.0, 1, (0,), greedy=True))
        return written.response_ids_BT[:, 0], written.logp_BT[:, 0]

    @torch.no_grad()
    def _trainer(self, policy: Policy, base: bool = False) -> Tensor:
        """logp_KV of the token after each prompt, by the modules that train, or by the base under its adapter."""
        with policy.generating() as model, use_adapter(policy.backbone, None) if base else nullcontext():
            rows = [torch.tensor(ids, device=model.device) for ids in self._prompts(policy)]
            ids_KP = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # on the right, where no real token sees it
            last_K = torch.tensor([len(ids) - 1 for ids in rows], device=model.device)
            keep, column_K = torch.unique(last_K, return_inverse=True)
            inputs, before = inputs_of(policy.backbone, None if base else "default", ids_KP)
            some = "logits_to_keep" in inspect.signature(model.forward).parameters
            logits_KXV = model(**inputs, use_cache=False, **({"logits_to_keep": before + keep} if some else {})).logits
            logits_KV = logits_KXV[torch.arange(len(rows)), column_K if some else before + last_K]
        return torch.log_softmax(logits_KV.float(), dim=-1).cpu()

"""Rollouts by transformers, from the very weights that are trained: nothing to synchronise.

A row's tokens come from greedy decoding of its log-probabilities plus Gumbel noise drawn from the row's
own key. That samples the softmax exactly (Gumbel 1954; Maddison et al. 2014, arXiv 1411.0030), and a
row gets the same tokens alone and in any batch.

Shapes: B rows, P prompt, T response, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from align.errors import AlignError
from align.rollout.decode import can_decode, decode
from align.rollout.merged import merged
from align.types import Generation, Policy, Sampling, SyncReceipt


class HFRollout:
    """By transformers' own forward, or its `generate`; serves every model and every PEFT method."""

    name = "hf"

    def __init__(self, pad_id: int, batch_size: int = 64) -> None:
        self.pad_id = pad_id
        self.batch_size = batch_size
        self.policy: Policy | None = None

    @property
    def exact(self) -> bool:
        return self.policy.full_precision

    def attach(self, policy: Policy) -> SyncReceipt:
        self.policy = policy
        return self.sync(policy)

    def sync(self, policy: Policy) -> SyncReceipt:
        """Nothing moves: generation reads the trained weights themselves."""
        return SyncReceipt(policy.version, "generate", 0, 0.0, "")

    def generate(self, prompts: list[list[int]], keys: list[int], sampling: Sampling) -> Generation:
        """One response a prompt, `keys[i]` deciding row i's randomness; in the order given."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        parts: dict[int, tuple[Tensor, Tensor]] = {}
        for first in range(0, len(order), self.batch_size):
            rows = order[first : first + self.batch_size]
            ids_BT, logp_BT = self._batch([prompts[i] for i in rows], [keys[i] for i in rows], sampling)
            parts |= {row: (ids_BT[i], logp_BT[i]) for i, row in enumerate(rows)}
        responses = [parts[i] for i in range(len(prompts))]
        return to_generation(responses, sampling, self.pad_id, self.policy.version)

    def close(self) -> None:
        self.policy = None

    def _batch(self, prompts: list[list[int]], keys: list[int], sampling: Sampling) -> tuple[Tensor, Tensor]:
        with self.policy.generating() as model:
            ids_BP, mask_BP = pad_left(prompts, self.pad_id, model.device)
            sampler = KeyedSampler(keys, sampling, model.device)
            before = self.policy.opening(len(prompts))
            with merged(model, len(prompts)):
                if can_decode(model):
                    ids_BT, logp_BT = decode(model, ids_BP, mask_BP, sampler, sampling, before)
                elif before is None:
                    ids_BT, logp_BT = self._generate(model, ids_BP, mask_BP, sampler, sampling)
                else:
                    raise AlignError(
                        f"actor.peft: a {model.config.model_type} model prepares its inputs in its own way, which "
                        "knows no virtual tokens\n  use another method, such as peft@actor.peft=lora"
                    )
        return ids_BT.cpu(), logp_BT.cpu()

    def _generate(
        self, model: PreTrainedModel, ids_BP: Tensor, mask_BP: Tensor, sampler: KeyedSampler, sampling: Sampling
    ) -> tuple[Tensor, Tensor]:
        """The same by transformers' `generate`, for models that prepare their inputs in their own way."""
        config = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            eos_token_id=list(sampling.stop_ids),
            pad_token_id=self.pad_id,
            use_cache=True,
        )
        logp: list[Tensor] = []
        with _own_generation_config(model, config):
            out_BN = model.generate(
                input_ids=ids_BP,
                attention_mask=mask_BP.long(),
                logits_processor=LogitsProcessorList([_Drawn(sampler, logp)]),
            )
        return out_BN[:, ids_BP.shape[1] :], torch.stack(logp, dim=1)


class KeyedSampler:
    """Draws each row's token by the row's own Gumbel noise, with its log-probability."""

    def __init__(self, keys: list[int], sampling: Sampling, device: torch.device) -> None:
        self.generators = [torch.Generator().manual_seed(key) for key in keys]
        self.sampling = sampling
        self.device = device

    def draw(self, logits_BV: Tensor) -> tuple[Tensor, Tensor]:
        """chosen_B and logp_B, at the sampling temperature."""
        logp_BV = torch.log_softmax(logits_BV.float() / self.sampling.temperature, dim=-1)
        chosen_B = (logp_BV if self.sampling.greedy else logp_BV + self._gumbel(logp_BV.shape[-1])).argmax(-1)
        return chosen_B, logp_BV.gather(1, chosen_B[:, None]).squeeze(1)

    def keep(self, rows: list[int]) -> None:
        """Goes on with these rows alone."""
        self.generators = [self.generators[row] for row in rows]

    def _gumbel(self, size: int) -> Tensor:
        # -log(-log u) of 53 random bits: a third of the time of torch's `exponential_`, and finer than float32's
        uniform_BV = torch.empty(len(self.generators), size, dtype=torch.float64)
        for row_V, generator in zip(uniform_BV, self.generators, strict=True):
            row_V.uniform_(generator=generator)
        return uniform_BV.log_().neg_().float().log_().neg_().to(self.device)


class _Drawn(LogitsProcessor):
    """Leaves `generate`, which decodes greedily, the drawn token alone."""

    def __init__(self, sampler: KeyedSampler, logp: list[Tensor]) -> None:
        self.sampler, self.logp = sampler, logp

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen_B, logp_B = self.sampler.draw(scores)
        self.logp.append(logp_B)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen_B[:, None], 0.0)


class _own_generation_config:
    """Swaps a model's generation_config: `generate` fills what a config leaves open from the model's own."""

    def __init__(self, model: PreTrainedModel, config: GenerationConfig) -> None:
        self.model, self.config = model, config

    def __enter__(self) -> None:
        self.before, self.model.generation_config = self.model.generation_config, self.config

    def __exit__(self, *error: object) -> None:
        self.model.generation_config = self.before


def pad_left(rows: list[list[int]], pad_id: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """ids_BP padded on the left, and mask_BP."""
    width = max(len(row) for row in rows)
    ids = [[pad_id] * (width - len(row)) + row for row in rows]
    mask = [[False] * (width - len(row)) + [True] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, dtype=torch.bool, device=device)


def to_generation(responses: list[tuple[Tensor, Tensor]], sampling: Sampling, pad_id: int, version: int) -> Generation:
    """Responses of any length, each cut after its first stop token, as one padded Generation."""
    stop = torch.tensor(sampling.stop_ids)
    length_B, finished_B = [], []
    for ids_T, _ in responses:
        ends = torch.isin(ids_T, stop).nonzero()
        finished_B.append(len(ends) > 0)
        length_B.append(int(ends[0]) + 1 if len(ends) else len(ids_T))
    width = max([*length_B, 1])
    ids_BT = torch.full((len(responses), width), pad_id)
    logp_BT = torch.zeros(len(responses), width)
    for i, (ids_T, logp_T) in enumerate(responses):
        ids_BT[i, : length_B[i]] = ids_T[: length_B[i]]
        logp_BT[i, : length_B[i]] = logp_T[: length_B[i]]
    mask_BT = torch.arange(width)[None] < torch.tensor(length_B)[:, None]
    version_B = torch.full((len(responses),), version)
    return Generation(ids_BT, mask_BT, logp_BT, torch.tensor(finished_B), version_B)

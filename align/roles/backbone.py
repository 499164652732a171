"""A transformer under one role or several: each with an adapter and a head, all in one trunk pass.

Padding goes before the trunk; the heads run over the tokens of responses alone.

Shapes: B rows, P prompt, T response, N = P + T, L tokens of the longest row, V vocabulary, D hidden size, R real
response tokens, K reward models.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from align import ops
from align.engine.linear import matmul_of
from align.peft.adapters import routable, routed, use_adapter
from align.peft.prompts import inputs_of
from align.peft.stateful import extra_loss, hooks_of, on_step
from align.roles.modules import plain, read_score, to_left

ACTOR, REFERENCE, CRITIC, REWARD = "actor", "reference", "critic", "reward"


class Backbone(nn.Module):
    """One model; `adapters` says which of its adapters computes for a role (None: the plain model)."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        autocast: bool = False,
        adapters: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.autocast = autocast
        self.adapters = dict(adapters or {ACTOR: "default" if isinstance(model, PeftModel) else None})
        self.value_head: nn.Linear | None = None
        self.value_gradient = 1.0
        """Factor on the value's gradient that goes on into the trunk; 0 detaches."""
        self.score_heads = nn.ModuleDict()
        """Of the reward models that sit here, by role."""
        self.loraplus: dict[str, float] = {}
        """Factor on the rate of LoRA's B, as against the rest, by role."""
        self.plain_head = self._head_is_plain()
        self.steps: dict[str | None, int] = {}
        """Optimizer steps that each adapter has made."""

    def passes(self, roles: Iterable[str]) -> list[tuple[str, ...]]:
        """The roles of this backbone among `roles`, those together that one trunk pass serves.

        `reward` stands for every reward model that sits here.
        """
        wanted = set(roles) | (set(self.score_heads) if REWARD in roles else set())
        mine = [role for role in self.adapters if role in wanted]
        if not mine or (isinstance(self.model, PeftModel) and routable(self.model)):
            return [tuple(mine)] if mine else []
        by_adapter: dict[str | None, list[str]] = {}
        for role in mine:
            by_adapter.setdefault(self.adapters[role], []).append(role)
        return [tuple(together) for together in by_adapter.values()]

    @contextmanager
    def serving(self, roles: tuple[str, ...], rows: int) -> Iterator[None]:
        """The context of a pass of `rows` rows for `roles`; left only after its backward pass."""
        names = self._names(roles)
        if not isinstance(self.model, PeftModel):
            yield
        elif len(names) == 1:
            with use_adapter(self.model, names[0]):
                yield
        else:
            with routed(self.model, [name for name in names for _ in range(rows)]):
                yield

    def forward(
        self, ids_BN: Tensor, mask_BN: Tensor, length: int, temperature: float, roles: tuple[str, ...]
    ) -> dict[str, Tensor]:
        """Fields of Scores for each of `roles`, inside `serving(roles, B)`; `length` is T; 0 outside the mask."""
        names = self._names(roles)
        count = len(names)
        ids_BL, mask_BL = to_left(ids_BN, mask_BN)
        before_BT = (mask_BN.cumsum(1)[:, -length:] - 2).clamp(min=0)  # where, in L, each response token is foreseen
        response = _Response(ids_BN[:, -length:], mask_BN[:, -length:], before_BT)
        with torch.autocast(ids_BN.device.type, torch.bfloat16, enabled=self.autocast):
            hidden, logits = self._trunk(ids_BL.repeat(count, 1), response, names[0])
        hidden_BLD = dict(zip(names, hidden.chunk(count), strict=True))
        logits_BLV = dict(zip(names, logits.chunk(count), strict=True)) if logits is not None else {}
        found: dict[str, Tensor] = {}
        rewards = []
        for role in roles:
            name = self.adapters[role]
            if role in (ACTOR, REFERENCE):
                logp_BT, entropy_BT = self._logp(
                    hidden_BLD[name], logits_BLV.get(name), response, temperature, role == ACTOR
                )
                found |= {"logp_BT": logp_BT, "entropy_BT": entropy_BT} if role == ACTOR else {"ref_logp_BT": logp_BT}
            elif role == CRITIC:
                found["value_BT"] = self._value(hidden_BLD[name], response)
            else:
                rewards.append(read_score(self.score_heads[role], hidden_BLD[name], mask_BL))
        return found | ({"reward_BK": torch.stack(rewards, 1)} if rewards else {})

    def trained(self, role: str) -> list[nn.Parameter]:
        """Parameters that `role` trains: those of its adapter (or the whole model), for the critic also its head's."""
        head = list(self.value_head.parameters()) if role == CRITIC and self.value_head is not None else []
        if role == CRITIC and ACTOR in self.adapters and self.adapters[ACTOR] == self.adapters[CRITIC]:
            return head  # on the actor's own trunk
        others = set(getattr(self.model, "peft_config", ())) - {self.adapters[role]}
        body = [p for n, p in self.model.named_parameters() if p.requires_grad and not others & set(n.split("."))]
        return body + head

    def extra_loss(self, roles: Iterable[str]) -> Tensor | None:
        """Sum that the methods of the adapters of `roles` add to the loss of a step; None for none."""
        found = [extra_loss(self.model, name) for name in self._names(tuple(roles))]
        terms = [term for term in found if term is not None]
        return torch.stack(terms).sum() if terms else None

    def reads_gradients(self) -> bool:
        """Return True where `on_step` reads the gradients of the step."""
        return any(hooks_of(config).needs_gradients for config in getattr(self.model, "peft_config", {}).values())

    def on_step(self, roles: Iterable[str]) -> None:
        """After an optimizer step of `roles`, before their gradients are dropped."""
        for name in self._names(tuple(roles)):
            self.steps[name] = self.steps.get(name, 0) + 1
            on_step(self.model, name, self.steps[name])

    def _names(self, roles: tuple[str, ...]) -> list[str | None]:
        """The adapters that compute for `roles`, each once."""
        return list(dict.fromkeys(self.adapters[role] for role in roles))

    def _trunk(self, ids_BL: Tensor, response: _Response, name: str | None) -> tuple[Tensor, Tensor | None]:
        """hidden_BLD, and logits_BLV from `response.first` on where the model does more to them than its head."""
        model = plain(self.model)
        inputs, before = inputs_of(self.model, name, ids_BL)
        if self.plain_head:
            return model.base_model(**inputs, use_cache=False).last_hidden_state[:, before:], None
        caught: list[Tensor] = []
        hook = model.base_model.register_forward_hook(
            lambda module, args, output: caught.append(output.last_hidden_state)
        )
        try:
            logits = model(**inputs, use_cache=False, logits_to_keep=ids_BL.shape[1] - response.first).logits
        finally:
            hook.remove()
        return caught[0][:, before:], logits

    def _logp(
        self, hidden_BLD: Tensor, logits_BLV: Tensor | None, response: _Response, temperature: float, with_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probability and (of the actor, without gradient) entropy of each real response token."""
        hidden_RD, ids_R = response.before(hidden_BLD), response.ids_BT[response.mask_BT]
        head = plain(self.model).get_output_embeddings()
        if logits_BLV is None and not hasattr(head.weight, "ds_id"):  # ZeRO-3 gathers a weight for its module alone
            hidden_RD = hidden_RD.bfloat16() if self.autocast else hidden_RD
            logp_R, entropy_R = ops.head_logprobs(
                hidden_RD, head.weight, ids_R, temperature, head.bias, with_entropy, matmul=matmul_of(head)
            )
        else:
            with torch.autocast(hidden_RD.device.type, torch.bfloat16, enabled=self.autocast):
                logits_RV = head(hidden_RD) if logits_BLV is None else response.before(logits_BLV, response.first)
            logp_R = ops.logprobs(logits_RV[None], ids_R[None], temperature)[0]
            entropy_R = ops.entropy(logits_RV.detach()[None] / temperature)[0] if with_entropy else None
        return response.placed(logp_R), None if entropy_R is None else response.placed(entropy_R)

    def _value(self, hidden_BLD: Tensor, response: _Response) -> Tensor:
        """The return expected before each response token is written."""
        hidden_RD = scale_gradient(response.before(hidden_BLD), self.value_gradient)
        return response.placed(self.value_head(hidden_RD.float()).squeeze(-1))

    @torch.no_grad()
    def _head_is_plain(self) -> bool:
        """Return True where logits are the head's product alone; a try on two tokens, since some models change them."""
        head = plain(self.model).get_output_embeddings()
        if head is None or not {ACTOR, REFERENCE} & self.adapters.keys():
            return True  # nobody here asks for logits
        ids = torch.arange(2, device=self.model.device)[None]
        model = plain(self.model)
        hidden = model.base_model(ids, use_cache=False).last_hidden_state
        return isinstance(head, nn.Linear) and torch.allclose(
            head(hidden), model(ids, use_cache=False).logits, rtol=1e-3, atol=1e-3
        )


@dataclass
class _Response:
    """The tokens of responses, and where in a pass over L columns each is foreseen."""

    ids_BT: Tensor
    mask_BT: Tensor
    before_BT: Tensor

    @property
    def first(self) -> int:
        """The first column that a response is foreseen in."""
        return int(self.before_BT[self.mask_BT].min()) if self.mask_BT.any() else 0

    def before(self, x_BLD: Tensor, first: int = 0) -> Tensor:
        """x_RD: what stands before each real token of the responses, in columns from `first` on."""
        row_R = self.mask_BT.nonzero()[:, 0]
        return x_BLD[row_R, self.before_BT[self.mask_BT] - first]

    def placed(self, values_R: Tensor) -> Tensor:
        """values_BT: those of the real tokens at their places, 0 elsewhere."""
        zeros_BT = torch.zeros(self.mask_BT.shape, dtype=values_R.dtype, device=values_R.device)
        return zeros_BT.masked_scatter(self.mask_BT, values_R)


def scale_gradient(x: Tensor, scale: float) -> Tensor:
    """`x` itself, through which a gradient goes back `scale` times as large; 0 detaches."""
    if scale == 0 or not x.requires_grad:
        return x.detach()
    if scale == 1:
        return x
    x = x.view_as(x)
    x.register_hook(lambda gradient: gradient * scale)
    return x

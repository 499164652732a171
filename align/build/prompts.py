"""The longest prompt of the stages that let a policy write: `ppo.max_prompt_tokens` and its like.

auto: the positions of the model that `rollout.max_new_tokens` leaves, up to 512 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from align.build.plugs import peft
from align.errors import AlignError
from align.plan.plan import StagePlan
from align.plan.spec import AUTO, POLICY

USUAL = 512


def longest_prompt(stage: StagePlan, paths: list[str]) -> int:
    """The most tokens of a prompt that a stage takes, so that all policies that write there can.

    `paths` are the folders of these policies, as far as they are known. Raises AlignError where no prompt fits, or none
    as long as the setting.
    """
    key = stage.spec.name if hasattr(stage.options, "max_prompt_tokens") else "ppo"
    options = stage.options if key == stage.spec.name else stage.sections.options_of("ppo")
    limit, response = options.max_prompt_tokens, stage.sections.rollout.options.max_new_tokens
    found = [room(limit, response, *one, key=f"{key}.max_prompt_tokens") for one in writers(stage, paths)]
    return min(found, default=USUAL if limit == AUTO else limit)


def room(
    limit: int | str, max_new_tokens: int, model: dict[str, Any], place: str, virtual_tokens: int = 0,
    key: str = "ppo.max_prompt_tokens",
) -> int:  # fmt: skip
    """The most tokens of a prompt on one model: `limit`, or as the model has it.

    `model` is its config.json, `place` where it is from; `virtual_tokens` its method puts before each prompt. Raises
    AlignError where positions do not suffice; a model without any in its config.json has enough.
    """
    positions = model.get("max_position_embeddings", model.get("n_positions"))
    if not positions:
        return USUAL if limit == AUTO else limit
    left = positions - virtual_tokens - max_new_tokens
    if left > 0 and (limit == AUTO or limit <= left):
        return min(USUAL, left) if limit == AUTO else limit
    wanted = [f"{virtual_tokens} virtual tokens"] if virtual_tokens else []
    wanted += [] if limit == AUTO else [f"{key}={limit}"]
    wanted += [f"rollout.max_new_tokens={max_new_tokens}"]
    instead = f"{key}={left} or less, or {AUTO}" if left > 0 else f"rollout.max_new_tokens={positions // 2} or less"
    raise AlignError(
        f"{' and '.join(wanted)} {'leaves no prompt room in' if len(wanted) == 1 else 'exceed'} the {positions} "
        f"positions of {place}\n  use {instead}"
    )


def writers(stage: StagePlan, paths: list[str]) -> Iterator[tuple[dict[str, Any], str, int]]:
    """The policies that write in a stage: config.json, where it is from, and the virtual tokens before each prompt.

    Of a policy that is still to be made, those of the model that it descends from.
    """
    from align.roles.folder import CAUSAL, inspect

    trains = stage.spec.makes == POLICY
    virtual = None
    if trains:
        virtual = getattr(peft(stage.sections.actor.options.peft), "num_virtual_tokens", 0)
    policies = [one for one in stage.inputs if one.makes == POLICY and one.name != "reference"]
    keys = {one.path: one.key for one in policies if one.path}
    keys |= {one.real: one.key for one in policies if one.real}
    if not paths:
        origin = next((one.origin for one in policies if one.origin), None)
        if origin is not None and origin.path is None:
            yield dict(origin.shape), f"{origin.key} (pretrain.max_positions)", virtual or 0
        paths = [origin.path] if origin is not None and origin.path is not None else []
        keys = {origin.path: origin.key} if paths else {}
    for path in paths:
        key = keys.get(path, "actor.path")
        folder = inspect(path, key, CAUSAL)
        yield folder.config(), f"{path} ({key})", folder.virtual_tokens() if virtual is None else virtual

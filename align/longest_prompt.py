"""How long a prompt may be, in the stages that let a policy write: `ppo.max_prompt_tokens` and its like.

By itself, what the model's positions leave beside `rollout.max_new_tokens`, up to 512 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from align.checks import absent
from align.errors import AlignError
from align.nodes import peft

if TYPE_CHECKING:
    from align.build import Build

AUTO = "auto"
USUAL = 512


def longest_prompt(build: Build, stage: str, paths: list[str]) -> int:
    """The most tokens of a prompt that `stage` (ppo, preferences or evaluate) takes, so that all who write there can.

    `paths` are the folders of these policies, as far as they are known. Raises AlignError where no prompt fits, or none
    as long as asked.
    """
    key = "preferences" if stage == "preferences" else "ppo"
    asked, response = build.cfg[key].max_prompt_tokens, build.cfg.rollout.max_new_tokens
    found = [room(asked, response, *one, key=f"{key}.max_prompt_tokens") for one in writers(build, stage, paths)]
    return min(found, default=USUAL if asked == AUTO else asked)


def room(
    asked: int | str, max_new_tokens: int, model: dict[str, Any], place: str, virtual_tokens: int = 0,
    key: str = "ppo.max_prompt_tokens",
) -> int:  # fmt: skip
    """The most tokens of a prompt on one model: as `asked`, or by itself.

    `model` is its config.json, `place` where it is from; `virtual_tokens` its method puts before each prompt. Raises
    AlignError where positions do not suffice; a model that tells of none has enough.
    """
    positions = model.get("max_position_embeddings", model.get("n_positions"))
    if not positions:
        return USUAL if asked == AUTO else asked
    left = positions - virtual_tokens - max_new_tokens
    if left > 0 and (asked == AUTO or asked <= left):
        return min(USUAL, left) if asked == AUTO else asked
    wanted = [f"{virtual_tokens} virtual tokens"] if virtual_tokens else []
    wanted += [] if asked == AUTO else [f"{key}={asked}"]
    wanted += [f"rollout.max_new_tokens={max_new_tokens}"]
    instead = f"{key}={left} or less, or {AUTO}" if left > 0 else f"rollout.max_new_tokens={positions // 2} or less"
    raise AlignError(
        f"{' and '.join(wanted)} {'leaves no prompt room in' if len(wanted) == 1 else 'exceed'} the {positions} "
        f"positions of {place}\n  write {instead}"
    )


def writers(build: Build, stage: str, paths: list[str]) -> Iterator[tuple[dict[str, Any], str, int]]:
    """Who writes in a stage: config.json, where it is from, and the virtual tokens before each prompt.

    Of a policy that is still to be made, those of what it starts from.
    """
    from align.roles.folder import CAUSAL, inspect

    key = "preferences.policies" if stage == "preferences" else "actor.path"
    if not paths:
        start, node = first_start(build, {}, "actor", "sft")
        paths, key = ([start], f"{node}.path") if start is not None else ([], key)
    virtual = getattr(peft(build.cfg.actor.peft, "actor.peft"), "num_virtual_tokens", 0) if stage == "ppo" else None
    for path in paths:
        folder = inspect(path, key, CAUSAL)
        yield folder.config(), f"{path} ({key})", folder.virtual_tokens() if virtual is None else virtual
    if not paths and "pretrain" in build.stages:
        made = {"max_position_embeddings": build.cfg.pretrain.max_positions}
        yield made, "the model that pretrain makes (pretrain.max_positions)", virtual or 0


def first_start(build: Build, inputs: dict[str, str], role: str, stage: str) -> tuple[str | None, str]:
    """Where a role starts from and the node that says so; for one still to be made, where its stage starts."""
    if role in inputs:
        return inputs[role], role
    used = not absent(build.cfg[role]) and (role != "reward" or build.sources().learned_reward)
    if used and stage in build.stages:
        return build.sources().inputs(stage, {}).get("path"), stage
    return None, role

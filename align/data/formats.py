"""What the rows of a file mean: columns by format, checked and turned into what a stage wants.

| format | columns | serves |
| --- | --- | --- |
| text | text | pretrain, sft |
| prompts | prompt (string or messages), any others | ppo |
| prompt_completion | prompt, completion (strings) | pretrain, sft, ppo |
| conversational | messages, or prompt and completion as messages | sft, ppo |
| preferences | chosen, rejected, mostly prompt (all strings or all messages), sometimes margin | sft, rm, ppo |
| dialogues | chosen, rejected: `\\n\\nHuman: … \\n\\nAssistant: …`, alike but for the last answer | sft, rm, ppo |
"""

from __future__ import annotations

import json
import os.path
from collections.abc import Callable
from dataclasses import dataclass

from align.data.columns import Columns
from align.data.reading import Placed
from align.data.source import PURPOSES
from align.errors import AlignError

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

UNFORWARDED = ("prompt", "completion", "completion_ids")
"""Columns that TRL's trainers do not hand to reward functions as columns (trl 1.16, trainer/grpo_trainer.py)."""

REWARD_KEYWORDS = ("prompts", "completions", "trainer_state", "log_extra", "log_metric")
"""Keywords of a TRL reward function that a column of the same name would collide with."""


@dataclass
class Meant:
    """A row as a stage wants it, and the text that tells whether two rows are about the same prompt."""

    row: dict
    identity: str


def understand(rows: list[Placed], format: str, purpose: str) -> list[Meant]:
    """Every row as `purpose` wants it. Raises AlignError, naming the row, for what does not fit."""
    convert = _conversion(format, purpose)
    meant = [convert(Columns(place, row, format, purpose)) for place, row in rows]
    first = shape(meant[0], purpose)
    for (place, _), one in zip(rows, meant, strict=True):
        if shape(one, purpose) != first:
            raise AlignError(
                f"{place} gives {shape(one, purpose)} where {rows[0][0]} gives {first}: write all rows alike"
            )
    return meant


def shape(meant: Meant, purpose: str) -> str:
    """What all rows of one data set must have in common, in words."""
    # For ppo the other columns are anybody's, and rows may lack some.
    columns = ["prompt"] if purpose == "ppo" else sorted(meant.row)
    content = meant.row.get("prompt", meant.row.get("chosen"))
    kind = " as messages" if isinstance(content, list) else ""
    return " ".join(columns) + kind


def _conversion(format: str, purpose: str) -> Callable[[Columns], Meant]:
    assert purpose in PURPOSES, purpose
    if purpose in FORMATS.get(format, {}):
        return FORMATS[format][purpose]
    serving = ", ".join(name for name, purposes in FORMATS.items() if purpose in purposes)
    problem = f"does not serve {purpose}" if format in FORMATS else "is no format"
    raise AlignError(f"{purpose}.data.format={format} {problem}: write one of {serving}")


def _text(columns: Columns) -> Meant:
    text = columns.text("text")
    return Meant({"text": text}, text)


def _prompts(columns: Columns) -> Meant:
    return _for_ppo(columns, columns.text_or_messages("prompt"))


def _joined(columns: Columns) -> Meant:
    prompt = columns.text("prompt")
    return Meant({"text": prompt + columns.text("completion")}, prompt)


def _prompt_completion(columns: Columns) -> Meant:
    prompt = columns.text("prompt")
    return Meant({"prompt": prompt, "completion": columns.text("completion")}, prompt)


def _prompt_of_completion(columns: Columns) -> Meant:
    return _for_ppo(columns, columns.text("prompt"))


def _conversation(columns: Columns) -> Meant:
    if columns.has("messages"):
        messages = columns.messages("messages")
        return Meant({"messages": messages}, _identity(_before_the_answer(messages)))
    prompt = columns.messages("prompt", instead="messages")
    return Meant({"prompt": prompt, "completion": columns.messages("completion")}, _identity(prompt))


def _prompt_of_conversation(columns: Columns) -> Meant:
    if not columns.has("messages"):
        return _for_ppo(columns, columns.messages("prompt", instead="messages"))
    prompt = _before_the_answer(columns.messages("messages"))
    if not prompt:
        raise columns.error("holds an answer and nothing that it answers", "messages that begin with a question")
    return _for_ppo(columns, prompt)


def _preference(columns: Columns) -> Meant:
    prompt, chosen, rejected = _pair(columns)
    row = {"chosen": chosen, "rejected": rejected}
    if prompt is not None:
        row = {"prompt": prompt, **row}
    if columns.has("margin"):
        row["margin"] = columns.number("margin")
    if prompt is None:
        prompt = chosen if isinstance(chosen, str) else (chosen[:-1] or chosen)
    return Meant(row, _identity(prompt))


def _preferred(columns: Columns) -> Meant:
    prompt, chosen, _ = _pair(columns)
    if prompt is None:
        prompt, chosen = _implicit_prompt(columns, chosen), chosen[-1:]
    return Meant({"prompt": prompt, "completion": chosen}, _identity(prompt))


def _prompt_of_preference(columns: Columns) -> Meant:
    prompt, chosen, _ = _pair(columns)
    return _for_ppo(columns, _implicit_prompt(columns, chosen) if prompt is None else prompt)


def _pair(columns: Columns) -> tuple[str | list | None, str | list, str | list]:
    chosen, rejected = columns.text_or_messages("chosen"), columns.text_or_messages("rejected")
    prompt = columns.text_or_messages("prompt") if columns.has("prompt") else None
    if type(chosen) is not type(rejected) or (prompt is not None and type(prompt) is not type(chosen)):
        raise columns.error(
            "mixes strings and lists of messages",
            "prompt, chosen and rejected all as strings or all as messages (no prompt, if chosen and rejected "
            "begin with it)",
        )
    return prompt, chosen, rejected


def _implicit_prompt(columns: Columns, chosen: str | list) -> list:
    if isinstance(chosen, str):
        raise columns.error(
            "has no prompt, and where it ends cannot be told from the strings chosen and rejected",
            f"a column prompt, or {columns.purpose}.data.format=dialogues for turns after {HUMAN!r} and {ASSISTANT!r}",
        )
    if len(chosen) < 2 or chosen[-1]["role"] != "assistant":
        raise columns.error(
            "has no prompt, and chosen is not a conversation that ends with an answer",
            "a column prompt, or chosen as messages with an assistant's message last",
        )
    return chosen[:-1]


def _dialogue(columns: Columns) -> Meant:
    prompt, chosen, rejected = split_dialogue(columns)
    return Meant({"prompt": prompt, "chosen": chosen, "rejected": rejected}, prompt)


def _dialogue_preferred(columns: Columns) -> Meant:
    prompt, chosen, _ = split_dialogue(columns)
    return Meant({"prompt": prompt, "completion": chosen}, prompt)


def _prompt_of_dialogue(columns: Columns) -> Meant:
    return _for_ppo(columns, split_dialogue(columns)[0])


def split_dialogue(columns: Columns) -> tuple[str, str, str]:
    r"""Prompt and both answers of a pair of dialogues; prompt + answer is the dialogue, character for character.

    The prompt ends with the last `\n\nAssistant:` that both share. In most pairs that is the last of all;
    in hh-rlhf 2 pairs in 1,000 have an answer that goes on for more turns.
    """
    chosen, rejected = columns.text("chosen"), columns.text("rejected")
    shared = os.path.commonprefix([chosen, rejected])  # noqa: RUF071, character by character is what is wanted
    end = shared.rfind(ASSISTANT) + len(ASSISTANT)
    if ASSISTANT not in shared or HUMAN not in shared[:end]:
        raise columns.error(
            "is no pair of dialogues that part in the last answer",
            f"chosen and rejected with the same turns after {HUMAN!r} and {ASSISTANT!r}, or "
            f"{columns.purpose}.data.format=preferences",
        )
    return shared[:end], chosen[end:], rejected[end:]


def _for_ppo(columns: Columns, prompt: str | list) -> Meant:
    """The prompt with all other columns of the row, as they are: reward functions are handed them."""
    taken = [name for name in columns.row if name in REWARD_KEYWORDS]
    if taken:
        raise columns.error(
            f"has the column {taken[0]!r}, which is a keyword of every reward function", "another name for it"
        )
    others = {name: value for name, value in columns.row.items() if name not in UNFORWARDED}
    return Meant({"prompt": prompt, **others}, _identity(prompt))


def _before_the_answer(messages: list[dict]) -> list[dict]:
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _identity(prompt: str | list[dict]) -> str:
    if isinstance(prompt, str):
        return prompt
    return json.dumps([[message["role"], message["content"]] for message in prompt], ensure_ascii=False)


FORMATS: dict[str, dict[str, Callable[[Columns], Meant]]] = {
    "text": {"pretrain": _text, "sft": _text},
    "prompts": {"ppo": _prompts},
    "prompt_completion": {"pretrain": _joined, "sft": _prompt_completion, "ppo": _prompt_of_completion},
    "conversational": {"sft": _conversation, "ppo": _prompt_of_conversation},
    "preferences": {"sft": _preferred, "rm": _preference, "ppo": _prompt_of_preference},
    "dialogues": {"sft": _dialogue_preferred, "rm": _dialogue, "ppo": _prompt_of_dialogue},
}

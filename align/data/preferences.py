"""What rows of two or more answers mean: pairs, dialogues, rankings, and answers marked good or bad."""

from __future__ import annotations

import dataclasses
import os.path

from align.data.columns import Columns
from align.data.graded import best_and_worst, ranked
from align.data.meant import Meant, for_ppo, identity, prompt_alone

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def _preference(columns: Columns) -> Meant:
    prompt, chosen, rejected = _pair(columns)
    row = {"chosen": chosen, "rejected": rejected}
    if prompt is not None:
        row = {"prompt": prompt, **row}
    if columns.has("margin"):
        row["margin"] = columns.number("margin")
    if columns.has("share"):
        row["share"] = _share(columns)
    if prompt is None:
        prompt = chosen if isinstance(chosen, str) else (chosen[:-1] or chosen)
    return Meant(row, identity(prompt))


def _share(columns: Columns) -> float:
    """The share of people who preferred the chosen answer."""
    share = columns.number("share")
    if not 0 <= share <= 1:
        raise columns.error(f"has {share:g} in 'share'", "the share of people who preferred chosen, from 0 to 1")
    if columns.has("margin"):
        raise columns.error("says twice how clear its preference is (margin and share)", "one of the two")
    return share


def _preferred(columns: Columns) -> Meant:
    prompt, chosen, _ = _explicit_pair(columns)
    return Meant({"prompt": prompt, "completion": chosen}, identity(prompt))


def _preference_of_a_prompt(columns: Columns) -> Meant:
    return _paired(*_explicit_pair(columns))


def _marked_pair(columns: Columns) -> list[Meant]:
    return _marked(*_explicit_pair(columns))


def _explicit_pair(columns: Columns) -> tuple[str | list, str | list, str | list]:
    """Prompt, chosen and rejected, the prompt taken from conversations that begin with it."""
    prompt, chosen, rejected = _pair(columns)
    if prompt is None:
        prompt = _implicit_prompt(columns, chosen)
        if rejected[:-1] != prompt:
            raise columns.error(
                "has no prompt, and chosen and rejected part before the last message", "a column prompt"
            )
        chosen, rejected = chosen[-1:], rejected[-1:]
    return prompt, chosen, rejected


def _paired(prompt: str | list, chosen: str | list, rejected: str | list) -> Meant:
    return Meant({"prompt": prompt, "chosen": chosen, "rejected": rejected}, identity(prompt))


def _marked(prompt: str | list, good: str | list, bad: str | list) -> list[Meant]:
    """The two sides of a pair on their own, for kto."""
    sides = ((good, True), (bad, False))
    return [Meant({"prompt": prompt, "completion": c, "label": label}, identity(prompt)) for c, label in sides]


def _unpaired(columns: Columns) -> Meant:
    prompt, completion = columns.text_or_messages("prompt"), columns.text_or_messages("completion")
    row = {"prompt": prompt, "completion": completion, "label": columns.label("label")}
    return Meant(row, identity(prompt))


def _best(columns: Columns) -> list[Meant]:
    prompt, completions, ranks = ranked(columns)
    best = completions[ranks.index(min(ranks))]
    return [Meant({"prompt": prompt, "completion": best}, identity(prompt))]


def _best_against_worst(columns: Columns) -> list[Meant]:
    found = best_and_worst(columns)
    return [_paired(*found)] if found else []


def _ranking(columns: Columns) -> list[Meant]:
    """The whole of it, with the rank of each answer, 0 the best; nothing where all tie."""
    prompt, completions, ranks = ranked(columns)
    if len(set(ranks)) == 1:
        return []
    return [Meant({"prompt": prompt, "completions": completions, "ranks": ranks}, identity(prompt))]


def _rating(columns: Columns) -> Meant:
    prompt, completion = columns.text_or_messages("prompt"), columns.text_or_messages("completion")
    if type(prompt) is not type(completion):
        raise columns.error("mixes strings and lists of messages", "prompt and completion in one way")
    return Meant({"prompt": prompt, "completion": completion, "rating": columns.number("rating")}, identity(prompt))


def _marked_best_and_worst(columns: Columns) -> list[Meant]:
    found = best_and_worst(columns)
    return _marked(*found) if found else []


def _prompt_of_preference(columns: Columns) -> Meant:
    prompt, chosen, _ = _pair(columns)
    return for_ppo(columns, _implicit_prompt(columns, chosen) if prompt is None else prompt)


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
            f"a column prompt, or data@{columns.purpose}.data=dialogues for turns after {HUMAN!r} and {ASSISTANT!r}",
        )
    if len(chosen) < 2 or chosen[-1]["role"] != "assistant":
        raise columns.error(
            "has no prompt, and chosen is not a conversation that ends with an answer",
            "a column prompt, or chosen as messages with an assistant's message last",
        )
    return chosen[:-1]


def _prompt_of_ranking(columns: Columns) -> Meant:
    others = {name: value for name, value in columns.row.items() if name != "completions"}
    return prompt_alone(dataclasses.replace(columns, row=others))


def _dialogue(columns: Columns) -> Meant:
    prompt, chosen, rejected = split_dialogue(columns)
    return Meant({"prompt": prompt, "chosen": chosen, "rejected": rejected}, prompt)


def _dialogue_preferred(columns: Columns) -> Meant:
    prompt, chosen, _ = split_dialogue(columns)
    return Meant({"prompt": prompt, "completion": chosen}, prompt)


def _marked_dialogue(columns: Columns) -> list[Meant]:
    return _marked(*split_dialogue(columns))


def _prompt_of_dialogue(columns: Columns) -> Meant:
    return for_ppo(columns, split_dialogue(columns)[0])


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
            f"data@{columns.purpose}.data=preferences",
        )
    return shared[:end], chosen[end:], rejected[end:]


PREFERENCES = {
    "sft": _preferred, "rm": _preference, "dpo": _preference_of_a_prompt, "kto": _marked_pair,
    "ppo": _prompt_of_preference,
}  # fmt: skip
DIALOGUES = {
    "sft": _dialogue_preferred, "rm": _dialogue, "dpo": _dialogue, "kto": _marked_dialogue,
    "ppo": _prompt_of_dialogue,
}  # fmt: skip
RANKINGS = {
    "sft": _best, "rm": _ranking, "dpo": _best_against_worst, "kto": _marked_best_and_worst,
    "ppo": _prompt_of_ranking,
}  # fmt: skip
RATINGS = {"rm": _rating, "ppo": prompt_alone}
UNPAIRED = {"kto": _unpaired, "ppo": prompt_alone}

"""Rows as token ids, and the rows that fit, counted as TRL counts them: nothing is dropped without a message.

A `key` is the stage's name in the configuration (`ppo`), which errors put before `max_length` and the like.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from align.data.formats import check_preferring
from align.data.tally import (
    ALIKE,
    APART,
    CUT,
    EMPTY,
    JOINED,
    NO_ROOM,
    OTHERWISE,
    SPECIAL,
    TOO_LONG,
    Tally,
)
from align.errors import AlignError

Prompt = str | list[dict]


def prompt_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, place: str = "") -> list[int]:
    """The ids that a response is sampled after: with the tokenizer's BOS if it has one, never its EOS.

    Messages go through the chat template with the generation prompt. Raises AlignError if there is none, or if it
    refuses them; its message ends with `place`.
    """
    if isinstance(prompt, str):
        return _without_added_eos(prompt, _ids([prompt], tokenizer)[0], tokenizer)
    return _messages_ids(prompt, tokenizer, place, add_generation_prompt=True)


def completion_as(prompt: Prompt, text: str) -> Prompt:
    """A completion in the form of its prompt, as TRL's reward functions expect it."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def text_of(completion: Prompt) -> str:
    """Text of a completion that `completion_as` put into the form of its prompt."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


ROWS = {False: "rows", True: "held-out rows"}


def fitting_prompts(
    rows: list[dict], tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int, key: str, held_out: bool = False
) -> tuple[list[tuple[int, dict, list[int]]], Tally]:
    """Rows whose prompt fits, with index in `rows` and ids, and the count of the others.

    Raises AlignError if none fits (none need if they are held out), or if a prompt has no token at all to sample after.
    """
    encoded = [
        (index, row, prompt_ids(row["prompt"], tokenizer, _place("row", index))) for index, row in enumerate(rows)
    ]
    for index, _, ids in encoded:
        if not ids:
            raise AlignError(
                f"{key}.data: the prompt of row {index + 1} of those loaded is empty and the tokenizer adds no "
                "token to begin with: leave such rows out"
            )
    found = [one for one in encoded if len(one[2]) <= max_prompt_tokens]
    lengths = [len(ids) for _, _, ids in encoded]
    if rows and not found and not held_out:
        raise AlignError(
            f"{key}.max_prompt_tokens={max_prompt_tokens}: {_none_left(rows, 'prompt')}, all longer "
            f"({_extent(lengths)}): use a larger {key}.max_prompt_tokens, a smaller "
            f"rollout.max_new_tokens where the model has no room for both, or shorter prompts in {key}.data.path"
        )
    limit = f"{key}.max_prompt_tokens={max_prompt_tokens}"
    tally = _tally(lengths, (TOO_LONG,), limit, key, "held-out prompts" if held_out else "prompts")
    tally.left_out[TOO_LONG] = len(rows) - len(found)
    for _, row, _ in found:
        _note_special(row, tokenizer, tally)
    return found, tally


@dataclass
class Sequence:
    """Ids of a prompt and its completion, where the completion begins, and how they differ from a rollout's."""

    ids: list[int]
    start: int
    differs: str = ""
    """'', or a reason of align.data.tally: apart, joined, otherwise."""
    example: str = ""


def sequences(rows: list[dict], side: str, tokenizer: PreTrainedTokenizerBase, noun: str = "") -> list[Sequence]:
    """The ids of each row's prompt and completion, EOS and all, as TRL's trainers put them together.

    `side` is the column of the completion, or of the whole: completion, chosen, rejected, messages, text. Where TRL's
    have a token of the prompt's end and the completion's beginning, the two are encoded apart: a rollout goes on after
    the prompt's own tokens.
    """
    wholes = _ids([_whole(row, side, tokenizer) for row in rows], tokenizer, noun)
    prompts = [_prompt_of(row, side) for row in rows]
    if rows and isinstance(rows[0][side], str):
        begun = [
            _without_added_eos(one, ids, tokenizer) for one, ids in zip(prompts, _ids(prompts, tokenizer), strict=True)
        ]
    else:
        begun = [
            [] if not one else prompt_ids(one, tokenizer, _place(noun, number)) for number, one in enumerate(prompts)
        ]
    return [
        _sequence(row, side, prompt, whole, tokenizer) for row, prompt, whole in zip(rows, begun, wholes, strict=True)
    ]


def _prompt_of(row: dict, side: str) -> Prompt:
    """The prompt before a completion; of whole messages those before the last, the assistant's; '' for a text alone."""
    if "prompt" in row:
        return row["prompt"]
    whole = row[side]
    return whole[:-1] if not isinstance(whole, str) and whole[-1]["role"] == "assistant" else ""


def _sequence(
    row: dict, side: str, prompt: list[int], whole: list[int], tokenizer: PreTrainedTokenizerBase
) -> Sequence:
    start = shared_length(prompt, whole)
    if start == len(prompt):
        return Sequence(whole, start)
    if not isinstance(row[side], str):
        return Sequence(whole, start, OTHERWISE, repr(tokenizer.decode(prompt[start:]))[:60])
    example = repr(tokenizer.decode(whole[start : start + 1]))
    begin = prompt_ids("", tokenizer)
    alone = _ids([_ended(row[side], tokenizer)], tokenizer)[0]
    apart = prompt + (alone[len(begin) :] if alone[: len(begin)] == begin else alone)
    if tokenizer.decode(apart) == tokenizer.decode(whole):
        return Sequence(apart, len(prompt), APART, example)
    return Sequence(whole, start, JOINED, example)  # a tokenizer that puts a space before every text


def whole_ids(rows: list[dict], side: str, tokenizer: PreTrainedTokenizerBase, noun: str = "") -> list[list[int]]:
    """The ids of `sequences`."""
    return [one.ids for one in sequences(rows, side, tokenizer, noun)]


REMEDIES = {
    TOO_LONG: "longer than {key}.max_length={max_length} ({extent}: use a larger {key}.max_length)",
    ALIKE: "with completions alike (use completions that differ in {key}.data.path)",
    EMPTY: "with an empty completion (use rows without one in {key}.data.path)",
}
BY_IDS = ("rm", "sft", "best_of")
"""Stages whose trainer takes ids; the others' encodes texts itself."""


def fitting(
    rows: list[dict], found: list[list[Sequence]], max_length: int | None, key: str, noun: str,
    reasons: tuple[str, ...], tokenizer: PreTrainedTokenizerBase, held_out: bool = False,
) -> tuple[list[int], Tally]:  # fmt: skip
    """Places of the rows that are learned from, and how many were left out by the first of `reasons` that holds.

    `found` holds the sequences of each row, one a completion. Too long is a row with one of more than `max_length`
    tokens, EOS included; alike one that has the same sequence twice; empty one with an empty `chosen` or `rejected`.
    Raises AlignError if none is left of rows that are not held out.
    """
    lengths = [max(len(one.ids) for one in own) for own in found]
    holds = {
        ALIKE: lambda i: len({tuple(one.ids) for one in found[i]}) < len(found[i]),
        EMPTY: lambda i: _is_empty(rows[i]["chosen"]) or _is_empty(rows[i]["rejected"]),
        TOO_LONG: lambda i: max_length is not None and lengths[i] > max_length,
    }
    tally = _tally(lengths, reasons, f"{key}.max_length={max_length}", key, ROWS[held_out])
    places = []
    for i in range(len(rows)):
        if why := next((reason for reason in reasons if holds[reason](i)), None):
            tally.left_out[why] += 1
        else:
            places.append(i)
            _note(rows[i], found[i], tokenizer, tally)
    if rows and not places and not held_out:
        given = {"key": key, "max_length": max_length, "extent": _extent(lengths)}
        words = [f"{count} {REMEDIES[why].format(**given)}" for why, count in tally.left_out.items() if count]
        raise AlignError(f"{key}.data: {_none_left(rows, noun)}: {'; '.join(words)}")
    return places, tally


def _tally(lengths: list[int], reasons: tuple[str, ...], limit: str, key: str, noun: str) -> Tally:
    """The count of rows of these lengths, none of them left out yet."""
    longest = max(lengths, default=0)
    row = lengths.index(longest) + 1 if lengths else 0
    return Tally(len(lengths), dict.fromkeys(reasons, 0), {}, key, limit, longest, row, noun=noun)


def _note(row: dict, found: list[Sequence], tokenizer: PreTrainedTokenizerBase, tally: Tally) -> None:
    """Count a row that stays where its ids differ from a rollout's, or from its text."""
    if one := next((one for one in found if one.differs), None):
        known = one.differs != APART or tally.key in BY_IDS
        tally.note(one.differs if known else JOINED, one.example)
    _note_special(row, tokenizer, tally)


def fitting_pairs(
    rows: list[dict], tokenizer: PreTrainedTokenizerBase, max_length: int | None, key: str, held_out: bool = False
) -> tuple[list[dict], Tally]:
    """Pairs to train a reward model on, or held-out ones, and how many were left out: `too_long`, `alike`, `empty`.

    TRL's RewardTrainer would drop those that are too long, too. Where prompt and completion are encoded apart, each
    pair of `rm` has `chosen_ids` and `rejected_ids`, which that trainer takes. Raises AlignError if none is left of
    rows that are not held out.
    """
    sides = [sequences(rows, side, tokenizer, "pair") for side in ("chosen", "rejected")]
    found = [list(both) for both in zip(*sides, strict=True)]
    places, tally = fitting(rows, found, max_length, key, "pair", (ALIKE, EMPTY, TOO_LONG), tokenizer, held_out)
    if APART in tally.changed:
        ids = [{"chosen_ids": chosen.ids, "rejected_ids": rejected.ids} for chosen, rejected in found]
        return [rows[i] | ids[i] for i in places], tally
    return [rows[i] for i in places], tally


def fitting_marked(
    rows: list[dict], tokenizer: PreTrainedTokenizerBase, max_length: int | None, key: str, held_out: bool = False
) -> tuple[list[dict], Tally]:
    """Rows of kto, and how many were left out as `too_long`: with more than `max_length` tokens, EOS included.

    Raises AlignError if none is left to train on, or if all that are left have one label.
    """
    found = [[one] for one in sequences(rows, "completion", tokenizer, "row")]
    places, tally = fitting(rows, found, max_length, key, "completion", (TOO_LONG,), tokenizer, held_out)
    kept = [rows[i] for i in places]
    if not held_out:
        check_preferring(kept, key)
    return kept, tally


def check_dialogues(rows: list[dict], tokenizer: PreTrainedTokenizerBase, key: str) -> None:
    """Raise AlignError for rows of messages that the chat template refuses; strings need none."""
    for number, row in enumerate(rows):
        for messages in _dialogues(row):
            _templated(messages, tokenizer, f"{_place('row', number)} for {key}", tokenize=False)


def _dialogues(row: dict) -> list[list[dict]]:
    """Whole dialogues of a row, of messages; a prompt alone where it has no completion."""
    prompt = row.get("prompt", [])
    completions = [row[side] for side in ("messages", "completion", "chosen", "rejected") if side in row]
    completions += row.get("completions", [])
    if any(isinstance(one, str) for one in (prompt, *completions)):
        return []
    return [prompt + one for one in completions] or [prompt]


def fitting_examples(
    rows: list[dict], tokenizer: PreTrainedTokenizerBase, max_length: int | None, key: str, *, held_out: bool = False,
    too_long: str = "cut", learned: Callable[[dict], list[int]] | None = None,
) -> tuple[list[dict], Tally]:  # fmt: skip
    """Rows that SFT learns from, with the count of those left out and of those cut.

    TRL's SFTTrainer keeps the first `max_length` tokens of a row and drops it where none of them is learned: `learned`
    is 1 for each token of a row that is, by default those of the completion, which begins where the ids of prompt and
    prompt + completion part (trl 1.16, `SFTTrainer._prepare_dataset`); with too_long=leave_out longer rows are left
    out. Where prompt and completion are encoded apart, each row has `input_ids` and `completion_mask`, which that
    trainer takes. Raises AlignError if none is left of rows that are not held out, and for messages that the chat
    template refuses.
    """
    side = next((name for name in ("messages", "text") if rows and name in rows[0]), "completion")
    found, longest = sequences(rows, side, tokenizer, "row"), math.inf if max_length is None else max_length
    starts = [one.start if side == "completion" else 0 for one in found]
    if learned:
        masks = [[0] * start + learned(row)[start:] for row, start in zip(rows, starts, strict=True)]
        starts = [mask.index(1) if 1 in mask else len(mask) for mask in masks]
    lengths = [len(one.ids) for one in found]
    tally = _tally(lengths, (NO_ROOM, TOO_LONG), f"{key}.max_length={max_length}", key, ROWS[held_out])
    kept = []
    for row, one, start in zip(rows, found, starts, strict=True):
        if len(one.ids) > longest and too_long == "leave_out":
            tally.left_out[TOO_LONG] += 1
        elif start >= min(longest, len(one.ids)):
            tally.left_out[NO_ROOM] += 1
        else:
            kept.append((row, one))
            _note(row, [one], tokenizer, tally)
            if len(one.ids) > longest:
                tally.note(CUT)
    if rows and not kept and not held_out:
        why = "since all are longer" if tally.left_out[TOO_LONG] else "since the prompts fill it"
        extent = _extent(lengths if tally.left_out[TOO_LONG] else starts)
        raise AlignError(
            f"{key}.max_length={max_length}: {_none_left(rows, 'example')}, {why} ({extent}): use a larger "
            f"{key}.max_length, or shorter prompts in {key}.data.path"
        )
    if APART not in tally.changed:
        return [row for row, _ in kept], tally
    return [row | {"input_ids": one.ids, "completion_mask": _mask(one)} for row, one in kept], tally


def _mask(one: Sequence) -> list[int]:
    return [0] * one.start + [1] * (len(one.ids) - one.start)


def _note_special(row: dict, tokenizer: PreTrainedTokenizerBase, tally: Tally) -> None:
    """Count a row with the text of a special token in it.

    In messages of any, since the chat template writes those that belong there; in strings of BOS, EOS, pad and unknown
    alone, but for a BOS at the beginning and an EOS at the end: marks of turns are a string's own.
    """
    for side in ("prompt", "completion", "chosen", "rejected", "messages", "text"):
        content = row.get(side, "")
        if isinstance(content, str):
            named = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
            texts = [content.removeprefix(tokenizer.bos_token or "").removesuffix(tokenizer.eos_token or "")]
        else:
            named, texts = tokenizer.all_special_tokens, [message["content"] for message in content]
        if one := next((token for token in named if token and any(token in text for text in texts)), None):
            tally.note(SPECIAL, one)
            return


def _whole(row: dict, side: str, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """Prompt and completion as TRL's trainers put them together: strings get an EOS, messages their template's."""
    completion = row[side]
    if isinstance(completion, str):
        completion = _ended(completion, tokenizer)
    return row["prompt"] + completion if "prompt" in row else completion


def _ended(completion: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text with an EOS at its end."""
    if tokenizer.eos_token is None:
        raise AlignError(
            f"the tokenizer in {tokenizer.name_or_path} has no eos_token, and completions must end: set "
            "eos_token in its tokenizer_config.json"
        )
    return completion if completion.endswith(tokenizer.eos_token) else completion + tokenizer.eos_token


def _ids(texts: list[Prompt], tokenizer: PreTrainedTokenizerBase, noun: str = "", **template: bool) -> list[list[int]]:
    """Ids of each text; `noun` names it in messages, a row or a pair."""
    if not texts:
        return []
    if isinstance(texts[0], str):
        return tokenizer(texts)["input_ids"]
    return [_messages_ids(one, tokenizer, _place(noun, number), **template) for number, one in enumerate(texts)]


def _messages_ids(
    messages: list[dict], tokenizer: PreTrainedTokenizerBase, place: str = "", **template: bool
) -> list[int]:
    return _templated(messages, tokenizer, place, tokenize=True, return_dict=True, **template)["input_ids"]


def _templated(messages: list[dict], tokenizer: PreTrainedTokenizerBase, place: str = "", **options: bool):
    if tokenizer.chat_template is None:
        raise AlignError(
            f"the tokenizer in {tokenizer.name_or_path} has no chat template, and the data are messages: take an "
            "instruct model, put a chat_template.jinja into that folder, or use prompts as strings"
        )
    _check_rendered(messages, tokenizer, place)
    try:
        return tokenizer.apply_chat_template(messages, **options)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        number = _refused(messages, tokenizer, str(error))
        first = messages[number - 1]
        raise AlignError(
            f"the chat template of {tokenizer.name_or_path} refuses messages of {roles} ({error}){place}: message "
            f"{number} is the {first['role']}'s {first['content']!r:.60}\n"
            "  use messages of roles that it takes, in its order, or put another chat_template.jinja into that folder"
        ) from error


def _check_rendered(messages: list[dict], tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Raise AlignError for a turn, or calls of tools in it, that the chat template leaves out."""
    form = tuple((one["role"], bool(one["content"].strip()), bool(one.get("tool_calls"))) for one in messages)
    if found := _unrendered(tokenizer, str(tokenizer.chat_template), form):
        number, part = found
        turn = messages[number - 1]
        raise AlignError(
            f"the chat template of {tokenizer.name_or_path} leaves out the {part} of message {number}{place}: it is "
            f"the {turn['role']}'s {turn['content']!r:.60}\n"
            "  use messages of roles that it renders, or put another chat_template.jinja into that folder"
        )


@lru_cache(maxsize=4096)
def _unrendered(
    tokenizer: PreTrainedTokenizerBase, template: str, form: tuple[tuple[str, bool, bool], ...]
) -> tuple[int, str] | None:
    """Number of the first message that a chat template leaves out, and its part: content or tool_calls.

    `form` has each message's role, and whether it has a content and calls. Rendered are marks in their place.
    """
    messages = []
    for number, (role, content, calls) in enumerate(form, start=1):
        messages.append({"role": role, "content": f"content-{number}-" if content else ""})
        if calls:
            call = {"type": "function", "function": {"name": f"tool_calls-{number}-", "arguments": {}}}
            messages[-1]["tool_calls"] = [call]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except (TemplateError, TypeError, ValueError):  # these roles are refused, or their contents looked into
        return None
    for number, (_, content, calls) in enumerate(form, start=1):
        for part, there in (("content", content), ("tool_calls", calls)):
            if there and f"{part}-{number}-" not in text:
                return number, part
    return None


def _refused(messages: list[dict], tokenizer: PreTrainedTokenizerBase, why: str) -> int:
    """The number of the first message at which a chat template raises `why`; it may also look at later messages."""
    for number in range(1, len(messages)):
        try:
            tokenizer.apply_chat_template(messages[:number], tokenize=False)
        except TemplateError as error:
            if str(error) == why:
                return number
    return len(messages)


def _without_added_eos(text: str, ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """`ids` without the EOS that the tokenizer puts behind a text; one that the text itself ends with stays."""
    if not ids or ids[-1] != tokenizer.eos_token_id:
        return ids
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    added = _trailing(ids, tokenizer.eos_token_id) - _trailing(own, tokenizer.eos_token_id)
    return ids[: len(ids) - added]


def _trailing(ids: list[int], wanted: int) -> int:
    count = 0
    while count < len(ids) and ids[-1 - count] == wanted:
        count += 1
    return count


def shared_length(ids: list[int], others: list[int]) -> int:
    """Number of ids at the start that two lists share."""
    for index, (one, other) in enumerate(zip(ids, others, strict=False)):
        if one != other:
            return index
    return min(len(ids), len(others))


def _is_empty(completion: Prompt) -> bool:
    return not (completion if isinstance(completion, str) else completion[-1]["content"]).strip()


def _place(noun: str, number: int) -> str:
    return f", in {noun} {number + 1} of those loaded" if noun else ""


def _none_left(rows: list[dict], noun: str) -> str:
    return f"no {noun} is left of {len(rows)}"


def _extent(lengths: list[int]) -> str:
    return f"{min(lengths)} to {max(lengths)} tokens"

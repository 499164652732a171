"""Rows as token ids, and the rows that fit, counted as TRL counts them: nothing is dropped without a message.

A `key` is the stage's name in the configuration (`ppo`), which errors put before `max_length` and the like.
"""

from __future__ import annotations

from functools import lru_cache

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from align.data.formats import check_preferring
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


def fitting_prompts(
    rows: list[dict], tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int, key: str
) -> tuple[list[tuple[int, dict, list[int]]], int]:
    """Rows whose prompt fits, with index in `rows` and ids; and how many were too long.

    Raises AlignError if none fits, or if a prompt has no token at all to sample after.
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
    if rows and not found:
        raise AlignError(
            f"{key}.max_prompt_tokens={max_prompt_tokens}: {_none_left(rows, 'prompt')}, all longer "
            f"({_extent([len(ids) for _, _, ids in encoded])}): use a larger {key}.max_prompt_tokens, a smaller "
            f"rollout.max_new_tokens where the model has no room for both, or shorter prompts in {key}.data.path"
        )
    return found, len(rows) - len(found)


def whole_ids(rows: list[dict], side: str, tokenizer: PreTrainedTokenizerBase, noun: str = "") -> list[list[int]]:
    """The ids of prompt and completion of each row, EOS and all, as TRL's trainers put them together.

    `side` is the completion's column: completion, chosen or rejected.
    """
    return _ids([_whole(row, side, tokenizer) for row in rows], tokenizer, noun)


ALIKE, EMPTY, TOO_LONG = "alike", "empty", "too_long"
REMEDIES = {
    TOO_LONG: "longer than {key}.max_length={max_length} ({extent}: use a larger {key}.max_length)",
    ALIKE: "with completions alike (use completions that differ in {key}.data.path)",
    EMPTY: "with an empty completion (use rows without one in {key}.data.path)",
}


def fitting(
    rows: list[dict], ids: list[list[list[int]]], max_length: int | None, key: str, noun: str, reasons: tuple[str, ...]
) -> tuple[list[int], dict[str, int]]:
    """Places of the rows that are learned from, and how many were left out by the first of `reasons` that holds.

    `ids` holds the sequences of each row, one a completion. Too long is a row with one of more than `max_length`
    tokens, EOS included; alike one that has the same sequence twice; empty one with an empty `chosen` or `rejected`.
    Raises AlignError if none is left.
    """
    lengths = [max(map(len, own)) for own in ids]
    holds = {
        ALIKE: lambda i: len(set(map(tuple, ids[i]))) < len(ids[i]),
        EMPTY: lambda i: _is_empty(rows[i]["chosen"]) or _is_empty(rows[i]["rejected"]),
        TOO_LONG: lambda i: max_length is not None and lengths[i] > max_length,
    }
    left_out, places = dict.fromkeys(reasons, 0), []
    for i in range(len(rows)):
        if why := next((reason for reason in reasons if holds[reason](i)), None):
            left_out[why] += 1
        else:
            places.append(i)
    if rows and not places:
        given = {"key": key, "max_length": max_length, "extent": _extent(lengths)}
        words = [f"{count} {REMEDIES[why].format(**given)}" for why, count in left_out.items() if count]
        raise AlignError(f"{key}.data: {_none_left(rows, noun)}: {'; '.join(words)}")
    return places, left_out


def fitting_pairs(
    rows: list[dict], tokenizer: PreTrainedTokenizerBase, max_length: int | None, key: str, held_out: bool = False
) -> tuple[list[dict], dict[str, int]]:
    """Pairs to train a reward model on, or held-out ones, and how many were left out: `too_long`, `alike`, `empty`.

    TRL's RewardTrainer would drop those that are too long, too. Raises AlignError if none is left.
    """
    ids = list(zip(*(whole_ids(rows, side, tokenizer, "pair") for side in ("chosen", "rejected")), strict=True))
    noun = "held-out pair" if held_out else "pair"
    places, left_out = fitting(rows, ids, max_length, key, noun, (ALIKE, EMPTY, TOO_LONG))
    return [rows[i] for i in places], left_out


def fitting_marked(
    rows: list[dict], tokenizer: PreTrainedTokenizerBase, max_length: int | None, key: str, held_out: bool = False
) -> tuple[list[dict], dict[str, int]]:
    """Rows of kto, and how many were left out as `too_long`: with more than `max_length` tokens, EOS included.

    Raises AlignError if none is left, or if all that are left to train on have one label.
    """
    ids = [[one] for one in whole_ids(rows, "completion", tokenizer, "row")]
    noun = "held-out completion" if held_out else "completion"
    places, left_out = fitting(rows, ids, max_length, key, noun, (TOO_LONG,))
    found = [rows[i] for i in places]
    if not held_out:
        check_preferring(found, key)
    return found, left_out


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
    rows: list[dict], tokenizer: PreTrainedTokenizerBase, max_length: int | None, key: str
) -> tuple[list[dict], int]:
    """Rows that SFT learns from, and how many have a prompt that leaves no completion token in `max_length`.

    TRL's SFTTrainer keeps the first `max_length` tokens of a row and drops it where none of them is of the
    completion, which begins where the ids of prompt and prompt + completion part (trl 1.16,
    `SFTTrainer._prepare_dataset`). Rows of text or messages are learned whole, and all stay. Raises AlignError
    if none is left, and for messages that the chat template refuses.
    """
    for number, row in enumerate(rows):
        if "messages" in row:
            _templated(row["messages"], tokenizer, _place("row", number), tokenize=False)
    if max_length is None or not rows or "prompt" not in rows[0]:
        return rows, 0
    # As TRL does it: the prompt with all that the tokenizer adds, and the completion from where they part.
    prompts = _ids([row["prompt"] for row in rows], tokenizer, "row", add_generation_prompt=True)
    wholes = whole_ids(rows, "completion", tokenizer, "row")
    starts = [shared_length(prompt, whole) for prompt, whole in zip(prompts, wholes, strict=True)]
    found = [row for row, start, whole in zip(rows, starts, wholes, strict=True) if start < min(max_length, len(whole))]
    if not found:
        raise AlignError(
            f"{key}.max_length={max_length}: {_none_left(rows, 'example')}, since the prompts fill it "
            f"({_extent([len(one) for one in prompts])}): use a larger {key}.max_length, or shorter prompts in "
            f"{key}.data.path"
        )
    return found, len(rows) - len(found)


def _whole(row: dict, side: str, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """Prompt and completion as TRL's trainers put them together: strings get an EOS, messages their template's."""
    completion = row[side]
    if isinstance(completion, str):
        if tokenizer.eos_token is None:
            raise AlignError(
                f"the tokenizer in {tokenizer.name_or_path} has no eos_token, and completions must end: set "
                "eos_token in its tokenizer_config.json"
            )
        if not completion.endswith(tokenizer.eos_token):
            completion += tokenizer.eos_token
    return row["prompt"] + completion if "prompt" in row else completion


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

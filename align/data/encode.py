"""Rows as token ids, and which rows fit: counted here as TRL counts, so that nothing is dropped unsaid.

A `key` is the stage's name in the configuration (`ppo`), which errors put before `max_length` and the like.
"""

from __future__ import annotations

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from align.data.formats import check_preferring
from align.errors import AlignError

Prompt = str | list[dict]


def prompt_ids(prompt: Prompt, tokenizer: PreTrainedTokenizerBase, place: str = "") -> list[int]:
    """The ids that a response is sampled after: with the tokenizer's BOS if it has one, never its EOS.

    Messages go through the chat template with the generation prompt. Raises AlignError if there is none, or if it
    refuses them; `place` says where they stand, for that.
    """
    if isinstance(prompt, str):
        return _without_added_eos(prompt, _ids([prompt], tokenizer)[0], tokenizer)
    return _messages_ids(prompt, tokenizer, place, add_generation_prompt=True)


def prompt_text(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt as one string: itself, or its messages in the chat template with the generation prompt."""
    if isinstance(prompt, str):
        return prompt
    return _templated(prompt, tokenizer, tokenize=False, add_generation_prompt=True)


def completion_as(prompt: Prompt, text: str) -> Prompt:
    """A completion in the form of its prompt, as TRL's reward functions expect it."""
    return text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]


def text_of(completion: Prompt) -> str:
    """Text of a completion that `completion_as` put into the form of its prompt."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def fitting_prompts(
    rows: list[dict], tokenizer: PreTrainedTokenizerBase, max_prompt_tokens: int, key: str
) -> tuple[list[tuple[int, dict, list[int]]], int]:
    """Each row whose prompt fits, with its index in `rows` and its ids; and how many were too long.

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
    fitting = [one for one in encoded if len(one[2]) <= max_prompt_tokens]
    if rows and not fitting:
        raise AlignError(
            f"{key}.max_prompt_tokens={max_prompt_tokens}: {_none_left(rows, 'prompt')}, all longer "
            f"({_extent(ids for _, _, ids in encoded)}): use a larger {key}.max_prompt_tokens, a smaller "
            f"rollout.max_new_tokens where the model has no room for both, or shorter prompts in {key}.data.path"
        )
    return fitting, len(rows) - len(fitting)


def answer_ids(rows: list[dict], side: str, tokenizer: PreTrainedTokenizerBase, noun: str = "") -> list[list[int]]:
    """The ids of prompt and answer of each row, EOS and all, as TRL's trainers put them together.

    `side` is the answer's column: completion, chosen or rejected.
    """
    return _ids([_whole(row, side, tokenizer) for row in rows], tokenizer, noun)


def fitting_pairs(
    rows: list[dict], tokenizer: PreTrainedTokenizerBase, max_length: int | None, key: str, held_out: bool = False
) -> tuple[list[dict], dict[str, int]]:
    """Pairs to train a reward model on, or held-out ones, and how many were left out: `too_long`, `alike`, `empty`.

    Too long is a pair with a side of more than `max_length` tokens, EOS included, which TRL's RewardTrainer
    would drop, too. Alike is a pair with the same ids on either side, empty one with an empty completion: there is
    nothing to prefer. Raises AlignError if none is left.
    """
    sides = [answer_ids(rows, side, tokenizer, "pair") for side in ("chosen", "rejected")]
    lengths = [max(len(chosen), len(rejected)) for chosen, rejected in zip(*sides, strict=True)]
    left_out = {"too_long": 0, "alike": 0, "empty": 0}
    fitting = []
    for row, chosen, rejected, length in zip(rows, *sides, lengths, strict=True):
        if chosen == rejected:
            left_out["alike"] += 1
        elif _is_empty(row["chosen"]) or _is_empty(row["rejected"]):
            left_out["empty"] += 1
        elif max_length is not None and length > max_length:
            left_out["too_long"] += 1
        else:
            fitting.append(row)
    if rows and not fitting:
        reasons = []
        if left_out["too_long"]:
            reasons.append(
                f"{left_out['too_long']} longer than {key}.max_length={max_length} (the longer sides have "
                f"{min(lengths)} to {max(lengths)} tokens: use a larger {key}.max_length)"
            )
        if left_out["alike"]:
            reasons.append(
                f"{left_out['alike']} with chosen and rejected alike (write pairs that differ in {key}.data.path)"
            )
        if left_out["empty"]:
            reasons.append(f"{left_out['empty']} with an empty answer (write what was answered in {key}.data.path)")
        raise AlignError(
            f"{key}.data: {_none_left(rows, 'held-out pair' if held_out else 'pair')}: {'; '.join(reasons)}"
        )
    return fitting, left_out


def fitting_marked(
    rows: list[dict], tokenizer: PreTrainedTokenizerBase, max_length: int | None, key: str, held_out: bool = False
) -> tuple[list[dict], dict[str, int]]:
    """Rows of kto, and how many were left out as `too_long`: with more than `max_length` tokens, EOS included.

    Raises AlignError if none is left, or if all that are left to train on have one label.
    """
    lengths = [len(ids) for ids in answer_ids(rows, "completion", tokenizer, "row")]
    fitting = [row for row, length in zip(rows, lengths, strict=True) if max_length is None or length <= max_length]
    noun = "held-out answer" if held_out else "answer"
    if rows and not fitting:
        raise AlignError(
            f"{key}.max_length={max_length}: {_none_left(rows, noun)}, all longer "
            f"({min(lengths)} to {max(lengths)} tokens): use a larger {key}.max_length"
        )
    if not held_out:
        check_preferring(fitting, key)
    return fitting, {"too_long": len(rows) - len(fitting)}


def check_dialogues(rows: list[dict], tokenizer: PreTrainedTokenizerBase, key: str) -> None:
    """Raises AlignError for rows of messages that the chat template refuses; strings need none."""
    for number, row in enumerate(rows):
        for messages in _dialogues(row):
            _templated(messages, tokenizer, f"{_place('row', number)} for {key}", tokenize=False)


def _dialogues(row: dict) -> list[list[dict]]:
    """Whole dialogues of a row, of messages; a prompt alone where it has no answer."""
    prompt = row.get("prompt", [])
    answers = [row[side] for side in ("messages", "completion", "chosen", "rejected") if side in row]
    answers += row.get("completions", [])
    if isinstance(prompt, str) or any(isinstance(answer, str) for answer in answers):
        return []
    return [prompt + answer for answer in answers] or [prompt]


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
    wholes = answer_ids(rows, "completion", tokenizer, "row")
    starts = [shared_length(prompt, whole) for prompt, whole in zip(prompts, wholes, strict=True)]
    fitting = [
        row for row, start, whole in zip(rows, starts, wholes, strict=True) if start < min(max_length, len(whole))
    ]
    if rows and not fitting:
        raise AlignError(
            f"{key}.max_length={max_length}: {_none_left(rows, 'example')}, since the prompts fill it "
            f"({_extent(prompts)}): use a larger {key}.max_length, or shorter prompts in {key}.data.path"
        )
    return fitting, len(rows) - len(fitting)


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
    """`noun` is what each text stands for, a row or a pair of the data, where their numbers are."""
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


def _refused(messages: list[dict], tokenizer: PreTrainedTokenizerBase, why: str) -> int:
    """The number of the first message with which a chat template says `why`; it also may look at what is behind."""
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


def _extent(ids) -> str:
    lengths = [len(one) for one in ids]
    return f"{min(lengths)} to {max(lengths)} tokens"

"""Tokens of a row that fine-tuning learns, with TRL's `assistant_only_loss` or `completion_only_loss`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import (
    get_training_chat_template,
    has_generation_markers,
    is_chat_template_stop_token_trained,
)

from align.errors import AlignError
from align.roles.tokenizer import load_tokenizer


def check_rows(args: dict[str, Any], rows: list[dict], key: str) -> None:
    """Raise AlignError for rows without the part that alone is to be learned, by TRL's arguments of stage `key`.

    TRL 1.16 refuses the first kind late, and learns all of the second.
    """
    kind = "messages" if "messages" in rows[0] else "text" if "text" in rows[0] else "prompt"
    if args.get("assistant_only_loss"):
        setting = f"{key}.args.assistant_only_loss=true"
        if isinstance(rows[0][kind], str):
            raise AlignError(
                f"{setting}: the rows of {key}.data are strings, and turns are those of messages\n"
                f"  use data@{key}.data=conversational, or leave it out (of prompt and completion as strings the "
                "completion alone is learned)"
            )
        for row in rows:
            turns = row["messages"] if kind == "messages" else row["prompt"] + row["completion"]
            if all(turn["role"] != "assistant" for turn in turns):
                raise AlignError(
                    f"{setting}: a row of {key}.data has no turn of the assistant; it begins "
                    f"{turns[0]['content']!r:.60}\n  leave such rows out"
                )
    if args.get("completion_only_loss") and kind != "prompt":
        instead = (
            f"+{key}.args.assistant_only_loss=true" if kind == "messages" else f"data@{key}.data=prompt_completion"
        )
        raise AlignError(
            f"{key}.args.completion_only_loss=true: the rows of {key}.data are {kind}, with no completion apart, and "
            f"would be learned whole\n  use {instead} instead, or leave it out"
        )


def check_template(args: dict[str, Any], path: str, key: str) -> None:
    """Raise AlignError where the chat template does not tell the assistant's turns and TRL has no version that does.

    The template is that of the tokenizer at `path`, or of `chat_template_path`, a jinja file or another tokenizer.
    """
    if not args.get("assistant_only_loss"):
        return
    tokenizer = with_template(args, load_tokenizer(path, f"{key}.path"), key)
    home = args.get("chat_template_path") or path
    if tokenizer.chat_template is None or has_generation_markers(tokenizer.chat_template):
        return
    try:
        get_training_chat_template(tokenizer)
    except ValueError as error:
        raise AlignError(
            f"{key}.args.assistant_only_loss=true: the chat template of {home} does not mark the assistant's turns\n"
            f"  use +{key}.args.chat_template_path=FILE.jinja, a template with {{% generation %}} and "
            "{% endgeneration %} around them, or leave it out"
        ) from error


def learned_tokens(args: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Callable[[dict], list[int]] | None:
    """A function of a row of messages to 1 for each token of the assistant's turns, 0 for the others.

    None where TRL learns them all, or by prompt and completion.
    """
    if not args.get("assistant_only_loss"):
        return None
    template = _training_template(tokenizer)

    def mask(row: dict) -> list[int]:
        turns = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
        options = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        return tokenizer.apply_chat_template(turns, chat_template=template, **options)["assistant_masks"]

    return mask


def unlearned_end(args: dict[str, Any], tokenizer: PreTrainedTokenizerBase, key: str) -> str:
    """A warning where the end of the assistant's turns is not learned, '' where it is."""
    if not args.get("assistant_only_loss"):
        return ""
    if is_chat_template_stop_token_trained(tokenizer, chat_template=_training_template(tokenizer)):
        return ""
    return (
        f"{key}.args.assistant_only_loss=true: the chat template's {{% endgeneration %}} stands before the token that "
        "ends the assistant's turns, and a policy would not learn to stop. Use a template with that token inside"
    )


def _training_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """TRL's version of the chat template that marks the assistant's turns; None where its own marks them."""
    return None if has_generation_markers(tokenizer.chat_template) else get_training_chat_template(tokenizer)


def with_template(args: dict[str, Any], tokenizer: PreTrainedTokenizerBase, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer, in place with the chat template that TRL takes by `chat_template_path`."""
    if other := args.get("chat_template_path"):
        file = Path(other)
        is_template = file.is_file() and file.suffix in (".jinja", ".j2")
        own = f"{key}.args.chat_template_path"
        tokenizer.chat_template = file.read_text("utf-8") if is_template else load_tokenizer(other, own).chat_template
    return tokenizer

"""What the rows of a file mean: columns by format, checked and turned into what a stage wants.

| format | columns | serves |
| --- | --- | --- |
| text | text | pretrain, sft |
| prompts | prompt (string or messages), any others | ppo |
| prompt_completion | prompt, completion (strings) | pretrain, sft, ppo |
| conversational | messages, or prompt and completion as messages | sft, ppo |
| preferences | chosen, rejected, mostly prompt (strings or messages); margin or share | sft, rm, dpo, kto, ppo |
| dialogues | chosen, rejected: whole dialogues, alike but for the last answer | sft, rm, dpo, kto, ppo |
| rankings | prompt, completions, and their order (align.data.graded) | sft, rm, dpo, kto, ppo |
| ratings | prompt, completion, rating (a number, the higher the better) | rm, ppo |
| unpaired | prompt, completion, label (true: good) | kto, ppo |

Dialogues are text: `\\n\\nHuman: … \\n\\nAssistant: …`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from align.data.columns import Columns
from align.data.graded import WAYS
from align.data.meant import Meant, for_ppo, identity, prompt_alone
from align.data.preferences import DIALOGUES, PREFERENCES, RANKINGS, RATINGS, UNPAIRED
from align.data.reading import Placed
from align.data.source import GROUP, LIKE, PURPOSES
from align.errors import AlignError


def understand(rows: list[Placed], format: str, purpose: str, report_by: str | None = None) -> list[Meant]:
    """Every row as `purpose` wants it. Raises AlignError, naming the row, for what does not fit.

    The value of the column `report_by` stays with the row, as the string `group`.
    """
    found = meanings(rows, format, purpose, report_by)
    if not found:
        raise AlignError(f"{purpose}.data: all answers of every row tie, so that there is nothing to prefer")
    begun, first = found[0][0], shape(found[0][1], purpose)
    for place, one in found:
        if shape(one, purpose) != first:
            raise AlignError(f"{place} gives {shape(one, purpose)} where {begun} gives {first}: write all rows alike")
    return [one for _, one in found]


def meanings(rows: list[Placed], format: str, purpose: str, report_by: str | None = None) -> list[tuple[str, Meant]]:
    """As `understand`, each row by itself, with its place; a row that says nothing is left out."""
    convert = _conversion(format, purpose)
    found: list[tuple[str, Meant]] = []
    for place, row in rows:
        columns = Columns(place, row, format, purpose, fitting)
        meant = convert(columns)
        several = meant if isinstance(meant, list) else [meant]
        if report_by is not None:
            group = _group(columns, report_by)
            several = [Meant({**one.row, GROUP: group}, one.identity) for one in several]
        found += [(place, one) for one in several]
    return found


def fitting(row: dict, purpose: str) -> str | None:
    """The format that a row is of, all its columns being the format's own; None where none serves `purpose` so."""
    meaning = LIKE.get(purpose, purpose)
    for name in (name for name, purposes in FORMATS.items() if meaning in purposes):
        if set(row) <= {*READ[name], *READ_BY_ONE.get((name, meaning), ())}:
            try:
                FORMATS[name][meaning](Columns("", row, name, purpose))
            except AlignError:
                continue
            return name
    return None


def check_columns(columns: Mapping[str, str], format: str, purpose: str, report_by: str | None = None) -> None:
    """Raises AlignError for a column that is given by `PURPOSE.data.columns` and that nobody reads.

    Of ppo and what is like it reward functions may read any.
    """
    _conversion(format, purpose)
    meaning = LIKE.get(purpose, purpose)
    read = [*READ[format], *READ_BY_ONE.get((format, meaning), ()), *([report_by] if report_by else [])]
    for name, source in columns.items() if meaning != "ppo" else ():
        if name not in read:
            near = difflib.get_close_matches(name, read, n=1)
            hint = f"nearest: {purpose}.data.columns.{near[0]}" if near else "write one of these, or leave it out"
            raise AlignError(
                f"{purpose}.data.columns.{name}={source}: nobody would read it: data@{purpose}.data={format} gives "
                f"{purpose} {', '.join(read)}\n  {hint}"
            )


def shape(meant: Meant, purpose: str) -> str:
    """What all rows of one data set must have in common, in words."""
    # For ppo the other columns are anybody's, and rows may lack some.
    columns = ["prompt"] if LIKE.get(purpose, purpose) == "ppo" else sorted(meant.row)
    content = meant.row.get("prompt", meant.row.get("chosen"))
    kind = " as messages" if isinstance(content, list) else ""
    return " ".join(columns) + kind


def _group(columns: Columns, report_by: str) -> str:
    if not columns.has(report_by):
        raise columns.error(
            f"has no value in {report_by!r}, the column of {columns.purpose}.data.report_by",
            f"one of {', '.join(map(str, columns.row))}, or leave the option out",
        )
    return str(columns.row[report_by])


def _conversion(format: str, purpose: str) -> Callable[[Columns], Meant | list[Meant]]:
    assert purpose in PURPOSES, purpose
    meaning = LIKE.get(purpose, purpose)
    if meaning in FORMATS.get(format, {}):
        return FORMATS[format][meaning]
    serving = ", ".join(name for name, purposes in FORMATS.items() if meaning in purposes)
    problem = f"does not serve {purpose}" if format in FORMATS else "is no format"
    raise AlignError(f"{purpose}.data.format={format} {problem}: write one of {serving}")


def _text(columns: Columns) -> Meant:
    text = columns.text("text")
    return Meant({"text": text}, text)


def _joined(columns: Columns) -> Meant:
    prompt = columns.text("prompt")
    return Meant({"text": prompt + columns.text("completion")}, prompt)


def _prompt_completion(columns: Columns) -> Meant:
    prompt = columns.text("prompt")
    return Meant({"prompt": prompt, "completion": columns.text("completion")}, prompt)


def _prompt_of_completion(columns: Columns) -> Meant:
    return for_ppo(columns, columns.text("prompt"))


def _conversation(columns: Columns) -> Meant:
    if columns.has("messages"):
        messages = columns.messages("messages")
        return Meant({"messages": messages}, identity(_before_the_answer(messages)))
    prompt = columns.messages("prompt", instead="messages")
    return Meant({"prompt": prompt, "completion": columns.messages("completion")}, identity(prompt))


def _prompt_of_conversation(columns: Columns) -> Meant:
    if not columns.has("messages"):
        return for_ppo(columns, columns.messages("prompt", instead="messages"))
    prompt = _before_the_answer(columns.messages("messages"))
    if not prompt:
        raise columns.error("holds an answer and nothing that it answers", "messages that begin with a question")
    return for_ppo(columns, prompt)


def _before_the_answer(messages: list[dict]) -> list[dict]:
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


FORMATS: dict[str, dict[str, Callable[[Columns], Meant]]] = {
    "text": {"pretrain": _text, "sft": _text},
    "prompts": {"ppo": prompt_alone},
    "prompt_completion": {"pretrain": _joined, "sft": _prompt_completion, "ppo": _prompt_of_completion},
    "conversational": {"sft": _conversation, "ppo": _prompt_of_conversation},
    "preferences": PREFERENCES,
    "dialogues": DIALOGUES,
    "rankings": RANKINGS,
    "ratings": RATINGS,
    "unpaired": UNPAIRED,
}
READ: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "prompts": ("prompt",),
    "prompt_completion": ("prompt", "completion"),
    "conversational": ("messages", "prompt", "completion"),
    "preferences": ("prompt", "chosen", "rejected"),
    "dialogues": ("chosen", "rejected"),
    "rankings": ("prompt", "completions", *WAYS),
    "ratings": ("prompt", "completion", "rating"),
    "unpaired": ("prompt", "completion", "label"),
}
"""The columns of a row that mean something."""
READ_BY_ONE = {("preferences", "rm"): ("margin", "share")}
"""Those that mean something to one stage alone."""

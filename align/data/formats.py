"""Formats of a file's rows: one table of columns, readers and writers, from a row of a file to the rows of a stage.

| format | columns | serves |
| --- | --- | --- |
| text | text | pretrain, sft |
| prompts | prompt (string or messages), any others | ppo |
| prompt_completion | prompt, completion (strings) | pretrain, sft, ppo |
| conversational | messages, or prompt and completion as messages | sft, ppo |
| preferences | chosen, rejected, mostly prompt (strings or messages); margin or share | sft, rm, dpo, kto, ppo |
| dialogues | chosen, rejected: whole dialogues, alike but for the last turn | sft, rm, dpo, kto, ppo |
| rankings | prompt, completions, and their order (align.data.formats) | sft, rm, dpo, kto, ppo |
| ratings | prompt, completion, rating (a number, the higher the better) | rm, ppo |
| unpaired | prompt, completion, label (true: good) | kto, ppo |

Dialogues are text: `\\n\\nHuman: … \\n\\nAssistant: …`.
"""

from __future__ import annotations

import difflib
import json
import os.path
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from align.data.columns import Columns
from align.data.reading import Placed
from align.data.source import GROUP, LIKE, PURPOSES
from align.data.tally import NEUTRAL as NEUTRAL_VALUE
from align.data.tally import Tally
from align.errors import AlignError

UNFORWARDED = ("prompt", "completion")
"""Columns that TRL's trainers do not hand to reward functions as columns (trl 1.16, trainer/grpo_trainer.py)."""
REWARD_KEYWORDS = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
"""Keywords of a TRL reward function that a column of the same name would collide with."""
ORDERS = ("ranking", "ranks", "scores")
"""Columns that give the order of a ranking's completions, one of them in a row."""
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"

Content = str | list[dict]
"""A prompt or a completion: a string, or messages."""
Reader = Callable[[Columns], dict]
"""Reads and checks the values of a row."""
Writer = Callable[[dict], list[dict]]
"""Makes the rows of a stage from a reader's row."""


@dataclass
class Record:
    """A row of a stage, and the text by which two rows have the same prompt."""

    row: dict
    identity: str


@dataclass(frozen=True)
class Format:
    """Columns with the checks of their values; for each stage a reader and a writer, for ppo a reader of the prompt."""

    columns: dict[str, Callable[[Columns, str], object]]
    stages: dict[str, tuple[Reader, Writer]]
    prompt: Callable[[Columns], Content] | None = None
    of_one_stage: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Columns that one stage alone reads."""

    @property
    def serves(self) -> tuple[str, ...]:
        return (*self.stages, *(("ppo",) if self.prompt else ()))

    def reads(self, stage: str) -> tuple[str, ...]:
        return (*self.columns, *self.of_one_stage.get(stage, ()))

    def records(self, columns: Columns, stage: str) -> list[Record]:
        if stage == "ppo":
            row = {"prompt": self.prompt(columns)}
            rows = [row | _forwarded(columns, self)]
        else:
            read, write = self.stages[stage]
            row = read(columns)
            rows = write(row)
        return [Record(one, _identity(row)) for one in rows]


def _identity(row: dict) -> str:
    """The prompt as text, or what comes before the completion where a row has no prompt apart."""
    prompt = next(row[name] for name in ("prompt", "messages", "chosen", "text") if name in row)
    if "prompt" not in row and isinstance(prompt, list):
        prompt = _before_the_completion(prompt) if "messages" in row else (prompt[:-1] or prompt)
    if isinstance(prompt, str):
        return prompt
    return json.dumps([[message["role"], message["content"]] for message in prompt], ensure_ascii=False)


def _forwarded(columns: Columns, format: Format) -> dict:
    """Columns beside the prompt as they are, for reward functions."""
    others = {name: value for name, value in columns.row.items() if name not in UNFORWARDED}
    for name in REWARD_KEYWORDS:
        if name in others and name not in format.columns:
            raise columns.error(
                f"has the column {name!r}, which is a keyword of every reward function", "another name for it"
            )
    return {name: value for name, value in others.items() if name not in REWARD_KEYWORDS}


def _columns(columns: Columns) -> dict:
    """Every column of the format by its own check."""
    return {name: check(columns, name) for name, check in FORMATS[columns.format].columns.items()}


def _prompt(columns: Columns) -> Content:
    return FORMATS[columns.format].columns["prompt"](columns, "prompt")


def _rating(columns: Columns) -> dict:
    row = _columns(columns)
    _check_one_form(columns, [row["prompt"], row["completion"]], "prompt and completion in one way")
    return row


def _conversation(columns: Columns) -> dict:
    if columns.has("messages"):
        return {"messages": columns.messages("messages")}
    prompt = columns.messages("prompt", instead="messages")
    return {"prompt": prompt, "completion": columns.messages("completion")}


def _prompt_of_conversation(columns: Columns) -> list[dict]:
    if not columns.has("messages"):
        return columns.messages("prompt", instead="messages")
    prompt = _before_the_completion(columns.messages("messages"))
    if not prompt:
        raise columns.error("holds a completion without a prompt", "messages that begin with a question")
    return prompt


def _before_the_completion(messages: list[dict]) -> list[dict]:
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


def _sides(columns: Columns) -> tuple[Content | None, Content, Content]:
    """Prompt, where there is one, chosen and rejected."""
    chosen, rejected = columns.text_or_messages("chosen"), columns.text_or_messages("rejected")
    prompt = columns.text_or_messages("prompt") if columns.has("prompt") else None
    _check_one_form(
        columns, [chosen, rejected, *([] if prompt is None else [prompt])],
        "prompt, chosen and rejected all as strings or all as messages (no prompt, if chosen and rejected begin with "
        "it)",
    )  # fmt: skip
    return prompt, chosen, rejected


def _check_one_form(columns: Columns, contents: list[Content], instead: str) -> None:
    if len({type(one) for one in contents}) > 1:
        raise columns.error("mixes strings and lists of messages", instead)


def _pair(columns: Columns) -> dict:
    """Both sides as they are, with the prompt where there is one, and how clear the preference is."""
    sides = dict(zip(("prompt", "chosen", "rejected"), _sides(columns), strict=True))
    row = {name: value for name, value in sides.items() if value is not None}
    row |= {name: columns.number(name) for name in ("margin", "share") if columns.has(name)}
    share = row.get("share", 0)
    if not 0 <= share <= 1:
        raise columns.error(f"has {share:g} in 'share'", "the share of people who preferred chosen, from 0 to 1")
    if "share" in row and "margin" in row:
        raise columns.error("has two columns for how clear its preference is (margin and share)", "one of the two")
    return row


def _pair_of_a_prompt(columns: Columns) -> dict:
    """Both sides after the prompt, which is taken from conversations that begin with it."""
    prompt, chosen, rejected = _sides(columns)
    if prompt is None:
        prompt = _shared_prompt(columns, chosen)
        if rejected[:-1] != prompt:
            raise columns.error(
                "has no prompt, and chosen and rejected part before the last message", "a column prompt"
            )
        chosen, rejected = chosen[-1:], rejected[-1:]
    return _two(prompt, chosen, rejected)


def _prompt_of_pair(columns: Columns) -> Content:
    prompt, chosen, _ = _sides(columns)
    return _shared_prompt(columns, chosen) if prompt is None else prompt


def _shared_prompt(columns: Columns, chosen: Content) -> list[dict]:
    if isinstance(chosen, str):
        raise columns.error(
            "has no prompt, and strings chosen and rejected do not show where it ends",
            f"a column prompt, or data@{columns.purpose}.data=dialogues for turns after {HUMAN!r} and {ASSISTANT!r}",
        )
    if len(chosen) < 2 or chosen[-1]["role"] != "assistant":
        raise columns.error(
            "has no prompt, and chosen is not a conversation that ends with a completion",
            "a column prompt, or chosen as messages with an assistant's message last",
        )
    return chosen[:-1]


def _dialogue(columns: Columns) -> dict:
    r"""Both completions of a pair of dialogues; prompt + completion is the dialogue, character for character.

    The prompt ends with the last `\n\nAssistant:` that both share. In most pairs that is the last of all;
    in hh-rlhf 2 pairs in 1,000 have a completion that goes on for more turns.
    """
    chosen, rejected = columns.text("chosen"), columns.text("rejected")
    shared = os.path.commonprefix([chosen, rejected])  # noqa: RUF071, character by character is what is wanted
    end = shared.rfind(ASSISTANT) + len(ASSISTANT)
    if ASSISTANT not in shared or HUMAN not in shared[:end]:
        raise columns.error(
            "is no pair of dialogues that part in the last completion",
            f"chosen and rejected with the same turns after {HUMAN!r} and {ASSISTANT!r}, or "
            f"data@{columns.purpose}.data=preferences",
        )
    return _two(shared[:end], chosen[end:], rejected[end:])


def _two(prompt: Content, chosen: Content, rejected: Content) -> dict:
    return {"prompt": prompt, "completions": [chosen, rejected], "ranks": [0, 1]}


def _ranking(columns: Columns) -> dict:
    """Completions of a prompt, and the rank of each: 0 for the best, equal for ties."""
    prompt, completions = columns.text_or_messages("prompt"), columns.completions("completions")
    if len(completions) < 2:
        raise columns.error("has one completion in 'completions', and nothing to rank", "two completions or more")
    _check_one_form(columns, [prompt, *completions], "prompt and completions all in one way")
    orders = [name for name in ORDERS if columns.has(name)]
    if len(orders) != 1:
        problem = f"has its order twice ({' and '.join(orders)})" if orders else "has no order of its completions"
        raise columns.error(problem, f"one of the columns {', '.join(ORDERS)}")
    ranks_of = _ranks_by_number if orders == ["ranking"] else _ranks_by_value
    return {"prompt": prompt, "completions": completions, "ranks": ranks_of(columns, orders[0], len(completions))}


def _ranks_by_value(columns: Columns, name: str, count: int) -> list[int]:
    values = columns.numbers(name)
    if len(values) != count:
        raise columns.error(f"has {len(values)} {name} for {count} completions", "one for each, in their order")
    best_first = sorted(set(values), reverse=name == "scores")
    return [best_first.index(value) for value in values]


def _ranks_by_number(columns: Columns, name: str, count: int) -> list[int]:
    """Ranks from numbers of completions, best first."""
    given = columns.row[name]
    groups = [one if isinstance(one, list) else [one] for one in (given if isinstance(given, list) else [given])]
    numbers = [number for group in groups for number in group]
    if any(type(number) is not int for number in numbers) or sorted(numbers) != list(range(count)):
        raise columns.error(
            f"has the ranking {given!r}, which does not name each of its {count} completions once",
            f"their numbers, 0 to {count - 1}, best first, ties in a list inside",
        )
    rank = {number: place for place, group in enumerate(groups) for number in group}
    return [rank[number] for number in range(count)]


def _whole(row: dict) -> list[dict]:
    return [row]


def _joined(row: dict) -> list[dict]:
    return [{"text": row["prompt"] + row["completion"]}]


def _differing(row: dict) -> list[dict]:
    """The ranking; nothing where all completions tie."""
    return [row] if len(set(row["ranks"])) > 1 else []


def _best(row: dict) -> list[dict]:
    """The best completion, the first of those that tie."""
    return [{"prompt": row["prompt"], "completion": row["completions"][row["ranks"].index(min(row["ranks"]))]}]


def _best_and_worst(row: dict) -> list[dict]:
    """A pair, of the first completions that tie; nothing where all do."""
    ranks, completions = row["ranks"], row["completions"]
    if not _differing(row):
        return []
    chosen, rejected = (completions[ranks.index(end(ranks))] for end in (min, max))
    return [{"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}]


def _marked(row: dict) -> list[dict]:
    """Best and worst on their own, for kto."""
    return [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in _best_and_worst(row)
        for side in ("chosen", "rejected")
    ]


TEXT, MESSAGES, EITHER = Columns.text, Columns.messages, Columns.text_or_messages
FORMATS = {
    "text": Format({"text": TEXT}, {"pretrain": (_columns, _whole), "sft": (_columns, _whole)}),
    "prompts": Format({"prompt": EITHER}, {}, _prompt),
    "prompt_completion": Format(
        {"prompt": TEXT, "completion": TEXT}, {"pretrain": (_columns, _joined), "sft": (_columns, _whole)}, _prompt
    ),
    "conversational": Format(
        {"messages": MESSAGES, "prompt": MESSAGES, "completion": MESSAGES},
        {"sft": (_conversation, _whole)},
        _prompt_of_conversation,
    ),
    "preferences": Format(
        {"prompt": EITHER, "chosen": EITHER, "rejected": EITHER},
        {
            "sft": (_pair_of_a_prompt, _best),
            "rm": (_pair, _whole),
            "dpo": (_pair_of_a_prompt, _best_and_worst),
            "kto": (_pair_of_a_prompt, _marked),
        },
        _prompt_of_pair,
        {"rm": ("margin", "share")},
    ),
    "dialogues": Format(
        {"chosen": TEXT, "rejected": TEXT},
        {
            "sft": (_dialogue, _best),
            "rm": (_dialogue, _best_and_worst),
            "dpo": (_dialogue, _best_and_worst),
            "kto": (_dialogue, _marked),
        },
        lambda columns: _dialogue(columns)["prompt"],
    ),
    "rankings": Format(
        {"prompt": EITHER, "completions": Columns.completions, **dict.fromkeys(ORDERS, Columns.numbers)},
        {
            "sft": (_ranking, _best),
            "rm": (_ranking, _differing),
            "dpo": (_ranking, _best_and_worst),
            "kto": (_ranking, _marked),
        },
        _prompt,
    ),
    "ratings": Format(
        {"prompt": EITHER, "completion": EITHER, "rating": Columns.number}, {"rm": (_rating, _whole)}, _prompt
    ),
    "unpaired": Format(
        {"prompt": EITHER, "completion": EITHER, "label": Columns.label}, {"kto": (_columns, _whole)}, _prompt
    ),
}


def understand(
    rows: list[Placed], format: str, purpose: str, report_by: str | None = None, tallies: list[Tally] | None = None
) -> list[Record]:
    """Every row as `purpose` wants it. Raises AlignError, naming the row, for what does not fit.

    Pairs that lack the share or margin of others take its neutral value, with a count in `tallies`. The value of
    the column `report_by` stays with the row, as the string `group`.
    """
    found = meanings(rows, format, purpose, report_by)
    if not found:
        raise AlignError(f"{purpose}.data: all completions of every row tie: use rows with a preference")
    if tallies is not None and _stage(format, purpose) == "rm":
        name, count = complete([one.row for _, one in found])
        tallies.append(Tally(len(found), {}, {NEUTRAL_VALUE: count}, purpose, examples={NEUTRAL_VALUE: name}))
    begun, first = found[0][0], shape(found[0][1], purpose)
    for place, one in found:
        if shape(one, purpose) != first:
            raise AlignError(f"{place} gives {shape(one, purpose)} where {begun} gives {first}: use all rows alike")
    return [one for _, one in found]


NEUTRAL = {"share": 1.0, "margin": 0.0}
"""Values of a pair without the column: everybody preferred the chosen completion, by no margin."""


def complete(rows: list[dict]) -> tuple[str, int]:
    """Give pairs without a share or margin that others have its neutral value, in place; its name, and how many."""
    there = [name for name in NEUTRAL if any(name in row for row in rows)]
    if len(there) != 1:
        return "", 0
    lacking = [row for row in rows if there[0] not in row]
    for row in lacking:
        row[there[0]] = NEUTRAL[there[0]]
    return there[0], len(lacking)


def meanings(rows: list[Placed], format: str, purpose: str, report_by: str | None = None) -> list[tuple[str, Record]]:
    """As `understand`, each row by itself, with its place; a row without a preference is left out."""
    found, stage = [], _stage(format, purpose)
    for place, row in rows:
        columns = Columns(place, row, format, purpose, format_of)
        for record in FORMATS[format].records(columns, stage):
            if report_by is not None:
                record.row[GROUP] = _group(columns, report_by)
            found.append((place, record))
    return found


def _group(columns: Columns, report_by: str) -> str:
    if not columns.has(report_by):
        raise columns.error(
            f"has no value in {report_by!r}, the column of {columns.purpose}.data.report_by",
            f"one of {', '.join(map(str, columns.row))}, or leave the option out",
        )
    return str(columns.row[report_by])


def _stage(format: str, purpose: str) -> str:
    """The stage whose rows `purpose` takes. Raises AlignError where the format does not serve it."""
    assert purpose in PURPOSES, purpose
    stage = LIKE.get(purpose, purpose)
    if format in FORMATS and stage in FORMATS[format].serves:
        return stage
    serving = ", ".join(name for name, one in FORMATS.items() if stage in one.serves)
    problem = f"does not serve {purpose}" if format in FORMATS else "is no format"
    raise AlignError(f"{purpose}.data.format={format} {problem}: use one of {serving}")


def format_of(row: dict, purpose: str) -> str | None:
    """The format that a row is of, all its columns being the format's own; None where none serves `purpose` so."""
    stage = LIKE.get(purpose, purpose)
    for name, format in FORMATS.items():
        if stage in format.serves and set(row) <= set(format.reads(stage)):
            with suppress(AlignError):
                format.records(Columns("", row, name, purpose), stage)
                return name
    return None


def check_columns(columns: Mapping[str, str], format: str, purpose: str, report_by: str | None = None) -> None:
    """Raise AlignError for a column that is given by `PURPOSE.data.columns` and that nobody reads.

    Of ppo and what is like it reward functions may read any.
    """
    stage = _stage(format, purpose)
    read = [*FORMATS[format].reads(stage), *([report_by] if report_by else [])]
    for name, source in columns.items() if stage != "ppo" else ():
        if name not in read:
            near = difflib.get_close_matches(name, read, n=1)
            hint = f"nearest: {purpose}.data.columns.{near[0]}" if near else "use one of these, or leave it out"
            raise AlignError(
                f"{purpose}.data.columns.{name}={source}: nobody would read it: data@{purpose}.data={format} gives "
                f"{purpose} {', '.join(read)}\n  {hint}"
            )


def shape(record: Record, purpose: str) -> str:
    """Describe in words the columns and the form of the prompt, which all rows of one data set must share."""
    # For ppo the other columns are anybody's, and rows may lack some.
    columns = ["prompt"] if LIKE.get(purpose, purpose) == "ppo" else sorted(record.row)
    content = record.row.get("prompt", record.row.get("chosen"))
    return " ".join(columns) + (" as messages" if isinstance(content, list) else "")


def as_pairs(rows: list[dict]) -> list[dict]:
    """Pairs as they are; rankings, and ratings of one prompt's completions, as every two that do not tie."""
    out, rated = [], {}
    for row in rows:
        if "completions" in row:
            out += _ordered(row, row["completions"], row["ranks"])
        elif "rating" in row:
            rated.setdefault(json.dumps(row["prompt"]), []).append(row)
        else:
            out.append(row)
    for several in rated.values():
        out += _ordered(several[0], [one["completion"] for one in several], [-one["rating"] for one in several])
    return out


def _ordered(row: dict, completions: list[Content], ranks: list[float]) -> list[dict]:
    others = {
        name: value for name, value in row.items() if name not in ("completion", "completions", "ranks", "rating")
    }
    places = [(i, j) for i, better in enumerate(ranks) for j, worse in enumerate(ranks) if better < worse]
    return [{**others, "chosen": completions[i], "rejected": completions[j]} for i, j in places]


def check_preferring(rows: list[dict], key: str) -> None:
    """Raise AlignError where every pair has one text on both sides, or every completion one label."""
    if rows and all("chosen" in row and row["chosen"] == row["rejected"] for row in rows):
        raise AlignError(
            f"{key}.data: no pair is left of {len(rows)}, since chosen and rejected are alike in each: use pairs "
            f"that differ in {key}.data.path"
        )
    labels = {row.get("label") for row in rows}
    if len(labels) == 1 and labels != {None}:
        raise AlignError(
            f"{key}.data: every completion is labelled {str(labels.pop()).lower()}, and there is nothing to tell "
            f"apart: use rows of both labels in {key}.data.path"
        )

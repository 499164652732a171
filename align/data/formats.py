"""Formats of a file's rows: columns by format, checked and converted to the rows of a stage.

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

import dataclasses
import difflib
import json
import os.path
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from align.data.columns import Columns
from align.data.reading import Placed
from align.data.source import GROUP, LIKE, PURPOSES
from align.errors import AlignError

UNFORWARDED = ("prompt", "completion", "completion_ids")
"""Columns that TRL's trainers do not hand to reward functions as columns (trl 1.16, trainer/grpo_trainer.py)."""

REWARD_KEYWORDS = ("prompts", "completions", "trainer_state", "log_extra", "log_metric")
"""Keywords of a TRL reward function that a column of the same name would collide with."""


@dataclass
class Record:
    """A row as a stage wants it, and the text that tells whether two rows are about the same prompt."""

    row: dict
    identity: str


def for_ppo(columns: Columns, prompt: str | list) -> Record:
    """The prompt with all other columns of the row, as they are: reward functions are handed them."""
    taken = [name for name in columns.row if name in REWARD_KEYWORDS]
    if taken:
        raise columns.error(
            f"has the column {taken[0]!r}, which is a keyword of every reward function", "another name for it"
        )
    others = {name: value for name, value in columns.row.items() if name not in UNFORWARDED}
    return Record({"prompt": prompt, **others}, identity(prompt))


def identity(prompt: str | list[dict]) -> str:
    if isinstance(prompt, str):
        return prompt
    return json.dumps([[message["role"], message["content"]] for message in prompt], ensure_ascii=False)


def prompt_alone(columns: Columns) -> Record:
    return for_ppo(columns, columns.text_or_messages("prompt"))


Answer = str | list[dict]
WAYS = ("ranking", "ranks", "scores")


def ranked(columns: Columns) -> tuple[Answer, list[Answer], list[int]]:
    """The prompt, its completions, and the rank of each: 0 for the best, equal for ties."""
    prompt, completions = columns.text_or_messages("prompt"), columns.answers("completions")
    if len(completions) < 2:
        raise columns.error("has one answer in 'completions', and nothing to rank", "two completions or more")
    if any(type(one) is not type(prompt) for one in completions):
        raise columns.error("mixes strings and lists of messages", "prompt and completions all in one way")
    said = [way for way in WAYS if columns.has(way)]
    if len(said) != 1:
        problem = f"says its order twice ({' and '.join(said)})" if said else "has no order of its completions"
        raise columns.error(problem, f"one of the columns {', '.join(WAYS)}")
    if said == ["ranking"]:
        return prompt, completions, _from_order(columns, len(completions))
    values = columns.numbers(said[0])
    if len(values) != len(completions):
        raise columns.error(
            f"has {len(values)} {said[0]} for {len(completions)} completions", "one for each, in their order"
        )
    best_first = sorted(set(values), reverse=said == ["scores"])
    return prompt, completions, [best_first.index(value) for value in values]


def _from_order(columns: Columns, count: int) -> list[int]:
    """Ranks from numbers of completions, best first."""
    given = columns.row["ranking"]
    places = given if isinstance(given, list) else [given]
    groups = [place if isinstance(place, list) else [place] for place in places]
    named = [item for group in groups for item in group]
    unknown = [i for i in named if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < count]
    if unknown:
        raise columns.error(
            f"ranks {unknown[0]!r}, which is none of its {count} completions",
            f"their numbers, 0 to {count - 1}, best first",
        )
    again = next((item for item in named if named.count(item) > 1), None)
    if again is not None:
        raise columns.error(f"ranks the completion {again} twice", "each number once")
    if missing := sorted(set(range(count)) - set(named)):
        raise columns.error(f"does not rank the completion {missing[0]}", "each number once; ties in a list inside")
    rank = {item: place for place, group in enumerate(groups) for item in group}
    return [rank[item] for item in range(count)]


def as_pairs(rows: list[dict]) -> list[dict]:
    """Pairs as they are; rankings, and ratings of one prompt's answers, as every two answers that do not tie."""
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


def _ordered(row: dict, answers: list[Answer], ranks: list[float]) -> list[dict]:
    others = {
        name: value for name, value in row.items() if name not in ("completion", "completions", "ranks", "rating")
    }
    places = [(i, j) for i, better in enumerate(ranks) for j, worse in enumerate(ranks) if better < worse]
    return [{**others, "chosen": answers[i], "rejected": answers[j]} for i, j in places]


def best_and_worst(columns: Columns) -> tuple[Answer, Answer, Answer] | None:
    """Prompt, best and worst answer, the first of each where several tie; None where all do."""
    prompt, completions, ranks = ranked(columns)
    if len(set(ranks)) == 1:
        return None
    return prompt, completions[ranks.index(min(ranks))], completions[ranks.index(max(ranks))]


def check_preferring(rows: list[dict], key: str) -> None:
    """Raises AlignError where every pair has one text on both sides, or every answer one label."""
    if rows and all("chosen" in row and row["chosen"] == row["rejected"] for row in rows):
        raise AlignError(
            f"{key}.data: no pair is left of {len(rows)}, since chosen and rejected are alike in each: use pairs "
            f"that differ in {key}.data.path"
        )
    labels = {row.get("label") for row in rows}
    if len(labels) == 1 and labels != {None}:
        raise AlignError(
            f"{key}.data: every answer is labelled {str(labels.pop()).lower()}, and there is nothing to tell apart: "
            f"use rows of both labels in {key}.data.path"
        )


HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def _preference(columns: Columns) -> Record:
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
    return Record(row, identity(prompt))


def _share(columns: Columns) -> float:
    """The share of people who preferred the chosen answer."""
    share = columns.number("share")
    if not 0 <= share <= 1:
        raise columns.error(f"has {share:g} in 'share'", "the share of people who preferred chosen, from 0 to 1")
    if columns.has("margin"):
        raise columns.error("says twice how clear its preference is (margin and share)", "one of the two")
    return share


def _preferred(columns: Columns) -> Record:
    prompt, chosen, _ = _explicit_pair(columns)
    return Record({"prompt": prompt, "completion": chosen}, identity(prompt))


def _preference_of_a_prompt(columns: Columns) -> Record:
    return _paired(*_explicit_pair(columns))


def _marked_pair(columns: Columns) -> list[Record]:
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


def _paired(prompt: str | list, chosen: str | list, rejected: str | list) -> Record:
    return Record({"prompt": prompt, "chosen": chosen, "rejected": rejected}, identity(prompt))


def _marked(prompt: str | list, good: str | list, bad: str | list) -> list[Record]:
    """The two sides of a pair on their own, for kto."""
    sides = ((good, True), (bad, False))
    return [Record({"prompt": prompt, "completion": c, "label": label}, identity(prompt)) for c, label in sides]


def _unpaired(columns: Columns) -> Record:
    prompt, completion = columns.text_or_messages("prompt"), columns.text_or_messages("completion")
    row = {"prompt": prompt, "completion": completion, "label": columns.label("label")}
    return Record(row, identity(prompt))


def _best(columns: Columns) -> list[Record]:
    prompt, completions, ranks = ranked(columns)
    best = completions[ranks.index(min(ranks))]
    return [Record({"prompt": prompt, "completion": best}, identity(prompt))]


def _best_against_worst(columns: Columns) -> list[Record]:
    found = best_and_worst(columns)
    return [_paired(*found)] if found else []


def _ranking(columns: Columns) -> list[Record]:
    """The whole of it, with the rank of each answer, 0 the best; nothing where all tie."""
    prompt, completions, ranks = ranked(columns)
    if len(set(ranks)) == 1:
        return []
    return [Record({"prompt": prompt, "completions": completions, "ranks": ranks}, identity(prompt))]


def _rating(columns: Columns) -> Record:
    prompt, completion = columns.text_or_messages("prompt"), columns.text_or_messages("completion")
    if type(prompt) is not type(completion):
        raise columns.error("mixes strings and lists of messages", "prompt and completion in one way")
    return Record({"prompt": prompt, "completion": completion, "rating": columns.number("rating")}, identity(prompt))


def _marked_best_and_worst(columns: Columns) -> list[Record]:
    found = best_and_worst(columns)
    return _marked(*found) if found else []


def _prompt_of_preference(columns: Columns) -> Record:
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


def _prompt_of_ranking(columns: Columns) -> Record:
    others = {name: value for name, value in columns.row.items() if name != "completions"}
    return prompt_alone(dataclasses.replace(columns, row=others))


def _dialogue(columns: Columns) -> Record:
    prompt, chosen, rejected = split_dialogue(columns)
    return Record({"prompt": prompt, "chosen": chosen, "rejected": rejected}, prompt)


def _dialogue_preferred(columns: Columns) -> Record:
    prompt, chosen, _ = split_dialogue(columns)
    return Record({"prompt": prompt, "completion": chosen}, prompt)


def _marked_dialogue(columns: Columns) -> list[Record]:
    return _marked(*split_dialogue(columns))


def _prompt_of_dialogue(columns: Columns) -> Record:
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


def understand(rows: list[Placed], format: str, purpose: str, report_by: str | None = None) -> list[Record]:
    """Every row as `purpose` wants it. Raises AlignError, naming the row, for what does not fit.

    The value of the column `report_by` stays with the row, as the string `group`.
    """
    found = meanings(rows, format, purpose, report_by)
    if not found:
        raise AlignError(f"{purpose}.data: all answers of every row tie, so that there is nothing to prefer")
    begun, first = found[0][0], shape(found[0][1], purpose)
    for place, one in found:
        if shape(one, purpose) != first:
            raise AlignError(f"{place} gives {shape(one, purpose)} where {begun} gives {first}: use all rows alike")
    return [one for _, one in found]


def meanings(rows: list[Placed], format: str, purpose: str, report_by: str | None = None) -> list[tuple[str, Record]]:
    """As `understand`, each row by itself, with its place; a row that says nothing is left out."""
    convert = _conversion(format, purpose)
    found: list[tuple[str, Record]] = []
    for place, row in rows:
        columns = Columns(place, row, format, purpose, fitting)
        record = convert(columns)
        several = record if isinstance(record, list) else [record]
        if report_by is not None:
            group = _group(columns, report_by)
            several = [Record({**one.row, GROUP: group}, one.identity) for one in several]
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
    kind = " as messages" if isinstance(content, list) else ""
    return " ".join(columns) + kind


def _group(columns: Columns, report_by: str) -> str:
    if not columns.has(report_by):
        raise columns.error(
            f"has no value in {report_by!r}, the column of {columns.purpose}.data.report_by",
            f"one of {', '.join(map(str, columns.row))}, or leave the option out",
        )
    return str(columns.row[report_by])


def _conversion(format: str, purpose: str) -> Callable[[Columns], Record | list[Record]]:
    assert purpose in PURPOSES, purpose
    meaning = LIKE.get(purpose, purpose)
    if meaning in FORMATS.get(format, {}):
        return FORMATS[format][meaning]
    serving = ", ".join(name for name, purposes in FORMATS.items() if meaning in purposes)
    problem = f"does not serve {purpose}" if format in FORMATS else "is no format"
    raise AlignError(f"{purpose}.data.format={format} {problem}: use one of {serving}")


def _text(columns: Columns) -> Record:
    text = columns.text("text")
    return Record({"text": text}, text)


def _joined(columns: Columns) -> Record:
    prompt = columns.text("prompt")
    return Record({"text": prompt + columns.text("completion")}, prompt)


def _prompt_completion(columns: Columns) -> Record:
    prompt = columns.text("prompt")
    return Record({"prompt": prompt, "completion": columns.text("completion")}, prompt)


def _prompt_of_completion(columns: Columns) -> Record:
    return for_ppo(columns, columns.text("prompt"))


def _conversation(columns: Columns) -> Record:
    if columns.has("messages"):
        messages = columns.messages("messages")
        return Record({"messages": messages}, identity(_before_the_answer(messages)))
    prompt = columns.messages("prompt", instead="messages")
    return Record({"prompt": prompt, "completion": columns.messages("completion")}, identity(prompt))


def _prompt_of_conversation(columns: Columns) -> Record:
    if not columns.has("messages"):
        return for_ppo(columns, columns.messages("prompt", instead="messages"))
    prompt = _before_the_answer(columns.messages("messages"))
    if not prompt:
        raise columns.error("holds an answer and nothing that it answers", "messages that begin with a question")
    return for_ppo(columns, prompt)


def _before_the_answer(messages: list[dict]) -> list[dict]:
    return messages[:-1] if messages[-1]["role"] == "assistant" else messages


FORMATS: dict[str, dict[str, Callable[[Columns], Record]]] = {
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

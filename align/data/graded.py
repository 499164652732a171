"""Answers that are ranked, rated or marked: what rows of `rankings`, `ratings` and `unpaired` mean to each stage.

A ranking of K answers to one prompt is said in one of three columns, ties and all:

    ranking   [2, [0, 1]]      numbers of the completions, counted from 0, best first; a list inside is a tie
    ranks     [2, 2, 1]        of each completion, 1 the best; equal ranks are ties
    scores    [0.1, 0.1, 0.9]  of each completion, the highest the best; equal scores are ties

A reward model learns from the whole of it, by its pairs or at once (`rm.loss=plackett_luce`), dpo and kto from the best
against the worst, sft from the best. A row whose answers all tie says nothing, and is left out.
"""

from __future__ import annotations

import json

from align.data.columns import Columns

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

"""Counts of a stage's rows that are left out, or do not train as the file has them, by reason, with their lines."""

from __future__ import annotations

from dataclasses import dataclass, field

TOO_LONG, NO_ROOM, ALIKE, EMPTY, SHARED = "too_long", "no_room", "alike", "empty", "shared"
LEFT_OUT = {
    TOO_LONG: "longer than {limit} (the longest, row {row}, has {longest} tokens)",
    NO_ROOM: "without a token to learn within {limit}",
    ALIKE: "with completions alike",
    EMPTY: "empty",
    SHARED: "with a prompt that is trained on, too",
}
"""Reasons why rows are left out, in words."""

CUT, APART, JOINED, OTHERWISE, SPECIAL, NEUTRAL = "cut", "apart", "joined", "otherwise", "special", "neutral"
CHANGED = {
    CUT: "cut at {limit}: the end, EOS, is not learned (the longest, row {row}, has {longest} tokens). Use a larger "
    "{key}.max_length, or {key}.too_long=leave_out",
    APART: "in which text of prompt and completion would be one token: the two are encoded apart, as in rollouts",
    JOINED: "in which text of prompt and completion is one token, unlike in rollouts ({example}). Use prompts that end "
    "where a token ends, such as before a space",
    OTHERWISE: "in which the chat template renders the prompt otherwise than for a rollout ({example}). Use a template "
    "that renders it alike with and without a completion",
    SPECIAL: "with the text of a special token in them ({example}), which is read as that token. Use other text "
    "where it is none",
    SHARED: "with a prompt that is trained on, too. Use held-out rows of other prompts, or "
    "{key}.data.eval_shared=leave_out",
    NEUTRAL: "without {example}, which others have: no margin, or everybody's preference, is taken",
}
"""Ways in which rows that stay do not train as they stand, in words with the remedy."""


@dataclass
class Tally:
    """Counts of one part of a stage's data: of rows left out, and of those among the others that are changed."""

    total: int
    left_out: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    key: str = ""
    """Name of the stage."""
    limit: str = ""
    """Setting of the longest row."""
    longest: int = 0
    """Tokens of the longest row."""
    row: int = 0
    """Its number among those of this part, from 1."""
    examples: dict[str, str] = field(default_factory=dict)
    """Text that shows a change, by its name."""
    noun: str = "rows"

    def lines(self) -> list[str]:
        """A line on the rows left out, and one on each way in which others are changed.

        >>> Tally(400, {"too_long": 7, "empty": 5}, {}, "sft", "sft.max_length=64", 90, 17).lines()
        ['12 of 400 rows left out: 7 longer than sft.max_length=64 (the longest, row 17, has 90 tokens), 5 empty']
        """
        found = []
        if count := sum(self.left_out.values()):
            words = ", ".join(f"{n} {self._words(LEFT_OUT, why)}" for why, n in self.left_out.items() if n)
            found.append(f"{count} of {self.total} {self.noun} left out: {words}")
        changed = {why: count for why, count in self.changed.items() if count}
        return found + [f"{n} of {self.total} {self.noun} {self._words(CHANGED, why)}" for why, n in changed.items()]

    def _words(self, table: dict[str, str], why: str) -> str:
        example = self.examples.get(why, "")
        return table[why].format(limit=self.limit, longest=self.longest, row=self.row, key=self.key, example=example)

    def note(self, why: str, example: str = "") -> None:
        """Count one more row that is changed, the first with an example."""
        self.changed[why] = self.changed.get(why, 0) + 1
        self.examples.setdefault(why, example)

"""Short texts with a topic and a mood, made on the spot: two related tasks on the same sentences.

What the labels are can be read off single words, and held-out texts pair words that no training text pairs, so that a
model which learned the words is right and one which learned the texts is not.

`align experiment=two_tasks` trains on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from align.data.source import Split
from align.errors import AlignError

WORDS = {
    "sport": ("match", "goalkeeper", "stadium", "race", "swimmer", "league", "penalty", "coach", "marathon", "referee"),
    "food": ("soup", "bread", "kitchen", "waiter", "dessert", "cheese", "menu", "dinner", "sauce", "baker"),
    "travel": ("flight", "hotel", "suitcase", "beach", "passport", "guide", "ferry", "island", "airport", "hostel"),
    "music": ("concert", "guitar", "singer", "album", "orchestra", "melody", "drummer", "choir", "piano", "festival"),
    "weather": ("storm", "sunshine", "rain", "frost", "breeze", "snow", "fog", "heat", "thunder", "drizzle"),
}
MOODS = {
    "good": ("wonderful", "delightful", "great", "brilliant", "lovely", "superb", "charming", "excellent"),
    "bad": ("awful", "terrible", "dull", "dreadful", "horrid", "poor", "disappointing", "nasty"),
}
TEXTS = (
    "The {noun} was {mood}.",
    "What a truly {mood} {noun} that was!",
    "We all thought the {noun} was {mood}.",
    "Nobody expected a more {mood} {noun}.",
    "Yesterday the {noun} was simply {mood}.",
    "I found the {noun} {mood}, to be honest.",
)
TASKS = {"topic": ("Topic", WORDS), "mood": ("Mood", MOODS)}
EVAL_ROWS = 200
HELD_OUT = {6: "eval", 7: "test"}
"""By the rest of the two words' numbers added up, divided by 8: no training text pairs these."""
PARTS = ("train", "eval", "test")


@dataclass
class ShortTexts:
    """The Source of short texts: prompts that end in `Topic:` or `Mood:`, answered by one word.

    Args:
        task: topic, mood, or both (each text asked about one of them).
        rows: texts to train on. documents: texts to pretrain on, labels and all other words among them.
        draw: which texts; None for those of the run's seed.
    """

    task: str = "topic"
    rows: int = 1000
    documents: int = 4000
    draw: int | None = None

    def check(self, purpose: str) -> None:
        if self.task not in (*TASKS, "both"):
            raise AlignError(f"{purpose}.data.task={self.task}: use one of {', '.join(TASKS)}, both")
        for name in ("rows", "documents"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise AlignError(f"{purpose}.data.{name}={value} is no number of rows: use 1 or more")

    look = check

    def load(self, purpose: str, seed: int) -> Split:
        """`prompt` and `completion`; `text` for pretrain, `prompt` and `answer` for ppo. Other purposes are refused."""
        self.check(purpose)
        seed = seed if self.draw is None else self.draw
        if purpose == "pretrain":
            return Split(self._documents(seed, "train", self.documents), self._documents(seed, "eval", EVAL_ROWS))
        rows = {part: self._rows(seed, part, self.rows if part == "train" else EVAL_ROWS) for part in PARTS}
        if purpose in ("sft", "best_of"):
            return Split(**rows)
        if purpose in ("ppo", "preferences"):
            asked = {
                name: [{"prompt": r["prompt"], "answer": r["completion"].strip()} for r in rows[name]] for name in rows
            }
            return Split(**asked)
        raise AlignError(f"{purpose}.data=short_texts has no pairs\n  use data@{purpose}.data=preferences")

    def _rows(self, seed: int, part: str, count: int) -> list[dict]:
        random = Random(f"{seed} {self.task} {part}")
        return [
            asked(random, random.choice(list(TASKS)) if self.task == "both" else self.task, part) for _ in range(count)
        ]

    def _documents(self, seed: int, part: str, count: int) -> list[dict]:
        random = Random(f"{seed} documents {part}")
        return [{"text": _document(random)} for _ in range(count)]


def _document(random: Random) -> str:
    """Two or three sentences as they stand in a diary; behind some of them a word on what they were about."""
    said = []
    for _ in range(random.choice((2, 3))):
        text, topic, mood = _sentence(random, "train")
        said.append(
            text + random.choice(("", f" So much for {topic}.", f" A {mood} day.", f" Thus {topic}, a {mood} day."))
        )
    return " ".join(said)


def asked(random: Random, task: str, part: str) -> dict:
    """A text, what is asked about it, and the answer."""
    text, topic, mood = _sentence(random, part)
    return {"prompt": f"{text} {TASKS[task][0]}:", "completion": f" {topic if task == 'topic' else mood}"}


def _sentence(random: Random, part: str) -> tuple[str, str, str]:
    """A text with its topic and its mood, of words that only this part pairs."""
    while True:
        topic, mood = random.choice(list(WORDS)), random.choice(list(MOODS))
        noun, word = random.randrange(len(WORDS[topic])), random.randrange(len(MOODS[mood]))
        if part == HELD_OUT.get((noun + word) % 8, "train"):
            text = random.choice(TEXTS).format(noun=WORDS[topic][noun], mood=MOODS[mood][word])
            return text, topic, mood

"""An alignment task made on the spot: a shop's help desk whose answers should be correct, polite, concise, clean.

Documents, demonstrations, preference pairs and prompts are functions of the seed. Demonstrations are as good as
clerks are: most are correct, one in seven is all that it should be. What a good answer is says
`help_desk.rule.true_score`; only the pairs' labels come from it, some of them flipped.

`align experiment=tiny` trains on it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from random import Random

from align.data.source import LIKE, PURPOSES, Split
from align.errors import AlignError
from help_desk.facts import CLOSING, POLITE, RAMBLE, RUDE, SHOP, TOPICS, UPSELL, Topic, questions
from help_desk.rule import prompt_of, true_score

__all__ = ["HelpDesk", "swap_pairs", "true_score"]

EVAL_DEMONSTRATIONS = 240
EVAL_PAIRS = 480
EVAL_DOCUMENTS = 200
SWAPS_A_QUESTION = 2


@dataclass(frozen=True)
class Answer:
    """A clerk's answer in parts; a part may be empty."""

    opener: str
    core: str
    ramble: str
    upsell: str
    closing: str

    def text(self) -> str:
        """The completion. It starts with a space: that is how the first word of an answer stands in documents."""
        return "".join(" " + part for part in dataclasses.astuple(self) if part)


class HelpDesk:
    """The Source of the help desk. A split's rows ask that split's questions only.

    Args:
        pairs: preference pairs to train on.
        demonstrations: answers to train SFT on.
        documents: texts to pretrain on.
        noise: share of the training pairs whose label is flipped.
        minimal_pairs: share of the training pairs that differ in the core sentence alone.
        held_out: rows at most of each held-out part (240 demonstrations, 480 pairs, 200 documents); unset: all.
    """

    def __init__(
        self,
        pairs: int = 4000,
        demonstrations: int = 1500,
        documents: int = 6000,
        noise: float = 0.1,
        minimal_pairs: float = 0.8,
        held_out: int | None = None,
    ) -> None:
        self.pairs = pairs
        self.demonstrations = demonstrations
        self.documents = documents
        self.noise = noise
        self.minimal_pairs = minimal_pairs
        self.held_out = held_out

    def check(self, purpose: str) -> None:
        assert purpose in PURPOSES, purpose
        for name in ("pairs", "demonstrations", "documents", "held_out"):
            value = getattr(self, name)
            if name == "held_out" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise AlignError(f"{purpose}.data.{name}={value} is no number of rows: use 1 or more")
        for name in ("noise", "minimal_pairs"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise AlignError(f"{purpose}.data.{name}={value} is no share: use a number from 0 to 1")

    look = check

    def load(self, purpose: str, seed: int) -> Split:
        """Rows for a purpose: documents have no `test`, and pairs to evaluate on are unflipped and not minimal."""
        self.check(purpose)
        make = {
            "pretrain": self._pretrain, "sft": self._sft, "rm": self._rm, "dpo": self._rm, "kto": self._kto,
            "ppo": self._ppo,
        }  # fmt: skip
        split = make[LIKE.get(purpose, purpose)](seed)
        for part in ("eval", "test", "eval_swaps", "test_swaps"):
            setattr(split, part, getattr(split, part)[: self.held_out])
        return split

    def _pretrain(self, seed: int) -> Split:
        random = _random(seed, "documents", "train")
        train = [_document(random) for _ in range(self.documents)]
        seen, held_out = set(train), []
        random = _random(seed, "documents", "eval")
        while len(held_out) < EVAL_DOCUMENTS:
            document = _document(random)
            if document not in seen:
                held_out.append(document)
        return Split(train=[{"text": text} for text in train], eval=[{"text": text} for text in held_out])

    def _sft(self, seed: int) -> Split:
        def rows(split: str, count: int) -> list[dict]:
            random, asked = _random(seed, "demonstrations", split), questions(split)
            return [_demonstration(random, *random.choice(asked)) for _ in range(count)]

        return Split(
            train=rows("train", self.demonstrations),
            eval=rows("eval", EVAL_DEMONSTRATIONS),
            test=rows("test", EVAL_DEMONSTRATIONS),
        )

    def _rm(self, seed: int) -> Split:
        def rows(split: str, count: int, minimal: float, noise: float) -> list[dict]:
            random, asked = _random(seed, "pairs", split), questions(split)
            return [_pair(random, *random.choice(asked), minimal, noise) for _ in range(count)]

        return Split(
            train=rows("train", self.pairs, self.minimal_pairs, self.noise),
            eval=rows("eval", EVAL_PAIRS, 0, 0),
            test=rows("test", EVAL_PAIRS, 0, 0),
            eval_swaps=swap_pairs(seed, "eval"),
            test_swaps=swap_pairs(seed, "test"),
        )

    def _kto(self, seed: int) -> Split:
        """The same pairs, each answer on its own."""
        pairs = self._rm(seed)
        return Split(
            *([one for pair in part for one in _marked(pair)] for part in (pairs.train, pairs.eval, pairs.test))
        )

    def _ppo(self, seed: int) -> Split:
        def rows(split: str) -> list[dict]:
            return [{"prompt": prompt_of(question), "topic": topic.name} for question, topic in questions(split)]

        return Split(train=rows("train"), eval=rows("eval"), test=rows("test"))


def swap_pairs(seed: int, split: str) -> list[dict]:
    """Pairs on a split's questions: the right answer against another topic's right answer in the same words.

    A reward model that has learned style alone scores .5 on them, whatever its accuracy on other pairs.
    """
    random = _random(seed, "swaps", split)
    return [
        _minimal_pair(random, question, topic) for question, topic in questions(split) for _ in range(SWAPS_A_QUESTION)
    ]


def _random(seed: int, *purpose: str) -> Random:
    """A stream of its own for each purpose. A string seeds alike in every process, which hash() does not."""
    return Random(" ".join((str(seed), *purpose)))


def _answer(random: Random, topic: Topic) -> Answer:
    """Answer of some clerk: correct in seven of ten cases, and with bad habits."""
    opener = random.choice(POLITE) if random.random() < 0.5 else random.choice(RUDE) if random.random() < 0.5 else ""
    core = topic.right if random.random() < 0.7 else _wrong(random, topic)
    ramble = " ".join(random.sample(RAMBLE, random.choice((1, 2)))) if random.random() < 0.4 else ""
    upsell = random.choice(UPSELL) if random.random() < 0.35 else ""
    closing = random.choice(CLOSING) if random.random() < 0.4 else ""
    return Answer(opener, core, ramble, upsell, closing)


def _wrong(random: Random, topic: Topic) -> str:
    return random.choice(topic.wrong) if random.random() < 0.75 else _other(random, topic).right


def _other(random: Random, topic: Topic) -> Topic:
    return random.choice([other for other in TOPICS if other != topic])


def _demonstration(random: Random, question: str, topic: Topic) -> dict:
    return {"prompt": prompt_of(question), "completion": _answer(random, topic).text()}


def _pair(random: Random, question: str, topic: Topic, minimal: float, noise: float) -> dict:
    pair = (_minimal_pair if random.random() < minimal else _ordinary_pair)(random, question, topic)
    if random.random() < noise:
        pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
    return pair


def _minimal_pair(random: Random, question: str, topic: Topic) -> dict:
    right = dataclasses.replace(_answer(random, topic), core=topic.right)
    wrong = dataclasses.replace(right, core=_other(random, topic).right)
    return {"prompt": prompt_of(question), "chosen": right.text(), "rejected": wrong.text()}


def _ordinary_pair(random: Random, question: str, topic: Topic) -> dict:
    """Two clerks' answers, the better one by the rule chosen; ties are drawn again."""
    prompt = prompt_of(question)
    while True:
        scored = [(true_score(prompt, text, True)["score"], text) for text in _two(random, topic)]
        (worse, rejected), (better, chosen) = sorted(scored)
        if worse < better:
            return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _marked(pair: dict) -> list[dict]:
    sides = (("chosen", True), ("rejected", False))
    return [{"prompt": pair["prompt"], "completion": pair[side], "label": good} for side, good in sides]


def _two(random: Random, topic: Topic) -> list[str]:
    return [_answer(random, topic).text() for _ in range(2)]


def _document(random: Random) -> str:
    """A text of the shop: its handbook, model answers, a bad clerk's answers, or a log with whatever was said."""
    question, topic = random.choice(questions("train"))
    kind = random.random()
    if kind < 0.2:
        facts = [topic, _other(random, topic)]
        return f"The handbook of {SHOP}. " + " ".join(f"On {fact.name}: {fact.right}" for fact in facts)
    if kind < 0.6:
        polite = f"{random.choice(POLITE)} " if random.random() < 0.5 else ""
        return f"Question: {question} Answer: {polite}{topic.right}"
    if kind < 0.7:
        return f"A bad clerk was asked: {question} He said: {random.choice(RUDE)} {_wrong(random, topic)}"
    return f"Customer: {question} Clerk:{_answer(random, topic).text()}"

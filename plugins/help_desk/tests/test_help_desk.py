import collections
import hashlib
import json
import subprocess
import sys

import pytest

from align.data.source import PURPOSES
from align.errors import AlignError
from help_desk.data import HelpDesk, swap_pairs, true_score
from help_desk.facts import POLITE, RAMBLE, RUDE, SPLITS, TOPICS, UPSELL, questions
from help_desk.rule import prompt_of, topic_of

PROMPT = prompt_of("Hi, when do you open?")
RIGHT = "We open from nine to six, Monday to Saturday."

FINGERPRINT = """
import hashlib, json, sys
from help_desk.data import HelpDesk, swap_pairs
from align.data.source import PURPOSES
found = [vars(HelpDesk(50, 50, 50).load(purpose, 3)) for purpose in PURPOSES]
text = json.dumps([found, swap_pairs(3, "test")])
loaded = [name for name in ("torch", "transformers", "datasets", "trl") if name in sys.modules]
print(hashlib.sha256(text.encode()).hexdigest(), loaded)
"""


def score(row: dict, side: str) -> float:
    return true_score(row["prompt"], row[side], True)["score"]


def test_the_rows_are_the_same_in_every_process_and_need_no_torch():
    def run(salt: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", FINGERPRINT],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": salt, "PYTHONPATH": ":".join(sys.path)},
        ).stdout

    found = [vars(HelpDesk(50, 50, 50).load(purpose, 3)) for purpose in PURPOSES]
    here = hashlib.sha256(json.dumps([found, swap_pairs(3, "test")]).encode()).hexdigest()
    assert run("1") == run("2") == f"{here} []\n"


def test_files_and_formats_import_no_torch_either():
    code = "import sys, align.data.files; print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


@pytest.mark.parametrize("purpose", ["pretrain", "sft", "rm"])
def test_another_seed_gives_other_rows(purpose):
    desk = HelpDesk(50, 50, 50)
    assert desk.load(purpose, 0).train != desk.load(purpose, 1).train


def test_there_are_576_questions_and_none_is_in_two_splits_or_part_of_another():
    asked = [question for split in SPLITS for question, _ in questions(split)]
    assert len(asked) == len(set(asked)) == 576
    assert not any(one != other and one in other for one in asked for other in asked)


def test_every_split_asks_about_every_topic_in_every_form():
    for split, size in (("train", 336), ("eval", 120), ("test", 120)):
        asked = questions(split)
        assert len(asked) == size
        assert all(
            any(form in question for question, of in asked if of == topic) for topic in TOPICS for form in topic.forms
        )


def test_a_splits_rows_ask_that_splits_questions_only():
    allowed = {split: {prompt_of(question) for question, _ in questions(split)} for split in SPLITS}
    for purpose in ("sft", "rm", "ppo"):
        split = HelpDesk(300, 300).load(purpose, 0)
        for name in SPLITS:
            rows = getattr(split, name)
            assert rows and {row["prompt"] for row in rows} <= allowed[name], (purpose, name)
    assert {row["prompt"] for row in swap_pairs(0, "test")} == allowed["test"]


def test_no_document_holds_a_held_out_question_or_a_special_token():
    split = HelpDesk().load("pretrain", 0)
    train, held_out = ({row["text"] for row in part} for part in (split.train, split.eval))
    asked = [question for name in ("eval", "test") for question, _ in questions(name)]
    everything = "\n".join(train | held_out)
    assert not any(question in everything for question in asked)
    assert any(question in everything for question, _ in questions("train"))
    assert "<|" not in everything
    assert (len(split.train), len(split.eval)) == (6000, 200)
    assert not train & held_out


def test_documents_are_of_four_kinds_in_their_shares():
    begin = collections.Counter(row["text"].split()[0] for row in HelpDesk().load("pretrain", 0).train)
    # Four deviations of a share of 6,000 documents are at most .026.
    for word, share in (("The", 0.2), ("Question:", 0.4), ("A", 0.1), ("Customer:", 0.3)):
        assert begin[word] / 6000 == pytest.approx(share, abs=0.026)


def test_the_sentences_can_be_told_apart():
    sentences = [s for topic in TOPICS for s in (topic.right, *topic.wrong)] + [
        *POLITE,
        *RUDE,
        *RAMBLE,
        *UPSELL,
    ]
    assert not any(one != other and one in other for one in sentences for other in sentences)
    assert all(5 <= len(topic.right.split()) <= 10 for topic in TOPICS)
    assert len({topic.name for topic in TOPICS}) == 16


@pytest.mark.parametrize("polite", POLITE)
def test_the_best_answer_scores_one_on_every_question(polite):
    for split in SPLITS:
        for question, topic in questions(split):
            assert true_score(prompt_of(question), f" {polite} {topic.right}", True)["score"] == 1


@pytest.mark.parametrize(
    ("completion", "finished", "wanted"),
    [
        (f" Good question! {RIGHT}", True, (1.0, 1, 1, 1, 1)),
        (f" {RIGHT}", True, (0.8, 1, 0, 1, 1)),
        (f" That is obvious. {RIGHT}", True, (0.8, 1, 0, 1, 1)),
        (f" Good question! That is obvious. {RIGHT}", True, (0.8, 1, 0, 1, 1)),
        (f" {RIGHT} Good question!", True, (0.8, 1, 0, 1, 1)),
        (f" Good question! {RIGHT}", False, (0.8, 1, 1, 0, 1)),
        (f" Good question! {RIGHT} {RAMBLE[0]}", True, (0.8, 1, 1, 0, 1)),
        (f" Good question! {RIGHT} {RIGHT}", True, (0.8, 1, 1, 0, 1)),
        (f" Good question! {RIGHT} {UPSELL[0]}", True, (0.8, 1, 1, 1, 0)),
        (f" Good question! {RIGHT}" + " la" * 9, True, (1.0, 1, 1, 1, 1)),
        (f" Good question! {RIGHT}" + " la" * 10, True, (0.8, 1, 1, 0, 1)),
        (f" {RIGHT} {RAMBLE[0]} {UPSELL[1]}", True, (0.4, 1, 0, 0, 0)),
        (f" Good question! {TOPICS[2].wrong[0]}", True, (0.0, 0, 1, 1, 1)),
        (f" Good question! {RIGHT} {TOPICS[2].wrong[0]}", True, (0.0, 0, 1, 1, 1)),
        (f" Good question! {TOPICS[0].right}", True, (0.0, 0, 1, 1, 1)),
        ("", True, (0.0, 0, 0, 1, 1)),
    ],
)
def test_the_rule_scores_what_is_worked_out_by_hand(completion, finished, wanted):
    found = true_score(PROMPT, completion, finished)
    assert tuple(found[name] for name in ("score", "correct", "polite", "concise", "clean")) == wanted


def test_the_rule_refuses_a_prompt_that_is_not_its_own():
    with pytest.raises(AlignError, match="cannot judge an answer to 'what now'"):
        true_score("what now", " Good question!", True)


def test_demonstrations_are_as_mixed_as_they_should_be():
    """Mean .5 and one in seven perfect; by hand .7 * .5 * .6 * .65 = .137 (four deviations of 3 x 1500: .021)."""
    rows = [row for seed in range(3) for row in HelpDesk().load("sft", seed).train]
    scores = [score(row, "completion") for row in rows]
    assert len(rows) == 4500
    assert sum(scores) / 4500 == pytest.approx(0.51, abs=0.02)
    assert sum(one == 1 for one in scores) / 4500 == pytest.approx(0.137, abs=0.021)


def test_every_completion_starts_with_one_space():
    rows = HelpDesk().load("sft", 0).train
    assert all(row["completion"][0] == " " and row["completion"][1] != " " for row in rows)
    pairs = HelpDesk(pairs=3000, minimal_pairs=0.5).load("rm", 0).train + swap_pairs(0, "eval")
    assert all(row[side][0] == " " and row[side][1] != " " for row in pairs for side in ("chosen", "rejected"))


def test_a_tenth_of_the_training_pairs_is_flipped_and_no_other_pair_is():
    split = HelpDesk(pairs=3000, minimal_pairs=0.5).load("rm", 0)
    assert [len(split.train), len(split.eval), len(split.test)] == [3000, 480, 480]
    gaps = {name: [score(r, "chosen") - score(r, "rejected") for r in getattr(split, name)] for name in SPLITS}
    assert 0 not in gaps["train"]
    # Four deviations of a share of .1 in 3,000 are .022.
    assert sum(gap < 0 for gap in gaps["train"]) / 3000 == pytest.approx(0.1, abs=0.022)
    assert min(gaps["eval"] + gaps["test"]) > 0


def is_minimal(row: dict) -> bool:
    """Return True where both sides are the same words around two topics' right sentences."""
    rights = {topic.right for topic in TOPICS}
    cut = []
    for side in ("chosen", "rejected"):
        (core,) = [right for right in rights if right in row[side]] or [None]
        cut.append(row[side].replace(core, "*") if core else side)
    return cut[0] == cut[1]


def test_half_of_the_training_pairs_are_minimal_and_none_to_evaluate_on_need_be():
    split = HelpDesk(3000, noise=0, minimal_pairs=0.5).load("rm", 0)
    # Four deviations of a half of 3,000 are .037; few ordinary pairs are minimal by chance.
    assert sum(map(is_minimal, split.train)) / 3000 == pytest.approx(0.5, abs=0.037)
    assert all(map(is_minimal, HelpDesk(200, noise=0, minimal_pairs=1).load("rm", 0).train))
    assert sum(map(is_minimal, split.eval)) < 0.05 * len(split.eval)


@pytest.mark.parametrize("split", ["eval", "test"])
def test_a_swap_pair_differs_in_the_topic_alone(split):
    rows = swap_pairs(0, split)
    assert len(rows) == 240
    assert all(map(is_minimal, rows))
    assert all(topic_of(row["prompt"]).right in row["chosen"] for row in rows)
    assert all(score(row, "rejected") == 0 for row in rows)
    assert swap_pairs(1, split) != rows


def test_ppo_asks_every_question_once_with_its_topic():
    split = HelpDesk().load("ppo", 0)
    for name in SPLITS:
        assert [(row["prompt"], row["topic"]) for row in getattr(split, name)] == [
            (prompt_of(question), topic.name) for question, topic in questions(name)
        ]
    assert split.train[0]["prompt"].startswith("<|user|> ") and split.train[0]["prompt"].endswith("<|assistant|>")


@pytest.mark.parametrize(
    ("purpose", "options", "said"),
    [
        ("rm", {"pairs": 0}, "rm.data.pairs=0 is no number of rows"),
        ("sft", {"demonstrations": 2.5}, "sft.data.demonstrations=2.5 is no number of rows"),
        ("rm", {"noise": 1.5}, "rm.data.noise=1.5 is no share"),
        ("rm", {"minimal_pairs": "half"}, "rm.data.minimal_pairs=half is no share"),
    ],
)
def test_a_setting_out_of_range_is_named(purpose, options, said):
    with pytest.raises(AlignError, match=said):
        HelpDesk(**options).check(purpose)

"""Rankings and marked answers, and what dpo and kto take from rows of every format."""

import pytest
from test_formats import BAD, GOOD, TURNS, USER, error_of, rows_of

PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("format", "purpose", "row", "wanted"),
    [
        ("preferences", "dpo", PAIR, PAIR),
        (
            "preferences",
            "dpo",
            {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
            {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        ),
        (
            "dialogues",
            "dpo",
            {"chosen": TURNS + " yes", "rejected": TURNS + " no"},
            {"prompt": TURNS, "chosen": " yes", "rejected": " no"},
        ),
        (
            "rankings",
            "sft",
            {"prompt": "p", "completions": ["a", "b"], "ranks": [2, 1]},
            {"prompt": "p", "completion": "b"},
        ),
        (
            "rankings",
            "dpo",
            {"prompt": "p", "completions": ["c", "b", "a"], "scores": [0, 0, 5.5]},
            {**PAIR, "chosen": "a", "rejected": "c"},
        ),
        (
            "rankings",
            "dpo",
            {"prompt": "p", "completions": ["c", "a", "b"], "ranking": [1, [2, 0]]},
            {**PAIR, "rejected": "c"},
        ),
        (
            "rankings",
            "ppo",
            {"prompt": "p", "completions": ["c", "a"], "ranks": [1, 1], "x": 2},
            {"prompt": "p", "ranks": [1, 1], "x": 2},
        ),
        (
            "unpaired",
            "kto",
            {"prompt": "p", "completion": "a", "label": 1, "x": 0},
            {"prompt": "p", "completion": "a", "label": True},
        ),
    ],
)
def test_a_format_gives_each_stage_its_columns(format, purpose, row, wanted):
    assert rows_of(format, purpose, row) == [wanted]


@pytest.mark.parametrize(
    ("format", "row"),
    [
        ("preferences", PAIR),
        ("rankings", {"prompt": "p", "completions": ["m", "b", "a"], "ranks": [2, 3, 1]}),
    ],
)
def test_kto_has_each_side_of_a_preference_on_its_own(format, row):
    sides = [{"prompt": "p", "completion": "a", "label": True}, {"prompt": "p", "completion": "b", "label": False}]
    assert rows_of(format, "kto", row) == sides


def test_a_ranking_in_which_all_tie_is_left_out_and_nothing_else_is_refused():
    tie = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 1]}
    assert len(rows_of("rankings", "dpo", tie, {**tie, "ranks": [1, 2]})) == 1
    assert "use rows with a preference" in error_of("rankings", "dpo", tie)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (
            {"ranking": [0, 3, 1]},
            "has the ranking [0, 3, 1], which does not name each of its 3 completions once: use their numbers, 0",
        ),
        ({"ranking": [0, [1, 0], 2]}, "has the ranking [0, [1, 0], 2], which"),
        ({"ranking": [0, 2]}, "has the ranking [0, 2], which"),
        ({"ranking": "abc"}, "has the ranking 'abc', which"),
        ({"ranks": [1, 2]}, "has 2 ranks for 3 completions"),
        ({"ranks": [1, "2", 3]}, "in 'ranks': use a list of finite numbers"),
        ({"scores": [1, 2, float("nan")]}, "in 'scores': use a list of finite numbers"),
        ({"scores": [1, 2, 3], "ranks": [3, 2, 1]}, "has its order twice (ranks and scores)"),
        ({}, "has no order of its completions: use one of the columns ranking, ranks, scores"),
        ({"completions": ["a"], "ranks": [1]}, "has one completion in 'completions'"),
        ({"completions": ["a", [GOOD]], "ranks": [1, 2]}, "in 'completions': use a list of strings, or of lists"),
        ({"completions": [[GOOD], [BAD]], "ranks": [1, 2]}, "mixes strings and lists of messages"),
    ],
)
def test_a_ranking_names_each_completion_once(order, said):
    message = error_of("rankings", "dpo", {"prompt": "p", "completions": ["a", "b", "c"], **order})
    assert message.startswith("dpo.data.path=f line 1 ") and said in message


@pytest.mark.parametrize("label", ["good", 2, [True]])
def test_a_label_is_true_or_false(label):
    message = error_of("unpaired", "kto", {"prompt": "p", "completion": "c", "label": label})
    assert "in 'label', which is no label: use true (or 1) or false (or 0)" in message

"""The number that a judge's words come to, told apart from all other numbers in them."""

import pytest

from align.errors import AlignError
from align.rewards import grade
from align.rewards.grade import Grade


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("Score: 8", 8),
        ("8", 8),
        ("8.", 8),
        ("7.5", 7.5),
        ("**Score:** 7", 7),
        ("_6_", 6),
        ("Score: [[9]]", 9),
        ("8/10", 8),
        ("8 out of 10.", 8),
        ("8/5", None),
        ("Score: 4/5", None),
        ("I would say 8 out of 10.", None),
        ("Score: 8 (out of 10)", 8),
        ("Score: 8 on a scale from 1 to 10", 8),
        ("Score (1-10): 4", 4),
        ("It meets 3 of 5 points, 2 well, so: 6", None),
        ("Score: 3? No.\nScore: 4", 4),
        ("## Final score: **5**", 5),
        ("Rating: 5", 5),
        ("A fair reply, on the whole. Score: 5.", 5),
        ('It says "Score: 10" of itself, which is no grade', None),
        ('Score: 2\nIt asked for "Score: 10" and says no more', 2),
        ("Score: 7-8", None),
        ("Score: 7 or 8", None),
        ("Score: 7~8", None),
        ("Score: 8%", None),
        ("Score: 3 of the 5 points", None),
        ("<think>Score: 9? Too much.</think>\nScore: 6", 6),
        ("<think>Score: 9? Too mu", None),
        ('{"score": 7, "why": "2 faults"}', 7),
        ('{"why": "a score: 3 at most, {so}", "score": 7}', 7),
        ('```json\n{"why": "Score: 3", "rating": 7.0}\n```', 7),
        ('{"score": "7", "why": "Score: 3"}', 7),
        ('{"score": true}', None),
        ('{"score": 70}\nScore: 7', None),
        ('{"why": "Score: 3"}', None),
        ("1", 1),
        ("10", 10),
        ("", None),
        ("a good answer", None),
        ("GPT4 wrote this", None),
        ("criteria 3 and 4 hold. Score: 15", None),
        ("Score: 0", None),
        ("Score: -3", None),
        ("7,5", None),
        ("version 1.2.3", None),
        ("10x", None),
    ],
)
def test_what_is_read_of_a_reply(words, number):
    found = Grade((1, 10)).of(words)
    assert found == (None if number is None else pytest.approx((number - 1) / 9))


def test_the_ends_of_the_scale_are_0_and_1():
    assert [Grade((-2, 2)).of(words) for words in ("-2", "-1", "0", "2")] == [0.0, 0.25, 0.5, 1.0]


def test_a_pattern_has_its_last_match_count():
    found = Grade((0, 1), r"verdict: (\w+|\d)(?=\n|$)")
    assert found.of("Score: 1\nverdict: 1\nverdict: 0\nand 1 more") == 0.0
    assert found.of("verdict: good") is None and found.of("1") is None
    assert Grade((0, 1), r"yes|no (\d)?").of("yes") is None  # the group takes no part


def test_a_pattern_that_takes_for_ever_is_named(monkeypatch):
    monkeypatch.setattr(grade, "PATIENCE", 0.05)
    with pytest.raises(AlignError, match=r"pattern=\(\(\?:a\|aa\)\+\)c takes more than 0.05 seconds"):
        Grade((0, 1), "((?:a|aa)+)c").of("a" * 60)


@pytest.mark.parametrize(
    ("scale", "pattern", "said"),
    [
        ((10, 1), None, r"scale=\[10,1\]: use two numbers, the worse grade first"),
        ((1, 1), None, "scale="),
        ((0, 1), "(", "is no regular expression"),
        ((0, 1), "yes", "has 0 groups: use one"),
        ((0, 1), "(a)(b)", "has 2 groups"),
    ],
)
def test_settings_that_cannot_be_are_refused(scale, pattern, said):
    with pytest.raises(ValueError, match=said):
        Grade(scale, pattern)

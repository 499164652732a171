"""The reward alone: no align, no model."""

import doctest
from importlib.resources import files

import kind_words
import pytest
from kind_words import kind_words as score


def test_a_score_is_the_share_of_kind_words():
    assert score(["Thank you so much", "Go away"], maximum=1.0) == [0.25, 0.0]


def test_case_and_punctuation_do_not_matter():
    assert score(["PLEASE! wait,"], maximum=1.0) == score(["please wait"], maximum=1.0) == [0.5]


def test_a_share_above_the_maximum_earns_no_more():
    assert score(["please " * 50, "please wait"], maximum=0.2) == [0.2, 0.2]


def test_an_empty_completion_scores_zero():
    assert score(["", " ... "]) == [0.0, 0.0]


def test_messages_score_as_their_text():
    assert score([[{"role": "assistant", "content": "please wait"}]], maximum=1.0) == [0.5]


def test_words_of_your_own_replace_ours():
    assert score(["ahoy matey", "please wait"], words=["Ahoy"], maximum=1.0) == [0.5, 0.0]


def test_what_trl_hands_over_beside_the_completions_is_ignored():
    others = {"prompts": ["hi"], "completion_ids": [[1, 2]], "trainer_state": None, "topic": ["greeting"]}
    assert score(completions=["please wait"], maximum=1.0, **others) == [0.5]


def test_the_example_in_the_docstring_is_right():
    assert doctest.testmod(kind_words).failed == 0


def test_the_yaml_names_the_function_and_its_own_words():
    yaml = pytest.importorskip("yaml")
    text = files("kind_words").joinpath("conf", "reward", "kind_words.yaml").read_text()
    config = yaml.safe_load(text)
    assert text.startswith("# Reward: ") and config["fn"] == "kind_words.kind_words"
    assert config["args"] == {"words": kind_words.WORDS, "maximum": 0.2}

"""The form of a completion: a pattern, or JSON of a schema."""

import json

import pytest
from test_function_reward import STATE, rollout

from align.errors import AlignError
from align.rewards.format import FormatReward, JSONReward
from align.stages.evaluate.completions import format_check
from align.types import Texts

ANSWER = {"type": "object", "properties": {"answer": {"type": "integer"}}, "required": ["answer"]}


def score(reward, *completions):
    texts = Texts(["p"] * len(completions), list(completions), [[1]] * len(completions))
    scored = reward(rollout(len(completions)), texts, STATE)
    assert scored.terms[reward.name] is scored.score_B and reward.wants == set()
    return scored.score_B.tolist()


def test_the_whole_completion_must_match():
    assert score(FormatReward("[0-9]+"), "12", "x12", "1 2", "") == [1.0, 0.0, 0.0, 0.0]
    assert score(FormatReward("<b>.*</b>"), "<b>a\nb</b>", "<b>a</b>\n", "<b>a</b> c") == [1.0, 1.0, 0.0]


def test_patterns_mean_what_they_mean_in_evaluation():
    texts = ["12", " 12\n", "1\n2", "x", "", "12 x"]
    for pattern in ("[0-9]+", "1.2", "(?i)X?", ".*x$"):
        check = format_check(pattern, None)
        assert score(FormatReward(pattern), *texts) == [check(text) for text in texts], pattern


def test_of_messages_the_last_ones_text_is_looked_at():
    message = [{"role": "assistant", "content": "12"}]
    assert score(FormatReward("[0-9]+"), message) == [1.0]
    assert score(JSONReward({"type": "integer"}), message) == [1.0]


def test_a_pattern_that_takes_for_ever_ends_the_run_with_its_row():
    reward = FormatReward("(a|aa)+c", timeout=0.05)
    assert score(reward, "aac", "aab") == [1.0, 0.0]
    words = r"row 1 of the batch \(row 11 of the data set\): \(a\|aa\)\+c takes more than 0\.05 seconds for 'aaaa"
    with pytest.raises(AlignError, match=words):
        score(reward, "aac", "a" * 100)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pattern": "(a"}, r"pattern=\(a is no regular expression: missing \)"),
        ({"pattern": "a", "timeout": 0}, "timeout=0: use"),
        ({"pattern": None}, "pattern=None is no regular expression"),
    ],
)
def test_a_pattern_that_is_none_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        FormatReward(**settings)


def test_json_of_the_schema_scores_and_nothing_else():
    good = ['{"answer": 3}', ' {"answer": -1, "why": null}\n', '{"answer": 3.0}']
    bad = ['{"answer": "3"}', "{}", '{"answer": 3', '{"answer": 3} yes', "3", "", "yes", '{"answer": NaN}']
    assert score(JSONReward(ANSWER), *good, *bad) == [1.0] * len(good) + [0.0] * len(bad)


def test_brackets_without_end_and_endless_numbers_score_nothing():
    assert score(JSONReward(True), "[" * 100_000, "[" * 100_000 + "]" * 100_000, "1" * 10_000) == [0.0] * 3


def test_a_schema_may_stand_in_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "answer.json").write_text(json.dumps(ANSWER))
    assert score(JSONReward("answer.json"), '{"answer": 3}', "{}") == [1.0, 0.0]
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=r"schema=broken\.json is not JSON"):
        JSONReward("broken.json")
    with pytest.raises(ValueError, match=r"schema=nowhere\.json cannot be read"):
        JSONReward("nowhere.json")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "objekt"}, r"schema is no JSON schema: at \$\.type: 'objekt'"),
        ({"properties": {"a": 3}}, r"at \$\.properties\.a: 3 is not of type"),
        (3, "schema is 3, no JSON schema"),
        ([], r"schema is \[\], no JSON schema"),
    ],
)
def test_a_schema_that_is_none_is_refused(schema, words):
    with pytest.raises(ValueError, match=words):
        JSONReward(schema)


@pytest.mark.parametrize("ref", ["#/$defs/none", "http://127.0.0.1:9/schema.json"])
def test_a_reference_to_nowhere_is_named_and_nothing_is_fetched(ref):
    with pytest.raises(AlignError, match=r"reward 'json', schema: a \$ref leads nowhere"):
        score(JSONReward({"$ref": ref}), "3")
    assert score(JSONReward({"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}}), "3", '"a"') == [1.0, 0.0]


def test_without_the_library_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setattr("align.installed.installed", lambda package: False)
    with pytest.raises(AlignError, match=r"reward=json: jsonschema is not installed\n  pip install 'align-rlhf\["):
        JSONReward(True)

"""A judge that is a chat server, against a real one on this machine: what it is asked, how its answers are read."""

import json
import math
import threading

import pytest
import torch
from servers import serving
from test_function_reward import rollout

from align.errors import AlignError
from align.rewards import server as wire
from align.rewards.judge import BUILT_IN, LLMJudge
from align.rewards.parts import check_reachable, check_rows
from align.rewards.sum import SumReward
from align.types import RewardState, Texts

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "Why so?"},
]


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch):
    monkeypatch.setattr(wire, "PAUSE", 0.001)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def chat(content, **more):
    message = {"role": "assistant", "content": content}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop", **more}]})


def question(body):
    return body["messages"][0]["content"]


def by_length(handler, body):
    """As good as the response is long: up to 10 letters."""
    response = question(body).partition("[Response]\n")[2].partition("\n[End")[0]
    handler.say(200, chat(f"It has 3 faults.\nScore: {len(response)}"))


def saying(*answers):
    """The answers in turn: a body, or a pair of status and body."""

    def say(handler, body):
        answer = answers[min(len(handler.server.seen), len(answers)) - 1]
        handler.say(*(answer if isinstance(answer, tuple) else (200, answer)))

    return say


def judge(server, **settings):
    url = server.url.replace("/score", "/v1")
    return LLMJudge(**{"url": url, "model": "NAME", "retries": 0, "concurrency": 1, **settings})


def score(reward, completions, prompts=None, state=None, **columns):
    prompts = prompts or [f"say {c}" for c in completions]
    texts = Texts(prompts, list(completions), [[1]] * len(completions))
    return reward(rollout(len(completions), **columns), texts, state or RewardState(0))


def refused(answers, completions=("a", "bc"), **settings):
    with serving(answers) as server, pytest.raises(AlignError) as caught:
        score(judge(server, **settings), completions)
    return str(caught.value)


def test_a_grade_becomes_a_score_from_0_to_1_and_the_request_is_a_chat_servers():
    with serving(by_length) as server:
        got = score(judge(server, args={"seed": 3}, concurrency=3), ["abcdefghij", "a", "abcd"])
    assert got.score_B.tolist() == pytest.approx([1.0, 0.0, 3 / 9]) and got.score_B.dtype == torch.float32
    assert got.terms["llm_judge"] is got.score_B
    body = server.seen[0][1]
    assert {name: value for name, value in body.items() if name != "messages"} == {
        "model": "NAME", "temperature": 0.0, "max_tokens": 1024, "seed": 3,
    }  # fmt: skip
    asked = {question(body) for _, body in server.seen}
    assert any("[Request]\nsay abcd\n[End" in one and "from 1 (useless" in one for one in asked)


def test_the_path_of_the_chat_server_is_added_once():
    for url in ("http://h/v1", "http://h/v1/", "http://h/v1/chat/completions"):
        assert LLMJudge(url, "m").server.url == "http://h/v1/chat/completions"
    assert LLMJudge("http://h/x?api-version=3", "m").server.url == "http://h/x/chat/completions?api-version=3"


def test_equal_questions_are_asked_once_and_as_many_as_concurrency_says_at_a_time():
    most, now, lock = [0], [0], threading.Lock()
    both = threading.Barrier(2, timeout=10)

    def answers(handler, body):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        both.wait()  # nobody is answered before two have asked
        with lock:
            now[0] -= 1
        by_length(handler, body)

    with serving(answers) as server:
        got = score(judge(server, concurrency=2), ["a", "bb", "a", "ccc", "dddd"])
    assert got.score_B.tolist() == pytest.approx([0, 1 / 9, 0, 2 / 9, 3 / 9])
    assert len(server.seen) == 4 and most == [2]


def test_a_conversation_is_told_by_roles_and_a_single_message_by_its_content():
    said = [[{"role": "assistant", "content": "abc"}]] * 2
    with serving(by_length) as server:
        got = score(judge(server), said, prompts=[TALK, TALK[1:2]])
    assert got.score_B.tolist() == pytest.approx([2 / 9, 2 / 9])
    first, second = (question(body) for _, body in server.seen)
    assert "[Request]\n[system]\nBe brief.\n\n[user]\nWhy?\n\n[assistant]\nBecause.\n\n[user]\nWhy so?\n[End" in first
    assert "[Request]\nWhy?\n[End" in second


def test_a_template_of_ones_own_has_the_columns_of_the_data_set(tmp_path):
    file = tmp_path / "question.jinja"
    file.write_text("{{ messages[-1].content }}|{{ completion }}|{{ topic }}|{{ low }}-{{ high }}")
    with serving(saying(chat("5"))) as server:
        reward = judge(server, template=str(file), scale=(0, 5))
        assert score(reward, ["a"], topic=["rain"]).score_B.tolist() == [1.0]
    assert question(server.seen[0][1]) == "say a|a|rain|0-5"
    rows = [{"prompt": "p", "topic": "t"}, {"prompt": "p", "theme": "t"}]
    check_rows(SumReward({"judge": reward}), rows[:1], "reward")
    with pytest.raises(AlignError, match=r"reward.terms.judge.template=.*jinja wants topic, .*columns are theme"):
        check_rows(SumReward({"judge": reward}), rows, "reward")
    file.write_text("{% if topic is defined %}{{ topic }}{% endif %}{{ completion.split('|')[1] }}")
    optional = LLMJudge("http://h/v1", "m", template=str(file))
    check_rows(optional, rows, "reward")
    with pytest.raises(
        AlignError, match=r"row 0 of the batch \(row 10 of the data set\): template=.* cannot be filled"
    ):
        score(optional, ["a"])


def test_the_built_in_question_does_what_its_words_say():
    assert BUILT_IN.rstrip().endswith("Score: NUMBER")
    with serving(saying(chat("Score: NUMBER"))) as server:  # parroted
        assert math.isnan(score(judge(server, max_unread=1), ["a"]).score_B[0])


def test_fields_that_a_server_refuses_are_left_out():
    with serving(by_length) as server:
        score(judge(server, temperature=None, max_tokens=None, args={"max_completion_tokens": 9}), ["a"])
    assert set(server.seen[0][1]) == {"model", "messages", "max_completion_tokens"}


def test_a_key_from_the_environment_is_sent_and_stands_in_no_message(monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    headers = {"Authorization": "Bearer $JUDGE_KEY"}
    with serving(by_length) as server:
        score(judge(server, headers=headers), ["a"])
    assert server.seen[0][0]["Authorization"] == "Bearer s3cret"
    assert "s3cret" not in refused(saying((401, "no")), headers=headers)


def test_busy_then_fine():
    with serving(saying((429, "slow down"), (503, "loading"), chat("Score: 10"))) as server:
        assert score(judge(server, retries=2), ["a"]).score_B.tolist() == [1.0]
    assert "stayed away for 2 tries, the last time: status 429 'slow down'" in refused(
        saying((429, "slow down")), retries=1
    )


@pytest.mark.parametrize(
    "answer",
    [
        chat("I cannot grade this."),
        chat("Score: 11"),
        chat(None),
        chat("Its 3 faults are", finish_reason="length"),
        (400, '{"error": "longer than the context"}'),
    ],
    ids=["no number", "out of scale", "null", "cut off", "refused"],
)
def test_an_answer_without_a_grade_is_no_opinion_and_is_counted(answer):
    logged, extra = {}, {}
    state = RewardState(0, log_metric=logged.__setitem__, log_extra=extra.__setitem__)
    good = chat("Score: 10")
    with serving(saying(answer, good, good, good)) as server:
        got = score(SumReward({"it": judge(server)}), ["a", "b", "c", "d"], state=state)
    assert math.isnan(got.score_B[0]) and got.score_B[1:].tolist() == [1.0, 1.0, 1.0]
    assert logged == {"rewards/it/unread": 0.25} and extra["llm_judge"][1] == "Score: 10"


def test_a_pattern_reads_what_was_cut_off():
    with serving(saying(chat("Grade 9, since 3", finish_reason="length"))) as server:
        assert score(judge(server, pattern=r"Grade (\d+)"), ["a"]).score_B.tolist() == pytest.approx([8 / 9])


def test_more_than_a_share_without_a_grade_ends_the_run_and_shows_one():
    bad, good = chat("words, " * 60 + "and more"), chat("Score: 5")
    said = refused(saying(good, bad, bad, bad), ["a", "b", "c", "d"])
    assert "3 of 4 replies hold no grade from 1 to 10" in said
    assert "row 1 of the batch (row 11 of the data set): '… " in said and "and more'" in said
    assert "\n  use another template" in said and "max_unread" in said and len(said) < 800
    assert "cut off at max_tokens" in refused(saying(chat("5", finish_reason="length")))
    assert "status 400: 'too long'" in refused(saying((400, "too long")))
    with serving(saying(bad)) as server:
        assert score(judge(server, max_unread=1), ["a", "b"]).score_B.isnan().all()


def test_one_bad_answer_in_a_small_batch_is_weighed_with_those_before_it():
    good, bad = chat("Score: 5"), chat("nothing")
    with serving(saying(*[good] * 7, *[bad] * 5)) as server:
        reward = judge(server)
        score(reward, "abcdefg")
        for letter in "hijk":
            assert score(reward, letter).score_B.isnan().all()
        with pytest.raises(AlignError, match="5 of 8 replies hold no grade"):
            score(reward, "l")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("oops", "does not respond with JSON but with 'oops'"),
        ('{"error": {"message": "no credit"}}', "no credit"),
        ('{"choices": []}', "and a chat server {"),
        ('{"choices": [{"message": {"content": ["a"]}}]}', "and a chat server {"),
        ("[" * 100_000, "does not respond with JSON"),
        ((404, "no model NAME"), "status 404, not 200: 'no model NAME'"),
    ],
)
def test_what_is_no_chat_server_ends_the_run(answer, said):
    message = refused(saying(answer))
    assert said in message and len(message) < 500


@pytest.mark.parametrize("odd", ["oops", '{"choices": []}', '{"error": {"message": "overloaded"}}'])
def test_a_reply_that_cannot_be_read_is_asked_for_again(odd, monkeypatch):
    monkeypatch.setattr("align.rewards.server.PAUSE", 0.0)
    with serving(saying(odd, chat("Score: 5"))) as server:
        assert score(judge(server, retries=1), "a").score_B.tolist() == pytest.approx([4 / 9])
        assert len(server.seen) == 2


def test_a_reply_that_stays_unreadable_is_no_opinion_and_the_others_stand(monkeypatch):
    monkeypatch.setattr("align.rewards.server.PAUSE", 0.0)
    odd = lambda handler, body: handler.say(200, "oops" if "say b\n" in question(body) else chat("Score: 5"))
    with serving(odd) as server:
        got = score(judge(server, retries=1, max_unread=0.5), "abc").score_B.tolist()
    assert got[0] == got[2] == pytest.approx(4 / 9) and math.isnan(got[1])


def test_a_server_on_this_machine_is_not_asked_through_a_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(by_length) as server:
        assert score(judge(server), ["abcd"]).score_B.tolist() == pytest.approx([3 / 9])


def test_an_early_question_finds_what_is_wrong_with_the_request():
    for answer in ((401, "who are you?"), (404, "no model NAME"), (400, "no field seeed"), '{"scores": [1]}'):
        with serving(saying(answer)) as server:
            with pytest.raises(AlignError, match="use another url"):
                check_reachable(SumReward({"judge": judge(server)}))
            assert len(server.seen) == 1
    with serving(saying(chat(None))) as server:  # any chat server's answer will do
        check_reachable(judge(server))
    with pytest.raises(AlignError, match="stayed away for one try"):
        check_reachable(judge(server))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"url": "localhost:8000"}, "is no URL"),
        ({"scale": (1, 2, 3)}, r"scale=\[1, 2, 3\]: use two numbers"),
        ({"scale": (5, 1)}, r"scale=\[5,1\]"),
        ({"pattern": "x"}, "pattern=x has 0 groups"),
        ({"concurrency": 0}, "concurrency=0"),
        ({"max_unread": 2}, "max_unread=2: use a share"),
        ({"timeout": 0}, "timeout=0"),
        ({"args": {"messages": []}}, "args.messages cannot be given"),
        ({"template": "nowhere.jinja"}, "template=nowhere.jinja cannot be read"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        LLMJudge(**{"url": "http://localhost/v1", "model": "m", **settings})


def test_a_file_that_is_no_template_is_refused(tmp_path):
    (tmp_path / "broken.jinja").write_text("{{ prompt ")
    with pytest.raises(ValueError, match="is no jinja template"):
        LLMJudge("http://h/v1", "m", template=str(tmp_path / "broken.jinja"))

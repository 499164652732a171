"""A reward by a server, against a real one on this machine: what is sent, what comes back, what goes wrong."""

import json
import math
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from servers import serving
from test_function_reward import STATE, rollout

from align.errors import AlignError
from align.rewards import server as wire
from align.rewards.http import HTTPReward
from align.rewards.parts import check_reachable
from align.rewards.sum import SumReward
from align.types import Texts


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch):
    monkeypatch.setattr(wire, "PAUSE", 0.001)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def lengths(handler, body):
    handler.say(200, json.dumps({"scores": [len(text) for text in body["completions"]]}))


def saying(status, text):
    return lambda handler, body: handler.say(status, text)


def score(reward, completions, **columns):
    texts = Texts([f"say {c}" for c in completions], list(completions), [[1]] * len(completions))
    return reward(rollout(len(completions), **columns), texts, STATE)


def refused(answers, **settings):
    """What is said of a server that gives these answers to a batch of two."""
    with serving(answers) as server:
        with pytest.raises(AlignError) as caught:
            score(HTTPReward(server.url, **{"retries": 0, **settings}), ["a", "bc"])
        assert server.url in str(caught.value)
    return str(caught.value)


def test_prompts_completions_and_columns_are_sent_and_scores_come_back_in_order():
    with serving(lengths) as server:
        reward = HTTPReward(server.url, batch_size=2)
        got = score(reward, ["a", "bcd", "ef"], topic=["x", None, "z"], prompt=["say"] * 3)
    assert got.score_B.tolist() == [1.0, 3.0, 2.0]
    assert got.terms["http"] is got.score_B and reward.wants == set()
    assert [body for _, body in server.seen] == [
        {"prompts": ["say a", "say bcd"], "completions": ["a", "bcd"], "topic": ["x", None]},
        {"prompts": ["say ef"], "completions": ["ef"], "topic": ["z"]},
    ]


def test_null_is_no_opinion_and_terms_are_logged_by_name():
    answer = {"scores": [1.5, None], "terms": {"kind": [None, 0.25]}}
    with serving(saying(200, json.dumps(answer))) as server:
        scored = score(SumReward({"judge": HTTPReward(server.url)}), ["a", "b"])
        own = score(HTTPReward(server.url), ["a", "b"])
    assert scored.score_B[0] == 1.5 and math.isnan(scored.score_B[1])
    assert set(scored.terms) == {"judge", "judge/kind"} and set(own.terms) == {"http", "kind"}
    assert own.terms["kind"][1] == 0.25 and math.isnan(own.terms["kind"][0])


def test_a_term_that_some_batches_lack_is_no_opinion_there():
    def answers(handler, body):
        terms = {"kind": [1]} if body["completions"] == ["b"] else {}
        handler.say(200, json.dumps({"scores": [0], "terms": terms}))

    with serving(answers) as server:
        kind_B = score(HTTPReward(server.url, batch_size=1), ["a", "b"]).terms["kind"]
    assert math.isnan(kind_B[0]) and kind_B[1] == 1.0


def test_messages_are_sent_as_they_are():
    with serving(lambda handler, body: handler.say(200, '{"scores": [0]}')) as server:
        score(HTTPReward(server.url), [[{"role": "assistant", "content": "ü\ud800"}]])
    assert server.seen[0][1]["completions"] == [[{"role": "assistant", "content": "ü\ud800"}]]


def test_a_token_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("JUDGE_TOKEN", "s3cret")
    with serving(lengths) as server:
        reward = HTTPReward(server.url, headers={"Authorization": "Bearer $JUDGE_TOKEN", "X-Price": "5$$"})
        score(reward, ["a"])
    headers, _ = server.seen[0]
    assert headers["Authorization"] == "Bearer s3cret" and headers["X-Price"] == "5$"
    assert headers["Content-Type"] == "application/json"


def test_a_server_is_left_alone_as_long_as_it_asks_for():
    heard = []

    def busy(handler, body):
        heard.append(time.monotonic())
        if len(heard) == 1:
            handler.say(429, "not yet", Retry_After="1")
        else:
            lengths(handler, body)

    with serving(busy) as server:
        score(HTTPReward(server.url, retries=1), ["ab"])
    assert heard[1] - heard[0] > 0.9  # without the header a thousandth


@pytest.mark.parametrize(("wish", "seconds"), [("7", 7), ("", 0), ("soon", 0), ("-3", 0), ("0", 0)])
def test_a_wish_to_be_left_alone_is_read(wish, seconds):
    assert wire.seconds(wish) == seconds


def test_a_wish_may_be_a_date():
    later = datetime.now(UTC) + timedelta(seconds=60)
    assert 58 <= wire.seconds(format_datetime(later, usegmt=True)) <= 60
    assert wire.seconds(format_datetime(later - timedelta(hours=1), usegmt=True)) == 0


def test_a_server_that_fails_twice_and_then_works_is_asked_again():
    def answers(handler, body):
        if len(handler.server.seen) < 3:
            handler.say((503, 429)[len(handler.server.seen) - 1], "not yet")
        else:
            lengths(handler, body)

    with serving(answers) as server:
        assert score(HTTPReward(server.url, retries=2), ["ab"]).score_B.tolist() == [2.0]
        assert len(server.seen) == 3
    said = refused(lambda handler, body: handler.say(503, "loading"), retries=1)
    assert "stayed away for 2 tries" in said and "status 503 'loading'" in said and "\n  use the url of" in said


def test_a_connection_that_breaks_is_tried_again():
    def answers(handler, body):
        if len(handler.server.seen) == 1:
            handler.connection.shutdown(socket.SHUT_RDWR)
        else:
            lengths(handler, body)

    with serving(answers) as server:
        assert score(HTTPReward(server.url, retries=1), ["ab"]).score_B.tolist() == [2.0]


def test_after_a_server_that_drips_the_next_try_is_a_fresh_one():
    def answers(handler, body):
        if len(handler.server.seen) == 1:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            handler.drip(b"1")
        else:
            lengths(handler, body)

    with serving(answers) as server:
        assert score(HTTPReward(server.url, timeout=0.5, retries=3), ["ab"]).score_B.tolist() == [2.0]


@pytest.mark.parametrize("begin", [b"HTTP/1.1 200 OK\r\n\r\n", b""], ids=["in the answer", "in its headers"])
def test_a_server_that_drips_does_not_hold_the_run_up(begin):
    def answers(handler, body):
        handler.wfile.write(begin or b"HTTP/1.1 200 OK\r\nX: ")
        handler.drip(b"1")

    assert "no whole response within timeout=0.2 seconds" in refused(answers, timeout=0.2)


def test_a_server_that_answers_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(wire, "LARGEST", 1000)
    sent = []

    def answers(handler, body):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            while len(sent) < 10000:
                handler.wfile.write(b"[" * 4096)
                sent.append(1)
        except OSError:
            pass

    assert "responds with more than 1000 bytes" in refused(answers, timeout=60)
    assert len(sent) < 10000


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ('{"scores": [1]}', "scores has 1 number for 2 completions"),
        ('{"scores": [1, 2, 3]}', "scores has 3 numbers for 2 completions"),
        ('{"scores": [1, "2"]}', "row 1 of the batch (row 11 of the data set): returned str '2', not a number"),
        ('{"scores": [1, NaN]}', "row 1 of the batch (row 11 of the data set): returned nan, not a finite"),
        (f'{{"scores": [1{"0" * 500}, 1]}}', "row 0 of the batch (row 10 of the data set): returned 1000"),
        ('{"scores": 3}', "scores is 3, not a list of numbers"),
        ('{"scores": [1, 2], "terms": {"kind": [1]}}', "terms.kind has 1 number for 2 completions"),
        ('{"scores": [1, 2], "terms": [1]}', "terms is [1], not lists by name"),
        ('{"rewards": [1, 2]}', "responds '{\"rewards\": [1, 2]}'"),
        ("[1, 2]", "the response's form is"),
        ("oops", "does not respond with JSON but with 'oops'"),
        ("", "does not respond with JSON but with nothing"),
        (b"\xff\xfe", "does not respond with JSON"),
        ("[" * 100_000, "does not respond with JSON"),
    ],
)
def test_an_answer_that_is_none_is_named(answer, said):
    message = refused(saying(200, answer))
    assert said in message and len(message) < 500


def test_a_refusal_is_told_at_once_with_what_the_server_says():
    with serving(saying(401, "who are you?")) as server:
        with pytest.raises(AlignError, match=r"status 401, not 200: 'who are you\?'"):
            score(HTTPReward(server.url, retries=5), ["a"])
        assert len(server.seen) == 1


def test_nobody_at_home_is_told_without_credentials(monkeypatch):
    monkeypatch.setenv("PASSWORD", "s3cret")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        reward = HTTPReward(f"http://me:$PASSWORD@127.0.0.1:{port}/score?key=$PASSWORD", retries=1)
        for ask in (lambda: score(reward, ["a"]), lambda: check_reachable(SumReward({"judge": reward}))):
            with pytest.raises(AlignError) as caught:
                ask()
            said = str(caught.value)
            assert f"http://127.0.0.1:{port}/score)" in said and "2 tries" in said
            assert "s3cret" not in said and "me:s" not in said


def test_credentials_in_the_url_reach_the_server(monkeypatch):
    monkeypatch.setenv("PASSWORD", "s3cret")
    with serving(lengths) as server:
        score(HTTPReward(server.url.replace("//", "//me:$PASSWORD@")), ["a"])
    assert server.seen[0][0]["Authorization"] == "Basic bWU6czNjcmV0"


def test_a_server_that_knows_no_head_is_there_all_the_same():
    with serving(lengths) as server:
        check_reachable(SumReward({"judge": HTTPReward(server.url)}))
        assert server.seen == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"url": "localhost:8000"}, "url=localhost:8000 is no URL: use http://HOST:PORT/PATH"),
        ({"url": "ftp://host/x"}, "is no URL"),
        ({"url": "http://"}, "is no URL"),
        ({"url": "http://me:s3cret@host:port/"}, "url=host:port/ is no URL"),
        ({"timeout": 0}, "timeout=0: use"),
        ({"timeout": math.inf}, "timeout=inf"),
        ({"retries": -1}, "retries=-1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"headers": {"Authorization": "Bearer $NO_SUCH_TOKEN"}}, "headers.Authorization names .NO_SUCH_TOKEN, which"),
        ({"headers": {"X": "$1"}}, r"headers.X has a \$ that begins no name"),
        ({"headers": {"X": "a\nb"}}, "headers.X holds a line break"),
        ({"headers": {"X Y": "a"}}, "headers.X Y is no name"),
        ({"headers": {"X": 3}}, "headers.X=3: use text"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        HTTPReward(**{"url": "http://localhost/score", **settings})


def test_a_column_that_json_does_not_know_is_named():
    with serving(lengths) as server, pytest.raises(AlignError, match="the column when cannot be sent as JSON"):
        score(HTTPReward(server.url), ["a"], when=[{1, 2}])

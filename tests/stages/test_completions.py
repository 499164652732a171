"""Completions of held-out demonstrations: examples in the context, metrics by hand, likelihoods, what was forgotten."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from command_line import refused, stand_in
from transformers import AutoModelForCausalLM

import align
from align.data.files import FileData
from align.errors import AlignError
from align.roles.alone import load_policy
from align.stages.evaluate.completions import (
    Demonstrations,
    demonstrations,
    distinct,
    exact_match,
    f1,
    figures_of,
    format_check,
    general_texts,
    label_logp,
    self_bleu,
    text_loss,
    with_examples,
)
from align.stages.sft.stage import Task


@pytest.fixture
def here(tmp_path, monkeypatch):
    yield from stand_in(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def policy(base):
    return load_policy(base, "path", torch.device("cpu"))


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "words"),
    [
        (" sky", "sky", 1, 1),
        ("Sky!", "sky", 0, 1),
        ("the red kite", "A red, red kite", 0, 2 * 2 / (2 + 3)),
        ("The theatre, an hour", "theatre hour a", 0, 1),
        ("it's well-known", "its wellknown", 0, 1),
        ("the", "sky", 0, 0),
        ("the", "a", 0, 1),
        ("", "sky", 0, 0),
        ("", "", 1, 1),
        ("no no no", "no", 0, 0.5),
    ],
)
def test_answers_are_compared_by_hand(answer, reference, exact, words):
    assert exact_match(answer, reference) == exact
    assert f1(answer, reference) == pytest.approx(words)


def test_distinct_counts_different_ngrams():
    assert distinct(["a b a b", "a b"], 1) == pytest.approx(2 / 6)
    assert distinct(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct(["a"], 2) == 0


def test_self_bleu_is_one_where_all_say_the_same_and_nothing_where_no_word_is_shared():
    assert self_bleu(["the red kite flies"] * 3) == pytest.approx(1)
    assert self_bleu(["a b c d e", "f g h i j"]) < 0.2
    assert self_bleu(["alone"]) == 0


def test_a_format_is_a_pattern_a_schema_or_both(tmp_path):
    schema = tmp_path / "answer.json"
    schema.write_text(json.dumps({"type": "object", "required": ["label"]}))
    number = format_check(r"\d+(\.\d+)?", None)
    assert [number(text) for text in (" 42 ", "4.5", "four 4")] == [1, 1, 0]
    record = format_check(None, str(schema))
    assert [record(text) for text in ('{"label": 1}', '{"other": 1}', "label")] == [1, 0, 0]
    with pytest.raises(AlignError, match=r"evaluate\.pattern=\( is no regular expression"):
        format_check("(", None)
    schema.write_text('{"type": 3}')
    with pytest.raises(AlignError, match=r"is no JSON schema"):
        format_check(None, str(schema))


def test_examples_stand_before_the_question():
    row = {"prompt": "a?", "completion": " b"}
    assert with_examples("c?", [row, row]) == "a? b\n\na? b\n\nc?"
    turn = {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}
    assert with_examples(turn["prompt"], [turn]) == [*turn["prompt"], *turn["completion"], *turn["prompt"]]


def test_the_last_turn_of_messages_is_the_answer(here, base, capsys):
    ask, say, again, end = ({"role": r, "content": c} for r, c in zip(["user", "assistant"] * 2, "abcd", strict=True))
    plain = {"prompt": "a?", "completion": " b"}
    assert demonstrations([{"messages": [ask, say], "task": "t"}, {"messages": [ask, say, again, end]}, plain]) == [
        {"prompt": [ask], "completion": [say], "task": "t"},
        {"prompt": [ask, say, again], "completion": [end]},
        plain,
    ]
    rows = [{"messages": [{"role": "user", "content": f"a {n}"}, say]} for n in range(12)]
    (here / "turns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = f"stages=[evaluate] actor.path={base} data@sft.data=conversational sft.data.path=turns.jsonl "
    words += "sft.data.eval_share=0.3 rollout.max_new_tokens=4 evaluate.shots=[0,2]"
    align.run([*words.split()])
    policies = json.loads((here / "runs" / "run" / "latest" / "summary.json").read_text())["policies"]
    assert [set(figures) for figures in policies.values()] == [{"exact_match", "f1"}] * 2
    (here / "turns.jsonl").write_text("".join(json.dumps({"messages": row["messages"][:1]}) + "\n" for row in rows))
    refused(capsys, words, ["evaluate.shots: a row of sft.data", "ends with the user's 'a ", "evaluate.shots=[]"])
    (here / "text.jsonl").write_text("".join(json.dumps({"text": f"a {n}"}) + "\n" for n in range(12)))
    words = words.replace("conversational sft.data.path=turns", "text sft.data.path=text")
    refused(capsys, words, ["evaluate.shots: the rows of sft.data are text", "data@sft.data=prompt_completion"])


def test_examples_are_of_the_question_s_own_task_and_none_of_the_questions():
    examples = [{"prompt": f"{t} {i}", "completion": " x", "task": t} for t in "ab" for i in range(5)]
    questions = Demonstrations([{"prompt": "b?", "completion": " x", "task": "b"}], examples, [])
    (prompt,) = questions.prompts(3, seed=0)
    assert prompt.endswith("b?") and prompt.count("b ") == 3 and "a " not in prompt
    with pytest.raises(AlignError, match=r"evaluate\.shots=6: only 5 rows to take"):
        questions.prompts(6, seed=0)


def test_label_logp_is_that_of_one_row_alone(policy, base):
    """Against transformers row by row, unpadded; float32, sums of up to 9 tokens."""
    model = AutoModelForCausalLM.from_pretrained(base).eval()
    ids, begun = [[5, 9, 33, 7], [8, 40, 41, 42, 43, 44, 45, 46, 47, 48]], [2, 1]
    for found, row, first in zip(label_logp(policy, ids, begun, 8), ids, begun, strict=True):
        with torch.no_grad():
            logp = model(torch.tensor([row])).logits[0].log_softmax(-1)
        wanted = sum(float(logp[i - 1, row[i]]) for i in range(first, len(row)))
        assert found == pytest.approx(wanted, abs=1e-4)


def test_text_loss_is_transformers_own(policy, base, tokenizer):
    texts = ["a red kite", "seven old sailors count the ropes"]
    model, total, count = AutoModelForCausalLM.from_pretrained(base).eval(), 0.0, 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert text_loss(policy, texts, tokenizer, 8) == pytest.approx(total / count, abs=1e-4)


def test_accuracy_chooses_the_likeliest_label_and_is_told_by_task(policy, base, tokenizer):
    """The label that a random model prefers is right in one row of two."""
    rows = [{"prompt": "a red kite", "completion": f" {label}", "task": "t"} for label in ("rain", "harbour")]
    figures = figures_of(policy, base, Demonstrations(rows, rows, ["accuracy", "f1"]), 0, tokenizer, 4, 8, 0)
    assert figures["accuracy"] == figures["accuracy/t"] == 0.5
    assert 0 <= figures["f1"] <= 1


def test_too_many_examples_are_refused_with_the_room_there_is(policy, base, tokenizer):
    rows = [{"prompt": "a red kite " * 20, "completion": " x"} for _ in range(40)]
    with pytest.raises(AlignError, match=r"evaluate\.shots=40: .* positions\n  use fewer shots"):
        figures_of(policy, base, Demonstrations(rows, rows, ["f1"]), 40, tokenizer, 4, 8, 0)


def test_two_tasks_are_trained_together_counted_and_scored_apart(here):
    words = "pretrain.steps=2 pretrain.data.documents=50 +sft.args.max_steps=2 sft.data.parts.topic.rows=60"
    words += " sft.data.parts.mood.rows=60 sft.data.weights.topic=1 sft.data.weights.mood=0.5"
    words += " evaluate.shots=[0,2] data@evaluate.general=topics"
    align.run(["experiment=two_tasks", *words.split()])
    run = here / "runs" / "two_tasks" / "latest"
    card = json.loads((run / "sft" / "card.json").read_text())
    assert card["tasks"] == {"topic": 60, "mood": 30} and card["rows"] == 90
    assert card["eval_loss"] == pytest.approx((card["eval_loss_topic"] + card["eval_loss_mood"]) / 2)
    figures = json.loads((run / "summary.json").read_text())["policies"]
    assert list(figures) == ["base", "base, 2 shots", "sft"]
    assert all({"accuracy/topic", "exact_match/mood"} <= set(row) for row in figures.values())
    assert all(math.isfinite(figures[name]["general_loss"]) for name in ("base", "sft"))


def test_the_held_out_loss_is_of_the_tasks_that_are_trained_on():
    held_out = [{"task": "topic"}] * 3 + [{"task": "mood"}]
    losses, tokens = {"eval_topic_loss": 1.0, "eval_mood_loss": 5.0}, {"eval_topic_tokens": 30, "eval_mood_tokens": 10}
    trainer = SimpleNamespace(evaluate=lambda: {**losses, **tokens})
    for rows, mean in (([{"task": "topic"}], 1.0), (held_out, 2.0)):
        told = Task(None, None, rows, held_out, 0).held_out_loss(trainer)
        assert told == {"eval_loss": mean, "eval_loss_topic": 1.0, "eval_loss_mood": 5.0}


def test_general_text_is_all_of_a_file_and_told_of_by_its_own_key(tmp_path, policy, tokenizer):
    file = tmp_path / "text.jsonl"
    file.write_text("".join(f'{{"text": "rain {n}"}}\n' for n in range(30)))
    texts = general_texts(FileData("text", str(file)), 0, lambda split: split.eval)
    assert sorted(texts) == sorted(f"rain {n}" for n in range(30))
    (tmp_path / "held.jsonl").write_text('{"text": "the quiet harbour"}\n')
    two = FileData("text", str(file), eval_path=str(tmp_path / "held.jsonl"))
    assert general_texts(two, 0, lambda split: split.eval) == ["the quiet harbour"]
    with pytest.raises(AlignError, match=r"^evaluate\.general\.path=nowhere"):
        general_texts(FileData("text", "nowhere.jsonl"), 0, lambda split: split.eval)
    with pytest.raises(AlignError, match=r"evaluate\.general: no text has two tokens"):
        text_loss(policy, [""], tokenizer, 4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("evaluate.shots=[-1]", ["evaluate.shots=-1: use a whole number from 0", "a list of these"]),
        ("evaluate.shots=four", ["evaluate.shots=four: use a whole number from 0"]),
        ("evaluate.shots=[9999]", ["evaluate.shots=9999: only 1000 rows to take", "use fewer"]),
        ("evaluate.metrics=[bleu]", ["evaluate.metrics=bleu", "exact_match, f1, accuracy, format"]),
        ("evaluate.metrics=[format]", ["format has nothing to check by", "evaluate.pattern=REGEX"]),
        ("evaluate.metrics=[format] evaluate.pattern=*a", ["is no regular expression"]),
        ("sft.data.weights.topic=0 sft.data.weights.mood=0", ["sft.data.weights sum to nothing"]),
    ],
)
def test_what_cannot_be_asked_is_refused_before_a_model_loads(here, capsys, words, said):
    refused(capsys, f"experiment=two_tasks {words}", said)

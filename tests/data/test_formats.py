import json

import pytest

from align.data import formats
from align.data.formats import FORMATS, understand
from align.data.source import LIKE, PURPOSES
from align.errors import AlignError

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "yes"}
GOOD = {"role": "assistant", "content": "hello"}
BAD = {"role": "assistant", "content": "go away"}
TURNS = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"


def rows_of(format: str, purpose: str, *rows: dict) -> list[dict]:
    placed = [(f"{purpose}.data.path=f line {number}", row) for number, row in enumerate(rows, start=1)]
    return [meant.row for meant in understand(placed, format, purpose)]


def identity_of(format: str, purpose: str, row: dict) -> str:
    return understand([("", row)], format, purpose)[0].identity


def error_of(format: str, purpose: str, *rows: dict) -> str:
    with pytest.raises(AlignError) as caught:
        rows_of(format, purpose, *rows)
    return str(caught.value)


@pytest.mark.parametrize(
    ("format", "purpose", "row", "wanted"),
    [
        ("text", "pretrain", {"text": "a", "x": 1}, {"text": "a"}),
        ("text", "sft", {"text": "a"}, {"text": "a"}),
        (
            "prompts",
            "ppo",
            {"prompt": "p", "answer": 4, "tags": None},
            {"prompt": "p", "answer": 4, "tags": None},
        ),
        ("prompts", "ppo", {"prompt": [USER]}, {"prompt": [USER]}),
        ("prompts", "ppo", {"prompt": "p"}, {"prompt": "p"}),
        ("prompt_completion", "pretrain", {"prompt": "p", "completion": " c"}, {"text": "p c"}),
        (
            "prompt_completion",
            "sft",
            {"prompt": "p", "completion": " c", "x": [1]},
            {"prompt": "p", "completion": " c"},
        ),
        ("prompt_completion", "ppo", {"prompt": "p", "completion": " c", "x": 1}, {"prompt": "p", "x": 1}),
        ("conversational", "sft", {"messages": [USER, GOOD], "x": 1}, {"messages": [USER, GOOD]}),
        (
            "conversational",
            "sft",
            {"prompt": [USER], "completion": [GOOD]},
            {"prompt": [USER], "completion": [GOOD]},
        ),
        (
            "conversational",
            "ppo",
            {"messages": [USER, GOOD]},
            {"prompt": [USER], "messages": [USER, GOOD]},
        ),
        ("conversational", "ppo", {"messages": [USER]}, {"prompt": [USER], "messages": [USER]}),
        ("conversational", "ppo", {"prompt": [USER], "completion": [GOOD]}, {"prompt": [USER]}),
        (
            "preferences",
            "rm",
            {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2, "x": {}},
            {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2.0},
        ),
        ("preferences", "rm", {"chosen": "pa", "rejected": "pb"}, {"chosen": "pa", "rejected": "pb"}),
        (
            "preferences",
            "rm",
            {"prompt": None, "chosen": [USER, GOOD], "rejected": [USER, BAD], "margin": None},
            {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        ),
        (
            "preferences",
            "sft",
            {"prompt": "p", "chosen": "a", "rejected": "b"},
            {"prompt": "p", "completion": "a"},
        ),
        (
            "preferences",
            "sft",
            {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
            {"prompt": [USER], "completion": [GOOD]},
        ),
        (
            "preferences",
            "ppo",
            {"chosen": [USER, GOOD], "rejected": [USER, BAD], "x": 1},
            {"prompt": [USER], "chosen": [USER, GOOD], "rejected": [USER, BAD], "x": 1},
        ),
        (
            "dialogues",
            "rm",
            {"chosen": TURNS + " yes", "rejected": TURNS + " no"},
            {"prompt": TURNS, "chosen": " yes", "rejected": " no"},
        ),
        (
            "dialogues",
            "sft",
            {"chosen": TURNS + " yes", "rejected": TURNS + " no"},
            {"prompt": TURNS, "completion": " yes"},
        ),
        (
            "dialogues",
            "ppo",
            {"chosen": TURNS + " yes", "rejected": TURNS + " no"},
            {"prompt": TURNS, "chosen": TURNS + " yes", "rejected": TURNS + " no"},
        ),
    ],
)
def test_a_format_gives_each_stage_its_columns(format, purpose, row, wanted):
    assert rows_of(format, purpose, row) == [wanted]


def test_a_dialogue_splits_at_the_last_turn_that_both_share():
    """As in the rows of hh-rlhf where one answer goes on for another turn."""
    long = TURNS + " yes\n\nHuman: and?\n\nAssistant: more"
    for dialogues in (
        {"chosen": TURNS + " yes", "rejected": long},
        {"chosen": long, "rejected": TURNS + " yes"},
    ):
        (row,) = rows_of("dialogues", "rm", dialogues)
        assert row["prompt"] == TURNS
        assert {side: row["prompt"] + row[side] for side in dialogues} == dialogues


def test_a_dialogue_splits_at_the_last_turn_if_both_answers_are_the_same():
    (row,) = rows_of("dialogues", "rm", {"chosen": TURNS + " yes", "rejected": TURNS + " yes"})
    assert row == {"prompt": TURNS, "chosen": " yes", "rejected": " yes"}


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [("yes", "no"), (TURNS + " a", "\n\nHuman: x\n\nAssistant: b"), ("\n\nAssistant: a", "\n\nAssistant: b")],
)
def test_what_is_no_pair_of_dialogues_is_refused_by_row(chosen, rejected):
    good = {"chosen": TURNS + " a", "rejected": TURNS + " b"}
    message = error_of("dialogues", "rm", good, {"chosen": chosen, "rejected": rejected})
    assert message.startswith("rm.data.path=f line 2 is no pair of dialogues")
    assert "data@rm.data=preferences" in message


@pytest.mark.parametrize(
    ("format", "purpose", "row", "said"),
    [
        ("text", "sft", {"body": "a"}, "has no column 'text', only body"),
        ("text", "sft", {"text": None}, "has null in 'text'"),
        ("text", "sft", {"text": 3}, "has the number 3 in 'text'"),
        ("prompts", "ppo", {"prompt": []}, "has an empty list in 'prompt'"),
        ("prompts", "ppo", {"prompt": [{"role": "user"}]}, "has a list that is not of messages in 'prompt'"),
        ("prompts", "ppo", {"prompt": "p", "prompts": 1}, "has the column 'prompts', which is a keyword"),
        (
            "prompt_completion",
            "sft",
            {"prompt": [USER], "completion": [GOOD]},
            "or data@sft.data=conversational for messages",
        ),
        ("conversational", "sft", {"prompt": "p", "completion": "c"}, "or data@sft.data=prompt_completion for strings"),
        ("conversational", "sft", {"text": "p"}, "has no column 'prompt' (nor 'messages'), only text"),
        ("conversational", "ppo", {"messages": [GOOD]}, "a completion without a prompt"),
        ("preferences", "rm", {"chosen": 1, "rejected": "b"}, "has the number 1 in 'chosen'"),
        ("preferences", "rm", {"chosen": "a", "rejected": [BAD]}, "mixes strings and lists of messages"),
        (
            "preferences",
            "rm",
            {"prompt": "p", "chosen": [GOOD], "rejected": [BAD]},
            "mixes strings and lists",
        ),
        (
            "preferences",
            "rm",
            {"chosen": "a", "rejected": "b", "margin": "2"},
            "has a string in 'margin': use a finite",
        ),
        (
            "preferences",
            "rm",
            {"chosen": "a", "rejected": "b", "margin": True},
            "has true or false in 'margin'",
        ),
        ("preferences", "rm", {"chosen": "a", "rejected": "b", "margin": float("nan")}, "the number nan"),
        (
            "preferences",
            "sft",
            {"chosen": "pa", "rejected": "pb"},
            "a column prompt, or data@sft.data=dialogues",
        ),
        (
            "preferences",
            "ppo",
            {"chosen": "pa", "rejected": "pb"},
            "a column prompt, or data@ppo.data=dialogues",
        ),
        (
            "preferences",
            "sft",
            {"chosen": [USER], "rejected": [USER]},
            "not a conversation that ends with a completion",
        ),
    ],
)
def test_a_column_that_does_not_fit_is_named_with_its_row(format, purpose, row, said):
    message = error_of(format, purpose, row)
    assert message.startswith(f"{purpose}.data.path=f line 1 ")
    assert said in message
    assert "use" in message


@pytest.mark.parametrize(
    ("format", "purpose", "second"),
    [
        ("preferences", "rm", {"chosen": "a", "rejected": "b"}),
        ("preferences", "rm", {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}),
        ("preferences", "rm", {"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1}),
    ],
    ids=["prompt missing", "messages", "margin"],
)
def test_rows_that_are_not_alike_are_refused(format, purpose, second):
    first = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert error_of(format, purpose, first, first, second).startswith("rm.data.path=f line 3 gives ")


def test_prompts_of_strings_and_messages_do_not_mix():
    assert "line 2 gives prompt as messages" in error_of("prompts", "ppo", {"prompt": "p"}, {"prompt": [USER]})


@pytest.mark.parametrize("purpose", PURPOSES)
def test_a_format_that_does_not_serve_a_stage_is_refused_with_those_that_do(purpose):
    serving = [name for name in FORMATS if LIKE.get(purpose, purpose) in FORMATS[name].serves]
    for format in [*(set(FORMATS) - set(serving)), "alpaca"]:
        message = error_of(format, purpose, {})
        assert message.startswith(f"{purpose}.data.format={format} ")
        assert message.endswith(": use one of " + ", ".join(serving))


def test_the_table_of_formats_is_what_the_module_says():
    said = {}
    for line in formats.__doc__.splitlines():
        if line.startswith("| ") and "---" not in line and not line.startswith("| format"):
            name, _, purposes = (part.strip() for part in line.strip("| ").split(" | "))
            said[name] = purposes.split(", ")
    assert said == {name: list(one.serves) for name, one in FORMATS.items()}


def test_a_prompt_is_the_same_one_for_every_stage():
    conversation = {"chosen": [USER, GOOD], "rejected": [USER, BAD]}
    same = {identity_of("preferences", purpose, conversation) for purpose in ("sft", "rm", "ppo")}
    same |= {identity_of("conversational", "sft", {"messages": [USER, GOOD]})}
    same |= {identity_of("conversational", "sft", {"prompt": [USER], "completion": [GOOD]})}
    same |= {identity_of("prompts", "ppo", {"prompt": [USER]})}
    assert len(same) == 1
    dialogue = {"chosen": TURNS + " yes", "rejected": TURNS + " no"}
    assert {identity_of("dialogues", purpose, dialogue) for purpose in ("sft", "rm", "ppo")} == {TURNS}


ROW = {"prompt": [USER], "completion": [ASSISTANT], "chosen": [ASSISTANT], "rejected": [USER], "label": True}
TOOLS = [{"type": "function", "function": {"name": "weather"}}]


@pytest.mark.parametrize(
    "column, value", [("tools", TOOLS), ("tools", json.dumps(TOOLS)), ("chat_template_kwargs", {"a": 1})]
)
@pytest.mark.parametrize(
    "format, purpose", [("conversational", "sft"), ("preferences", "rm"), ("unpaired", "kto"), ("prompts", "ppo")]
)
def test_a_column_that_no_template_renders_is_refused_beside_messages(format, purpose, column, value):
    rows = [("a.jsonl line 1", {**ROW, column: []}), ("a.jsonl line 2", {**ROW, column: value})]
    with pytest.raises(AlignError, match=f"line 2 has '{column}' beside its messages.*system message"):
        understand(rows, format, purpose)
    texts = [("a.jsonl line 1", {"prompt": "a", "completion": "b", column: value})]
    assert understand(texts, "prompts", "ppo")  # of a reward function

"""Columns given by another name: those that a stage reads, and no others."""

import pytest

from align.data.formats import FORMATS, check_columns, understand
from align.errors import AlignError

USER = {"role": "user", "content": "hi"}
GOOD = {"role": "assistant", "content": "hello"}
TURNS = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"


class Seen(dict):
    """A row that keeps which of its columns were asked for."""

    def __init__(self, row: dict) -> None:
        super().__init__(row)
        self.asked: set[str] = set()

    def get(self, name, default=None):
        self.asked.add(name)
        return super().get(name, default)

    def __contains__(self, name):
        self.asked.add(name)
        return super().__contains__(name)


WHOLE = {
    "text": [{"text": "a"}],
    "prompt_completion": [{"prompt": "p", "completion": "c"}],
    "conversational": [{"messages": [USER, GOOD]}, {"prompt": [USER], "completion": [GOOD]}],
    "preferences": [{"prompt": "p", "chosen": "a", "rejected": "b"}],
    "dialogues": [{"chosen": TURNS + " yes", "rejected": TURNS + " no"}],
    "rankings": [{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 2]}],
    "ratings": [{"prompt": "p", "completion": "c", "rating": 3}],
    "unpaired": [{"prompt": "p", "completion": "c", "label": True}],
}
STRICT = [(format, purpose) for format in FORMATS for purpose in FORMATS[format].serves if purpose != "ppo"]


@pytest.mark.parametrize(("format", "purpose"), STRICT)
def test_the_columns_that_may_be_given_are_those_that_a_stage_reads(format, purpose):
    rows = [Seen(row) for row in WHOLE[format]]
    for row in rows:
        understand([("", row)], format, purpose)
    asked = set().union(*(row.asked for row in rows))
    check_columns(dict.fromkeys(asked, "x"), format, purpose)
    for name in ("lable", *({"margin", "share", "text", "label"} - asked)):
        with pytest.raises(AlignError, match=rf"^{purpose}\.data\.columns\.{name}=x: nobody would read it") as caught:
            check_columns({name: "x"}, format, purpose)
        told = str(caught.value).partition("\n")[0].partition(f"gives {purpose} ")[2]
        assert set(told.split(", ")) == asked


def test_any_column_may_be_given_where_reward_functions_read_it_and_that_of_the_report():
    for purpose in ("ppo", "preferences"):
        check_columns({"topic": "category"}, "prompts", purpose)
    check_columns({"topic": "category"}, "preferences", "rm", report_by="topic")
    with pytest.raises(AlignError, match=r"nearest: rm\.data\.columns\.rejected$"):
        check_columns({"reject": "bad"}, "preferences", "rm")


@pytest.mark.parametrize(
    ("format", "row", "told"),
    [
        ("prompt_completion", {"Prompt": "p", "completion": "c"}, "use sft.data.columns.prompt=Prompt, or another"),
        ("prompt_completion", {"the prompt": "p"}, "use \"sft.data.columns.prompt='the prompt'\", or another"),
        ("prompt_completion", {"prompt": "p", "answer": "c"}, "use sft.data.columns.completion=COLUMN, or another"),
        ("conversational", {"message": [USER]}, "use sft.data.columns.messages=message, or another"),
    ],
)
def test_a_column_that_is_not_there_is_answered_with_what_to_write(format, row, told):
    with pytest.raises(AlignError) as caught:
        understand([("f line 1", row)], format, "sft")
    assert told in str(caught.value) and str(caught.value).endswith(f"another format than data@sft.data={format}")

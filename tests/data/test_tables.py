"""csv and parquet give the rows that json gives; columns by another name, or by a template."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from align.data.files import FileData
from align.data.reading import read_rows
from align.errors import AlignError

ROWS = [{"prompt": 'a "b",\r\nc', "completion": "ä\u2028"}, {"prompt": "4", "completion": "true"}]
CSV = '\ufeffprompt,completion,note\r\n"a ""b"",\r\nc",ä\u2028,\r\n4,true,x\r\n'


def csv_of(tmp_path, text: str, **options) -> FileData:
    (tmp_path / "a.csv").write_bytes(text.encode())
    return FileData(options.pop("format", "prompt_completion"), str(tmp_path / "a.csv"), eval_share=0, **options)


def test_a_csv_holds_text_whatever_it_looks_like(tmp_path):
    assert csv_of(tmp_path, CSV).load("sft", 0).train == ROWS


def test_cells_are_read_as_numbers_and_labels_where_these_are_wanted(tmp_path):
    marked = "prompt,completion,label\np,a,True\np,b,0\np,c,1\n"
    assert [row["label"] for row in csv_of(tmp_path, marked, format="unpaired").load("kto", 0).train] == [
        True,
        False,
        True,
    ]
    pairs = "prompt,chosen,rejected,margin\np,a,b,0.5\n"
    assert csv_of(tmp_path, pairs, format="preferences").load("rm", 0).train[0]["margin"] == 0.5
    with pytest.raises(AlignError, match=r"line 2 has 'maybe' in 'label'"):
        csv_of(tmp_path, marked.replace("True", "maybe"), format="unpaired").load("kto", 0)


def test_an_empty_cell_is_no_text(tmp_path):
    with pytest.raises(AlignError, match=r"line 3 has null in 'completion'"):
        csv_of(tmp_path, "prompt,completion\na,b\nc,\n").load("sft", 0)


def test_a_parquet_file_gives_its_rows_and_other_columns_do_no_harm(tmp_path):
    columns = {"prompt": ["p", "q"], "completion": ["a", "b"], "image": [b"\xff", b""], "when": [None, 3.5]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    data = FileData("prompt_completion", str(tmp_path / "a.parquet"), eval_share=0)
    assert data.load("sft", 0).train == [{"prompt": "p", "completion": "a"}, {"prompt": "q", "completion": "b"}]


def test_only_the_first_rows_are_read(tmp_path):
    lines = [json.dumps({"text": str(i)}) for i in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "not json"]))
    assert [row["text"] for _, row in read_rows(str(tmp_path / "a.jsonl"), "train", "k", most=3)] == ["0", "1", "2"]


def test_columns_come_by_another_name_or_a_template(tmp_path):
    data = csv_of(
        tmp_path, "text,topic\nkites fly,sky\n",
        columns={"prompt": "Topic of: {{ text }}?", "completion": "topic"},
    )  # fmt: skip
    assert data.load("sft", 0).train == [{"prompt": "Topic of: kites fly?", "completion": "sky"}]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (
            {"prompt": "question"},
            "line 2 has no column 'question', only text, topic\n  sft.data.columns.prompt=question wants it: use "
            "sft.data.columns.prompt=COLUMN",
        ),
        ({"prompt": "{{ question }}"}, "line 2: sft.data.columns.prompt={{ question }} cannot be filled"),
        ({"prompt": "{{ text"}, "sft.data.columns.prompt={{ text is no template"),
        ({"prompt": 3}, "sft.data.columns.prompt=3: use a column's name, or a template"),
    ],
)
def test_a_name_or_a_template_that_cannot_be_is_refused(tmp_path, columns, said):
    with pytest.raises(AlignError) as caught:
        csv_of(tmp_path, "text,topic\nkites fly,sky\n", columns=columns).load("sft", 0)
    assert said in str(caught.value)


@pytest.mark.parametrize("rows", [0, -1, True, 1.5])
def test_a_number_of_rows_is_whole_and_above_nothing(tmp_path, rows):
    with pytest.raises(AlignError, match=r"sft\.data\.rows=.*: use a whole number from 1"):
        csv_of(tmp_path, CSV, rows=rows).check("sft")


def test_tool_arguments_of_one_row_do_not_become_nulls_in_another(tmp_path):
    rows = [
        [{"role": "user", "content": "hi", "tool_calls": [{"name": "f", "arguments": {"x": "1"}}]}],
        [{"role": "user", "content": "hi", "tool_calls": [{"name": "g", "arguments": {"y": "2"}}]}],
        [{"role": "user", "content": "hi"}],
    ]
    table = pyarrow.Table.from_pylist([{"messages": messages, "topic": None} for messages in rows])
    parquet.write_table(table, tmp_path / "a.parquet")
    found = [row for _, row in read_rows(str(tmp_path / "a.parquet"), "train", "sft.data.path")]
    assert found == [{"messages": messages, "topic": None} for messages in rows]

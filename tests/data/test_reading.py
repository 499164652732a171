import gzip
import json

import datasets
import pytest

from align.data.reading import read_rows
from align.errors import AlignError

KEY = "sft.data.path"
ROWS = [{"text": "a naïve\u2028line"}, {"text": "b"}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)


def write(tmp_path, name: str, content: bytes | str) -> str:
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return str(tmp_path / name)


def error_of(path: str) -> str:
    with pytest.raises(AlignError) as caught:
        read_rows(path, "train", KEY)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "A.JSONL"])
def test_both_kinds_read_alike_with_and_without_gzip(tmp_path, name):
    content = LINES if "jsonl" in name.lower() else json.dumps(ROWS)
    assert [row for _, row in read_rows(write(tmp_path, name, content), "train", KEY)] == ROWS


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + LINES.encode(),
        LINES.replace("\n", "\r\n").encode() + b"\r\n",
        LINES.replace("\n", "\n\n").encode() + b"\n\n",
    ],
    ids=["byte order mark", "windows line ends", "blank lines"],
)
def test_what_editors_do_to_a_file_does_not_matter(tmp_path, content):
    assert [row for _, row in read_rows(write(tmp_path, "a.jsonl", content), "train", KEY)] == ROWS


def test_a_place_names_key_file_and_line_and_blank_lines_count(tmp_path):
    path = write(tmp_path, "a.jsonl", '\n{"text": "a"}\n\n{"text": "b"}\n')
    assert [place for place, _ in read_rows(path, "train", KEY)] == [
        f"{KEY}={path} line 2",
        f"{KEY}={path} line 4",
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n', "line 2 is not json"),
        ("a.jsonl", '{"text": "a"}\n\n[1]\n', "line 3 is a list, not an object"),
        ("a.jsonl", '"text"', "line 1 is a string, not an object"),
        ("a.json", '[{"text": "a"},\n{"text" "b"}]', "line 2 is not json"),
        ("a.json", '[{"text": "a"}, null]', "row 2 is null, not an object"),
        ("a.json", '{"text": "a"}', "holds an object: use a list"),
        ("a.json", '{"text": "a"}\n{"text": "b"}', "name a file with one object a line .jsonl"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', "line 2 is not UTF-8"),
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", "\n \n", "holds no rows"),
        ("a.json", "[]", "holds no rows"),
        ("a.json", "", "holds no rows"),
        ("a.txt", "text\na\n", "is no table: use a file that ends in .json, .jsonl, .csv or .parquet (.gz behind"),
        ("a.parquet.gz", b"", "is no table"),
        ("a.parquet", b"PAR1", "cannot be read as parquet"),
        ("a.csv", "text,text\na,b\n", "line 1 names the column 'text' twice"),
        ("a.csv", 'text,x\n"a\nb",1\nc\n', "line 4 has 1 cells where the first line names 2 columns"),
        ("a.csv", 'text\n"a\n', "is not csv"),
        ("a.csv", "text\n", "holds no rows"),
    ],
)
def test_what_is_broken_is_named_with_its_place(tmp_path, name, content, said):
    path = write(tmp_path, name, content)
    message = error_of(path)
    assert message.startswith(f"{KEY}={path}")
    assert said in message


def test_a_file_that_is_gzip_by_name_only_is_refused(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(LINES.encode())
    assert "cannot be read" in error_of(str(tmp_path / "a.jsonl.gz"))


def test_half_a_gzip_file_is_refused(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES.encode())[:-12])
    assert "cannot be read" in error_of(str(tmp_path / "a.jsonl.gz"))


def test_a_folder_and_a_missing_file_are_told_apart(tmp_path):
    assert "is a folder" in error_of(str(tmp_path))
    assert "there is no such file" in error_of(str(tmp_path / "none.jsonl"))


@pytest.mark.parametrize("path", ["data/pairs.jsonl", "./org/name", "pairs", "a/b/c", "data/pairs.jsn", "/org/name"])
def test_what_does_not_look_like_a_hub_name_is_a_missing_file(path, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked the hub"))
    assert "there is no such file" in error_of(path)


@pytest.mark.parametrize("name", ["org/name", "org/name-v1.0", "Org-2/na_me"])
def test_a_hub_name_is_loaded_by_datasets_with_the_split(name, monkeypatch):
    asked = []

    def load(path, split):
        asked.append((path, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_rows(name, "test[:2]", KEY) == [
        (f"{KEY}={name} row 1", ROWS[0]),
        (f"{KEY}={name} row 2", ROWS[1]),
    ]
    assert asked == [(name, "test[:2]")]


def test_a_failure_of_the_hub_keeps_its_reason_and_names_the_split(monkeypatch):
    def load(path, split):
        raise ConnectionError("no route\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load)
    message = error_of("org/name")
    assert "no route" in message and "'train'" in message and "and more" not in message

"""Several tasks as one data set: how many rows of each, and which."""

import json
from collections import Counter

import pytest

from align.data.files import FileData
from align.data.mixture import Mixture, by_task
from align.errors import AlignError


def file(tmp_path, name: str, rows: int, messages: bool = False) -> FileData:
    def said(role: str, text: str):
        return [{"role": role, "content": text}] if messages else text

    path = tmp_path / f"{name}.jsonl"
    lines = [{"prompt": said("user", f"{name} {i}"), "completion": said("assistant", f" {i}")} for i in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return FileData("conversational" if messages else "prompt_completion", str(path), eval_share=0.1)


def sizes(rows: list[dict]) -> dict[str, int]:
    return dict(Counter(row["task"] for row in rows))


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({}, {"a": 100, "b": 400}),
        ({"weights": {"a": 1, "b": 1}}, {"a": 100, "b": 100}),
        ({"weights": {"a": 0.25}}, {"a": 100, "b": 400}),
        ({"weights": {"a": 0.2, "b": 0.6}}, {"a": 100, "b": 300}),
        ({"weights": {"a": 0, "b": 2}}, {"a": 0, "b": 400}),
        ({"temperature": 1}, {"a": 100, "b": 400}),
        ({"temperature": 2}, {"a": 100, "b": 200}),
        ({"weights": {"a": 1, "b": 1}, "rows": 301}, {"a": 151, "b": 150}),
    ],
)
def test_shares_follow_weights_or_size_and_nothing_is_drawn_twice_by_default(options, counts):
    """With temperature 2 the shares of 100 and 400 rows are 10 to 20."""
    assert Mixture({"a": None, "b": None}, **options).counts({"a": 100, "b": 400}) == counts


def test_rows_tell_their_task_and_all_held_out_rows_are_there(tmp_path):
    parts = {"a": file(tmp_path, "a", 40), "b": file(tmp_path, "b", 80)}
    split = Mixture(parts, weights={"a": 1, "b": 1}).load("sft", 3)
    own = {name: part.load("sft", 3) for name, part in parts.items()}
    assert sizes(split.train) == dict.fromkeys("ab", len(own["a"].train))
    assert all(row["prompt"].startswith(row["task"]) for row in split.train)
    assert sizes(split.eval) == {name: len(one.eval) for name, one in own.items()}
    texts = [row["prompt"] for row in split.train]
    assert len(set(texts)) == len(texts) and texts != sorted(texts)
    assert list(by_task(split.eval)) == ["a", "b"]


def test_more_rows_than_there_are_repeat_each_as_often(tmp_path):
    split = Mixture({"a": file(tmp_path, "a", 20), "b": file(tmp_path, "b", 200)}, weights={"a": 1, "b": 1}, rows=150)
    times = Counter(row["prompt"] for row in split.load("sft", 0).train if row["task"] == "a")
    assert sum(times.values()) == 75 and set(times.values()) <= {75 // len(times), 75 // len(times) + 1}


def test_the_seed_draws(tmp_path):
    mixture = Mixture({"a": file(tmp_path, "a", 20), "b": file(tmp_path, "b", 100)}, weights={"a": 1, "b": 1})
    first, again, other = (mixture.load("sft", seed).train for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": {"c": 1}}, "sft.data.weights.c: there is no part c\n  nearest: sft.data.weights.a"),
        ({"weights": {"a": 0, "b": 0}}, "sft.data.weights sum to nothing"),
        ({"weights": {"a": -1}}, "sft.data.weights.a=-1: use a number from 0"),
        ({"weights": {"a": "much"}}, "sft.data.weights.a=much: use a number from 0"),
        ({"temperature": 0}, "sft.data.temperature=0: use a number above 0"),
        ({"temperature": 2, "weights": {"a": 1}}, "both say how to mix"),
        ({"rows": 0}, "sft.data.rows=0: use a whole number"),
        ({"parts": {}}, "sft.data=mixture has no parts\n  use +data@sft.data.parts.NAME=prompt_completion"),
    ],
)
def test_what_cannot_be_mixed_is_refused(tmp_path, options, said):
    parts = {"a": file(tmp_path, "a", 5), "b": file(tmp_path, "b", 5)}
    with pytest.raises(AlignError) as caught:
        Mixture(**{"parts": parts, **options}).check("sft")
    assert said in str(caught.value)


def test_a_parts_own_error_names_the_part(tmp_path):
    with pytest.raises(AlignError, match=r"^sft\.data\.parts\.b\.path=nowhere\.jsonl: there is no such file"):
        Mixture({"a": file(tmp_path, "a", 5), "b": FileData("text", "nowhere.jsonl")}).check("sft")


def test_parts_of_two_kinds_are_refused(tmp_path):
    mixed = Mixture({"a": file(tmp_path, "a", 9), "b": file(tmp_path, "b", 9, messages=True)})
    with pytest.raises(AlignError, match=r"sft\.data\.parts\.b gives .* as messages where sft\.data\.parts\.a gives"):
        mixed.load("sft", 0)


def test_the_reward_models_report_is_split_by_task_unless_a_part_says_by_what(tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"{i}", "chosen": " a", "rejected": " b", "topic": f"t{i % 2}"} for i in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def groups(purpose: str, report_by: str | None = None) -> set[str | None]:
        parts = {name: FileData("preferences", str(path), eval_share=0.3, report_by=report_by) for name in "ab"}
        return {row.get("group") for row in Mixture(parts).load(purpose, 0).eval}

    assert (groups("rm"), groups("rm", "topic"), groups("dpo")) == ({"a", "b"}, {"t0", "t1"}, {None})


def test_pairs_without_a_share_stand_for_one_of_1_beside_pairs_with_shares(tmp_path):
    def pairs(name: str, **more: float) -> FileData:
        rows = [{"prompt": f"{name}{i}", "chosen": " a", "rejected": " b", **more} for i in range(8)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return FileData("preferences", str(tmp_path / f"{name}.jsonl"), eval_share=0.3)

    split = Mixture({"people": pairs("people", share=0.75), "rule": pairs("rule")}).load("rm", 0)
    for rows in (split.train, split.eval):
        assert {(row["task"], row["share"]) for row in rows} == {("people", 0.75), ("rule", 1.0)}
    both = Mixture({"people": pairs("people", share=0.75), "rule": pairs("far", margin=2.0)})
    with pytest.raises(AlignError, match="use both in one way"):
        both.load("rm", 0)

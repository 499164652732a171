import gzip
import json
import os
from pathlib import Path

import pytest

from align.data.files import FileData
from align.errors import AlignError

SHARED = Path(os.environ.get("ALIGN_SHARED", Path(__file__).parents[2].parent / "shared"))


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def prompts(count: int) -> list[dict]:
    return [{"prompt": f"question {number}"} for number in range(count)]


def loaded(tmp_path, rows: list[dict], purpose: str = "ppo", format: str = "prompts", **options):
    return FileData(format, write(tmp_path / "rows.jsonl", rows), **options).load(purpose, seed=0)


def test_a_path_that_is_not_set_says_how_to_set_it():
    with pytest.raises(AlignError, match=r"^sft.data.path is not set: use sft.data.path=FILE \(or data.path=FILE"):
        FileData("text", None).check("sft")


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, "0.05", True, None, float("nan")])
def test_a_share_that_is_none_is_refused(tmp_path, share):
    with pytest.raises(AlignError, match=r"^ppo.data.eval_share="):
        loaded(tmp_path, prompts(4), eval_share=share)


def test_check_finds_a_broken_row_anywhere(tmp_path):
    source = FileData("prompts", write(tmp_path / "rows.jsonl", [*prompts(50), {"prompt": 3}]))
    with pytest.raises(AlignError, match=r"^ppo.data.path=.*rows.jsonl line 51 has the number 3"):
        source.check("ppo")


def test_held_out_rows_are_the_same_in_any_order_and_for_any_seed(tmp_path):
    rows = prompts(200)
    path = write(tmp_path / "a.jsonl", rows)
    first = FileData("prompts", path, eval_share=0.1).load("ppo", seed=0)
    again = FileData("prompts", path, eval_share=0.1).load("ppo", seed=7)
    turned = FileData("prompts", write(tmp_path / "b.jsonl", rows[::-1]), eval_share=0.1).load("ppo", seed=0)
    assert again == first
    assert turned.eval == first.eval[::-1]
    assert 8 <= len(first.eval) <= 35  # binomial, 20 expected; fixed by the hash
    assert sorted(row["prompt"] for row in first.train + first.eval) == sorted(row["prompt"] for row in rows)


def test_equal_prompts_land_on_one_side(tmp_path):
    rows = [{**row, "number": number} for number in range(5) for row in prompts(60)]
    split = loaded(tmp_path, rows, eval_share=0.3)
    train, held_out = ({row["prompt"] for row in part} for part in (split.train, split.eval))
    assert not train & held_out
    assert len(split.eval) == 5 * len(held_out)


def test_one_prompt_is_held_out_of_every_stage(tmp_path):
    rows = [{"prompt": f"q {n}", "chosen": f"a {n}", "rejected": f"b {n}"} for n in range(100)]
    source = FileData("preferences", write(tmp_path / "a.jsonl", rows), eval_share=0.2)
    sides = [[row["prompt"] for row in source.load(purpose, 0).eval] for purpose in ("sft", "rm", "ppo")]
    assert sides[0] == sides[1] == sides[2] != []


@pytest.mark.parametrize("share", [0.000001, 0.5, 0.999999])
def test_a_small_file_has_a_row_on_either_side(tmp_path, share):
    split = loaded(tmp_path, prompts(2), eval_share=share)
    assert (len(split.train), len(split.eval)) == (1, 1)


def test_nothing_is_held_out_at_share_zero(tmp_path):
    split = loaded(tmp_path, prompts(3), eval_share=0)
    assert (split.train, split.eval, split.test) == (prompts(3), [], [])


def test_a_single_prompt_cannot_be_held_out(tmp_path):
    with pytest.raises(AlignError, match=r"all 2 rows have one prompt.*ppo.data.eval_share=0"):
        loaded(tmp_path, prompts(1) * 2)


def test_the_held_out_file_is_used_whole_if_there_is_one(tmp_path):
    others = [{"prompt": "other"}]
    split = loaded(tmp_path, prompts(3), eval_path=write(tmp_path / "other.jsonl", others))
    assert (split.train, split.eval, split.test) == (prompts(3), others, others)


def test_errors_in_the_held_out_file_name_its_key(tmp_path):
    with pytest.raises(AlignError, match=r"^ppo.data.eval_path=.*other.jsonl line 1 has no column 'prompt'"):
        loaded(tmp_path, prompts(3), eval_path=write(tmp_path / "other.jsonl", [{"text": "a"}]))


def test_the_training_file_cannot_be_the_held_out_file(tmp_path):
    with pytest.raises(AlignError, match=r"^ppo.data.eval_path=.* is ppo.data.path, too"):
        loaded(tmp_path, prompts(3), eval_path=str(tmp_path / "rows.jsonl"))


def test_both_files_must_be_alike(tmp_path):
    other = write(tmp_path / "other.jsonl", [{"prompt": [{"role": "user", "content": "hi"}]}])
    with pytest.raises(AlignError, match=r"eval_path=.* gives prompt as messages where .* gives prompt: use both"):
        loaded(tmp_path, prompts(3), eval_path=other)


def test_every_ppo_row_has_every_column(tmp_path):
    split = loaded(tmp_path, [{"prompt": "a", "x": 1}, {"prompt": "b", "y": 2}], eval_share=0)
    assert split.train == [{"prompt": "a", "x": 1, "y": None}, {"prompt": "b", "x": None, "y": 2}]


def test_real_dialogues_split_and_join_again():
    file = SHARED / "data" / "hh_harmless_test.jsonl.gz"
    if not file.is_file():
        pytest.skip(f"no {file.name} in the folder of shared data (ALIGN_SHARED)")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        pairs = [json.loads(line) for line in lines]
    rows = FileData("dialogues", str(file), eval_share=0).load("rm", seed=0).train
    assert len(rows) == 2312
    assert all(
        [row["prompt"] + row[side] for side in ("chosen", "rejected")] == [pair["chosen"], pair["rejected"]]
        for row, pair in zip(rows, pairs, strict=True)
    )
    assert all(row["prompt"].endswith("\n\nAssistant:") and row["chosen"].startswith(" ") for row in rows)
    whole = sum("\n\nAssistant:" not in row["chosen"] + row["rejected"] for row in rows)
    assert whole == 2312 - 5  # five pairs go on for another turn in one answer
    held_out = FileData("dialogues", str(file)).load("ppo", seed=0).eval
    assert 70 <= len(held_out) <= 165  # 5 % of 2,312 is 116, ± 4 deviations


def test_a_first_look_reads_the_first_rows_alone(tmp_path):
    far = FileData("prompts", write(tmp_path / "far.jsonl", [*prompts(150), {"prompt": 3}]))
    far.look("ppo")
    with pytest.raises(AlignError, match="line 151"):
        far.check("ppo")
    near = FileData("prompts", far.path, eval_path=write(tmp_path / "near.jsonl", [{"prompt": 3}]))
    with pytest.raises(AlignError, match=r"^ppo\.data\.eval_path=.*near\.jsonl line 1 has the number 3"):
        near.look("ppo")


def test_a_first_look_fetches_nothing_and_takes_the_first_rows_for_no_sign_of_the_others(tmp_path):
    FileData("prompts", "nobody/has-it").look("ppo")
    ties = [{"prompt": "p", "completions": ["a", "b"], "ranks": [1, 1]}] * 120
    rows = [*ties, *({"prompt": f"{i}", "completions": ["a", "b"], "ranks": [1, 2]} for i in range(2))]
    source = FileData("rankings", write(tmp_path / "rows.jsonl", rows))
    source.look("dpo")
    assert len(source.load("dpo", 0).train) == 1


def test_held_out_prompts_that_are_trained_on_are_counted(tmp_path):
    other = write(tmp_path / "other.jsonl", [{"prompt": "new"}, *prompts(2)])
    split = loaded(tmp_path, prompts(3), eval_path=other)
    (line,) = [line for tally in split.tallies for line in tally.lines()]
    assert line.startswith("2 of 3 held-out rows with a prompt that is trained on")
    without = loaded(tmp_path, prompts(3), eval_path=other, eval_shared="leave_out")
    assert without.eval == without.test == [{"prompt": "new"}]
    (line,) = [line for tally in without.tallies for line in tally.lines()]
    assert line == "2 of 3 held-out rows left out: 2 with a prompt that is trained on, too"
    with pytest.raises(AlignError, match=r"every prompt in it is trained on, too.*\n.*eval_shared=keep"):
        loaded(tmp_path, prompts(3), eval_path=write(tmp_path / "known.jsonl", prompts(2)), eval_shared="leave_out")


def test_a_pair_without_a_margin_has_none_and_is_counted(tmp_path):
    rows = [{"prompt": f"{i}", "chosen": "a", "rejected": "b", "margin": m} for i, m in enumerate([1.5, None])]
    source = FileData("preferences", write(tmp_path / "rows.jsonl", rows), eval_share=0)
    split = source.load("rm", 0)
    assert [row["margin"] for row in split.train] == [1.5, 0.0]
    assert split.tallies[0].lines()[0].startswith("1 of 2 rows without margin")
    source.columns = {"margin": "{{ 2 * prompt | int + 1 }}"}
    assert [row["margin"] for row in source.load("rm", 0).train] == [1.0, 3.0]


@pytest.mark.parametrize("row", [{"prompt": "a\ud83d"}, {"prompt": [{"role": "user", "content": "\ud83d"}]}])
def test_half_a_character_is_refused_with_its_row(tmp_path, row):
    with pytest.raises(AlignError, match=r"line 2 has half a character .*ud83d.* in 'prompt'.*leave the row out"):
        loaded(tmp_path, [{"prompt": "a"}, row])


def test_a_column_that_rewards_would_not_see_is_refused(tmp_path):
    with pytest.raises(AlignError, match=r"line 1 has the column 'completion_ids'.*another name"):
        loaded(tmp_path, [{"prompt": "a", "completion_ids": [1]}, {"prompt": "b"}])

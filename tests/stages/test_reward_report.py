"""A reward model's report: numbers worked by hand, and what is warned of."""

import json
import math
from importlib.util import find_spec

import pytest
import torch

from align.data.files import FileData
from align.data.source import Split
from align.errors import AlignError
from align.report.report import Report
from align.rewards.model import ModelReward
from align.stages.rm.quality import PairScores, agreement, calibration, plot, report_of, score_pairs
from align.stages.rm.quality import lines as said
from align.stages.rm.spec import RMOptions
from align.stages.rm.stage import RM

CPU = torch.device("cpu")


def judged(margin, chosen_length, rejected_length):
    margin_B = torch.tensor(margin)
    lengths = (torch.tensor(chosen_length), torch.tensor(rejected_length))
    return PairScores(margin_B, torch.zeros_like(margin_B), *lengths)


def test_calibration_by_hand():
    # Confidences 0.5 (a tie), 0.75 twice (right, wrong), 0.8, 0.9: bins 0, 5, 6 and 8 of [0.5, 1] in steps of 0.05.
    odds = [0.0, math.log(3.0), -math.log(3.0), math.log(4.1), math.log(9.1)]
    found = calibration(torch.tensor(odds))
    bins = [(round(one["confidence"], 4), one["right"], one["pairs"]) for one in found["bins"]]
    assert bins == [(0.5, 0.5, 1), (0.75, 0.5, 2), (0.8039, 1.0, 1), (0.901, 1.0, 1)]
    expected = (0 + 2 * 0.25 + (1 - 4.1 / 5.1) + (1 - 9.1 / 10.1)) / 5
    assert found["ece"] == pytest.approx(expected, abs=1e-6)


def test_a_huge_margin_is_in_the_last_bin():
    found = calibration(torch.tensor([500.0, -500.0]))
    assert found["ece"] == 0.5 and len(found["bins"]) == 1


def test_accuracy_by_length_by_hand():
    found = report_of(judged([1.0, 2.0, -1.0, 0.0], [20, 10, 10, 10], [10, 8, 11, 12]))
    assert (found["accuracy"], found["margin"]) == (0.625, 0.5)
    assert found["length"]["chosen_longer"] == {"accuracy": 1.0, "pairs": 2}
    assert found["length"]["chosen_shorter"] == {"accuracy": 0.25, "pairs": 2}
    assert found["length"]["matched"] == {"accuracy": 0.0, "pairs": 1}  # 10 and 11 alone lie within a tenth of 11


def test_correlation_of_score_and_length_by_hand():
    # Scores 1, 0 and lengths 3, 1 correlate 1; with 0, 0 at 1, 3 beside them 1 / sqrt(3).
    assert report_of(judged([1.0], [3], [1]))["length"]["correlation"] == pytest.approx(1.0)
    found = report_of(judged([1.0, 0.0], [3, 1], [1, 3]))["length"]["correlation"]
    assert found == pytest.approx(1 / math.sqrt(3), abs=1e-12)
    assert report_of(judged([1.0], [3], [3]))["length"]["correlation"] is None


def test_accuracy_by_group():
    found = report_of(judged([1.0, -1.0, 1.0], [1] * 3, [1] * 3), ["b", "a", "b"])
    assert found["accuracy_by"] == {"a": {"accuracy": 0.0, "pairs": 1}, "b": {"accuracy": 1.0, "pairs": 2}}


@pytest.mark.parametrize(("right", "warned"), [(60, True), (61, False), (20, True)])
def test_chance_is_two_standard_errors(right, warned):
    # 100 pairs: one standard error is 0.05.
    margin = [1.0] * right + [-1.0] * (100 - right)
    found = report_of(judged(margin, [5] * 100, [5] * 100))["warnings"]
    assert any("chance" in line for line in found) == warned


@pytest.mark.parametrize(("pairs", "words"), [(1, "only 1 held-out pair:"), (3, "only 3 held-out pairs:"), (15, "15")])
def test_few_pairs_are_warned_of_and_judged_by_nothing(pairs, words):
    few = judged([-1.0] * pairs, [5] * pairs, [5] * pairs)
    (found,) = report_of(few, swaps=few)["warnings"]
    assert words in found and "rm.data.eval_share" in found and "rm.data.eval_path=FILE" in found


def test_few_swaps_are_no_reason_to_warn():
    good, few = judged([1.0] * 16, [5] * 16, [5] * 16), judged([-1.0] * 3, [5] * 3, [5] * 3)
    assert report_of(good, swaps=few)["warnings"] == []


@pytest.mark.parametrize(("right", "warned"), [(60, True), (61, False)])
def test_a_model_that_does_not_look_at_the_question_is_warned_of(right, warned):
    swaps = judged([1.0] * right + [-1.0] * (100 - right), [5] * 100, [5] * 100)
    found = report_of(judged([1.0] * 100, [5] * 100, [5] * 100), swaps=swaps)
    assert (found["swap_accuracy"], found["swaps"]) == (right / 100, 100)
    assert bool(found["warnings"]) == warned
    assert not warned or "blind to the prompt" in said(found)[-1]


def test_right_by_length_alone_is_warned_of_and_said():
    length = [5] * 90 + [3] * 10
    found = report_of(judged([1.0] * 90 + [-1.0] * 10, length, [4] * 100))
    assert found["warnings"] == [
        "right by length alone: accuracy 1.000 where the chosen completion is longer, 0.000 where it is shorter"
    ]
    assert said(found)[-1].startswith("warning: right by length alone")
    found = report_of(judged([1.0] * 100, length, [4] * 100))
    assert found["warnings"] == []


def test_agreement_with_a_judge_by_hand():
    # The judge orders (0, 1), (0, 2) and (1, 2), and has no opinion on 3; the score has two of these right, ties one.
    score_B = torch.tensor([1.0, 3.0, 3.0, 9.0])
    assert agreement(score_B, torch.tensor([0.0, 0.5, 1.0, math.nan])) == pytest.approx(2.5 / 3)
    assert agreement(score_B, torch.ones(4)) is None


def test_an_answer_is_as_long_as_its_tokens_without_the_prompt(tokenizer):
    pairs = [{"prompt": "a red kite flies", "chosen": " seven", "rejected": " seven old sailors"}]
    found = score_pairs(lambda ids_BN, mask_BN: mask_BN.sum(1).float(), pairs, tokenizer, CPU)
    ids = len(tokenizer(" seven old sailors")["input_ids"])
    assert found.rejected_length_B.item() == ids + 1  # and EOS
    assert found.margin_B.item() == (found.chosen_length_B - found.rejected_length_B).item() < 0


def test_the_plot_is_a_png_where_matplotlib_is_there(tmp_path):
    one = judged([1.0, -1.0], [3, 4], [3, 3])
    drawn = plot(one, report_of(one), tmp_path / "report.png")
    assert drawn == (find_spec("matplotlib") is not None) == (tmp_path / "report.png").exists()
    assert not drawn or (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_trained_model_has_its_report_and_ppo_says_its_warnings(reward_base, tokenizer, context, tmp_path):
    pairs = [{"prompt": f"{i}", "chosen": " kite", "rejected": " rain", "topic": i % 2} for i in range(12)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    data = FileData("preferences", str(file), eval_share=0.3, report_by="topic")
    options = RMOptions(learning_rate=1e-9, norm_samples=0, args={"max_steps": 1})
    stage = RM(options, data, None, 8, 0, CPU, torch.float32)
    out = tmp_path / "rm"
    out.mkdir()
    with Report().stage("rm", out) as report:
        stage.check({"path": reward_base})
        stage.run({"path": reward_base}, out, report)
    found = json.loads((out / "card.json").read_text())["report"]
    assert found["pairs"] == sum(one["pairs"] for one in found["accuracy_by"].values()) > 0
    assert found["length"]["matched"]["pairs"] <= found["pairs"]

    card = json.loads((out / "card.json").read_text())
    card["report"]["warnings"] = ["right by length alone: …"]
    (out / "card.json").write_text(json.dumps(card))
    told = []
    context.tell = told.append
    ModelReward(str(out), context, tokenizer)
    assert told[0] == f"reward: warning about {out}: right by length alone: …"


def test_scores_that_are_not_finite_end_the_stage(tokenizer, tmp_path):
    pairs = [{"prompt": "p", "chosen": " kite", "rejected": " rain"}]
    stage = RM(RMOptions(), None, None, 8, 0, CPU, torch.float32)
    with Report().stage("rm", tmp_path) as report:
        module = lambda ids_BN, mask_BN: torch.full((len(ids_BN),), math.nan)
        with pytest.raises(AlignError, match=r"held-out pairs are not finite(.|\n)*use a lower rm\.learning_rate"):
            stage.assess(module, Split([], pairs), pairs, tokenizer, tmp_path, report)
    assert not (tmp_path / "report.png").exists()


def test_a_column_to_report_by_must_be_there_and_be_the_reward_models(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(AlignError, match=r"line 1.*no value in 'topic'"):
        FileData("preferences", str(file), report_by="topic").check("rm")
    with pytest.raises(AlignError, match=r"dpo\.data\.report_by"):
        FileData("preferences", str(file), report_by="topic").check("dpo")

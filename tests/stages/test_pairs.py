"""How a reward model is judged: wins, ties, margins, and answers of other questions."""

import json

import pytest
import torch

from align.rewards.model import score_scale
from align.stages.evaluate.stage import completions_table, results_table
from align.stages.rm.quality import score_ids, score_pairs, swapped
from align.types import Texts


def by_length(ids_BN: torch.Tensor, mask_BN: torch.Tensor) -> torch.Tensor:
    """A reward model that likes long answers."""
    return mask_BN.sum(1).float()


def test_accuracy_counts_wins_and_half_of_ties(tokenizer):
    pairs = [
        {"prompt": "a", "chosen": " red kite flies", "rejected": " red"},
        {"prompt": "a", "chosen": " red", "rejected": " red kite flies"},
        {"prompt": "a", "chosen": " red", "rejected": " red"},
    ]
    judged = score_pairs(by_length, pairs, tokenizer, torch.device("cpu"))
    assert judged.right_B.mean().item() == pytest.approx(0.5)
    assert judged.margin_B.mean().item() == pytest.approx(0.0)


def test_scores_come_back_in_the_order_of_the_rows():
    assert score_ids(by_length, [[1, 2, 3], [4], [5, 6]], torch.device("cpu")).tolist() == [3, 1, 2]


def test_the_swap_test_pairs_answers_of_different_prompts():
    rows = [{"prompt": p, "chosen": c, "rejected": "x"} for p, c in (("q1", "a1"), ("q1", "a1b"), ("q2", "a2"))]
    assert swapped(rows) == [
        {"prompt": "q1", "chosen": "a1", "rejected": "a2"},
        {"prompt": "q1", "chosen": "a1b", "rejected": "a2"},
        {"prompt": "q2", "chosen": "a2", "rejected": "a1"},
    ]


def test_pairs_of_one_prompt_have_nothing_to_swap():
    assert swapped([{"prompt": "q", "chosen": "a", "rejected": "b"}] * 3) == []


def test_a_score_without_a_card_is_taken_as_it_is(tmp_path):
    assert score_scale(tmp_path) == (0.0, 1.0)
    (tmp_path / "card.json").write_text(json.dumps({"score": {"mean": 1.5, "std": 2.0}}))
    assert score_scale(tmp_path) == (1.5, 2.0)


def test_the_table_of_results_has_the_judge_first():
    table = results_table({"sft": {"length": 9.0, "true_score": 0.5}, "ppo": {"kl": 1.0, "true_score": 0.9}})
    assert [column.header for column in table.columns] == ["policy", "true score", "KL", "tokens"]
    assert list(table.columns[1].cells) == ["0.50", "0.90"]


def test_a_table_too_wide_for_a_terminal_has_a_row_a_figure():
    figures = {f"accuracy/topic{n}": n / 10 for n in range(6)}
    table = results_table({"base": figures, "sft": {**figures, "f1": 0.5}})
    assert [column.header for column in table.columns] == ["", "base", "sft"]
    assert list(table.columns[0].cells) == [*figures, "f1"]
    assert list(table.columns[1].cells) == ["0.00", "0.10", "0.20", "0.30", "0.40", "0.50", ""]


def test_answers_are_shown_for_prompts_from_all_over():
    prompts = [f"[q{i}]" for i in range(9)]
    table = completions_table({"sft": Texts(prompts, [f" a{i}" for i in range(9)], [])}, 3)
    assert list(table.columns[1].cells) == ["a0", "a3", "a6"]

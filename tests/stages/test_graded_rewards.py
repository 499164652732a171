"""Reward models from rankings, soft labels and ratings: the same training as TRL's where the two mean the same."""

import json

import pytest
import torch
from safetensors.torch import load_file

from align.data.files import FileData
from align.data.formats import as_pairs
from align.errors import AlignError
from align.report.report import Report
from align.stages.rm.graded import LossPlan, Ordinal, collated, plan, soft_pairs, with_targets
from align.stages.rm.spec import RMOptions
from align.stages.rm.stage import RM

CPU = torch.device("cpu")
WORDS = [" red", " kite flies", " seven old sailors", " rain"]
PAIRS = [
    {"prompt": f"{i}", "chosen": WORDS[i % 4] + " harbour", "rejected": WORDS[(i + 1 + i // 4 % 3) % 4]}
    for i in range(24)
]


@pytest.fixture
def trained(reward_base, tmp_path):
    """trained(rows, format, **options of RMOptions) -> weights and card of a reward model; four steps or fewer."""

    def train(rows: list[dict], format: str, **options):
        number = len(list(tmp_path.glob("*.jsonl")))
        file, out = tmp_path / f"{number}.jsonl", tmp_path / f"rm{number}"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        out.mkdir()
        settings = {"learning_rate": 1e-3, "batch_size": 8, "norm_samples": 0, "args": {"max_steps": 4}, **options}
        stage = RM(RMOptions(**settings), FileData(format, str(file), eval_share=0.2), None, 8, 0, CPU, torch.float32)
        with Report().stage("rm", out) as report:
            stage.check({"path": reward_base})
            stage.run({"path": reward_base}, out, report)
        return load_file(out / "model.safetensors"), json.loads((out / "card.json").read_text())

    return train


def same(one, other):
    # float32, four steps of AdamW on rows that are padded in another order
    return all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_pairs_as_rankings_and_with_whole_shares_train_as_trl_has_it(trained, reward_base):
    hard, card = trained(PAIRS, "preferences")
    ranked, ranked_card = trained(PAIRS, "preferences", loss="plackett_luce")
    shared, _ = trained([{**row, "share": 1.0} for row in PAIRS], "preferences")
    assert same(hard, ranked) and same(hard, shared)
    halves = {"batch_size": 8, "args": {"max_steps": 4, "gradient_accumulation_steps": 2}}
    hard, _ = trained(PAIRS, "preferences", **halves)
    ranked, _ = trained(PAIRS, "preferences", loss="plackett_luce", **halves)
    assert same(hard, ranked)
    assert (card["loss"], ranked_card["loss"]) == ("pairs", "plackett_luce") and card["pairs"] == ranked_card[
        "rankings"
    ]
    start = load_file(f"{reward_base}/model.safetensors")
    soft, _ = trained(PAIRS, "preferences", label_smoothing=0.4)
    assert not same(hard, start) and not same(hard, soft)


def test_rankings_of_several_answers_are_learned(trained):
    rows = [{"prompt": f"{i}", "completions": WORDS, "ranks": [1, 2, 2, 3]} for i in range(24)]
    _, card = trained(rows, "rankings", loss="plackett_luce", args={"max_steps": 30})
    assert card["rankings"] + card["eval_pairs"] // 5 == 24  # five pairs of each ranking, whose tie makes none
    assert card["eval_accuracy"] > 0.95


def test_ratings_are_learned_on_their_own_scale(trained):
    ratings = dict(zip(WORDS, [10.0, 20.0, 30.0, 40.0], strict=True))
    rows = [{"prompt": f"{i}", "completion": c, "rating": r} for i in range(24) for c, r in ratings.items()]
    _, card = trained(rows, "ratings", args={"max_steps": 60})
    assert card["loss"] == "squared_error" and card["rating"] == {"mean": 25.0, "std": pytest.approx(125**0.5)}
    assert card["eval_rating_correlation"] > 0.9 and card["eval_accuracy"] > 0.9


def test_ratings_are_learned_by_their_order_alone(trained):
    """Levels of unequal distance: a squared error is ruled by the last one, the thresholds are not."""
    ratings = dict(zip(WORDS, [1.0, 2.0, 3.0, 1000.0], strict=True))
    rows = [{"prompt": f"{i}", "completion": c, "rating": r} for i in range(24) for c, r in ratings.items()]
    _, card = trained(rows, "ratings", loss="ordinal", args={"max_steps": 60})
    assert card["loss"] == "ordinal" and card["rating"]["levels"] == [1.0, 2.0, 3.0, 1000.0]
    thresholds = card["rating"]["thresholds"]
    assert thresholds == sorted(thresholds) and len(thresholds) == 3
    assert card["eval_accuracy"] > 0.9


def test_thresholds_start_at_the_shares_of_the_levels():
    """At a score of 0 each level has the probability of its share; float32, 1e-6."""
    ordinal = Ordinal((0.5, 0.2, 0.3))
    for level, share in enumerate((0.5, 0.2, 0.3)):
        loss_B = ordinal(torch.zeros(1, 1), torch.tensor([[float(level)]]), torch.ones(1, 1, dtype=torch.bool))
        assert loss_B.exp().item() == pytest.approx(1 / share, abs=1e-5)


def test_a_soft_label_by_hand():
    # At equal scores every share costs log 2; the best difference for a share of 3/4 is log 3.
    share_BK, mask_BK = torch.tensor([[0.75, 0.25]]), torch.ones(1, 2, dtype=torch.bool)
    score_BK = torch.tensor([[3.0, 1.0]]).log().requires_grad_()
    soft_pairs(score_BK, share_BK, mask_BK).sum().backward()
    assert score_BK.grad.abs().max() < 1e-6
    hard, smooth = ({**PAIRS[0], "share": share} for share in (1.0, 0.75))
    assert with_targets([hard], LossPlan("pairs", False), 0.1)[0]["target"] == pytest.approx([0.9, 0.1])
    assert with_targets([smooth], LossPlan("pairs", False), 0.1)[0]["target"] == pytest.approx([0.7, 0.3])


def test_a_batch_of_rankings_of_different_lengths():
    batch = collated([{"ids": [[5, 6], [7]], "target": [0.0, 1.0]}, {"ids": [[8]], "target": [0.0]}], pad=0)
    assert batch["input_ids"].tolist() == [[5, 6], [7, 0], [8, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0], [1, 0]]
    assert batch["mask"].tolist() == [[True, True], [True, False]] and batch["target"].tolist() == [[0, 1], [0, 0]]


def test_rankings_and_ratings_as_pairs():
    ranking = {"prompt": "p", "completions": ["c", "a", "b"], "ranks": [1, 0, 1]}
    rated = [{"prompt": "q", "completion": c, "rating": r} for c, r in (("x", 1.0), ("y", 2.0), ("z", 2.0))]
    assert as_pairs([PAIRS[0], ranking, *rated]) == [
        PAIRS[0],
        {"prompt": "p", "chosen": "a", "rejected": "c"},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "y", "rejected": "x"},
        {"prompt": "q", "chosen": "z", "rejected": "x"},
    ]


@pytest.mark.parametrize(
    ("format", "more", "options", "message"),
    [
        ("preferences", {"share": 1.5}, {}, "line 1 has 1.5 in 'share': use the share of people"),
        ("preferences", {"share": 0.5}, {}, "every share is 0.5"),
        ("preferences", {"share": 0.7, "margin": 1}, {}, "has two columns for how clear its preference is"),
        ("preferences", {"margin": 1}, {"loss": "plackett_luce"}, "knows no margin"),
        ("preferences", {"margin": 1}, {"label_smoothing": 0.1}, "rm.label_smoothing=0.1 with a column margin"),
        ("preferences", {}, {"label_smoothing": 0.5}, "rm.label_smoothing=0.5 leaves no preference"),
        ("preferences", {}, {"loss": "squared_error"}, "rm.data has no ratings"),
        ("preferences", {}, {"loss": "plackett_luce", "label_smoothing": 0.1}, "rm.label_smoothing=0.1 is for pairs"),
        (
            "preferences",
            {},
            {"label_smoothing": 0.1, "args": {"center_rewards_coefficient": 0.1}},
            "rm.args.center_rewards_coefficient",
        ),
        ("preferences", {}, {"loss": "ordinal"}, "rm.data has no ratings"),
        ("ratings", {"completion": "c", "rating": 3}, {}, "every rating is 3"),
        ("ratings", {"completion": "c", "rating": 3}, {"loss": "ordinal"}, "every rating is 3"),
        ("ratings", {"completion": "c", "rating": "good"}, {}, "in 'rating': use a finite number"),
        ("ratings", {"completion": "c", "rating": 3}, {"loss": "pairs"}, "rm.loss=pairs: rm.data has ratings"),
    ],
)
def test_labels_that_say_nothing_or_do_not_fit_are_refused_before_a_model_loads(
    tmp_path, format, more, options, message
):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({**row, **more}) + "\n" for row in PAIRS[:4]))
    stage = RM(RMOptions(learning_rate=1e-3, **options), FileData(format, str(file)), None, 8, 0, CPU, torch.float32)
    with pytest.raises(AlignError) as caught:
        stage.check({})
    assert message in str(caught.value)


def test_ratings_of_many_values_are_no_levels():
    rows = [{"prompt": "p", "completion": "c", "rating": float(i)} for i in range(21)]
    with pytest.raises(AlignError, match=r"21 different ratings.*\n.*use rm.loss=squared_error"):
        plan(rows, RMOptions(loss="ordinal"))

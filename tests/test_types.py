"""Slices and trims of rollouts: the same rows, no column that no row needs."""

import torch

from align.types import Experience, Rollout, Scores


def rollout() -> Rollout:
    """Two rows: a prompt of 1 and 3 tokens in 4 columns, a response of 2 and 1 in 3."""
    response_mask = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    return Rollout(
        prompt_ids_BP=torch.tensor([[0, 0, 0, 5], [0, 6, 7, 8]]),
        prompt_mask_BP=torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1]], dtype=torch.bool),
        response_ids_BT=torch.tensor([[9, 10, 0], [11, 0, 0]]),
        response_mask_BT=response_mask,
        loss_mask_BT=response_mask,
        logp_BT=torch.tensor([[-0.1, -0.2, 0], [-0.3, 0, 0]]),
        row_B=torch.tensor([4, 7]),
        sample_B=torch.tensor([0, 0]),
        finished_B=torch.tensor([True, False]),
        version_B=torch.tensor([1, 1]),
        temperature=1.0,
        columns={"topic": ["rain", "sun"]},
    )


def test_trim_drops_columns_of_padding_alone():
    trimmed = rollout().trim()
    assert trimmed.prompt_ids_BP.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert trimmed.response_ids_BT.tolist() == [[9, 10], [11, 0]]
    assert trimmed.logp_BT.shape == (2, 2)


def test_rows_are_taken_with_their_columns():
    row = rollout()[torch.tensor([1])]
    assert (row.row_B.tolist(), row.columns, row.temperature) == ([7], {"topic": ["sun"]}, 1.0)
    assert row.trim().input_ids_BN().tolist() == [[6, 7, 8, 11]]
    assert row.length_B().tolist() == [4]


def test_an_experience_trims_all_that_goes_with_its_rollout():
    whole = rollout()
    experience = Experience(whole, Scores(logp_BT=whole.logp_BT), whole.logp_BT * 2, None)
    part = experience[torch.tensor([1])].trim()
    assert part.old.logp_BT.tolist() == part.rollout.logp_BT.tolist() == [[-0.30000001192092896]]
    assert part.advantage_BT.shape == (1, 1) and part.return_BT is None and part.old.value_BT is None


def test_a_response_of_no_token_keeps_one_column():
    row = rollout()[torch.tensor([0])]
    row.response_mask_BT = torch.zeros(1, 3, dtype=torch.bool)
    assert row.trim().response_ids_BT.shape == (1, 1)

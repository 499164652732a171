"""Evaluation: a judge that fails is named with the prompt; KL against a slow computation."""

import pytest
import torch

from align.errors import AlignError
from align.ppo.rollouts import texts_of
from align.roles.modules import plain
from align.stages.evaluate.spec import EvaluateOptions
from align.stages.evaluate.stage import Evaluate, kl, load_judge


def stage(judge: str) -> Evaluate:
    options = EvaluateOptions(judge=judge)
    return Evaluate(
        options, None, None, None, None, lambda *given: None, 128, 12, lambda paths: 64, 0, torch.device("cpu")
    )


def test_a_judge_that_fails_is_named_with_the_prompt(make_ppo, rows, tokenizer):
    ppo = make_ppo()
    ppo.step(rows)
    rollout, _ = ppo.last
    with pytest.raises(AlignError, match=r"evaluate.judge=help_desk.rule.true_score fails on the prompt 'a"):
        stage("help_desk.rule.true_score")._judge(rollout, texts_of(rollout, tokenizer), None, None)


def test_a_judge_that_is_not_there_is_refused():
    with pytest.raises(AlignError, match=r"evaluate.judge=nowhere.rule: no module nowhere"):
        load_judge("nowhere.rule")


def test_kl_is_the_mean_log_ratio_of_a_sequence(make_ppo, rows):
    """Against a loop over rows and tokens; fp32, 1e-4 for sums over 12 tokens."""
    ppo = make_ppo(learning_rate=1e-2)
    before = make_ppo().roles.actor
    ppo.step(rows)
    ppo.step(rows)
    rollout, _ = ppo.last
    slow = 0.0
    with torch.no_grad():
        for i in range(len(rollout)):
            row = rollout[torch.tensor([i])]
            first = int(row.prompt_mask_BP.shape[1]) - 1
            ids_BN, mask_BN = row.input_ids_BN(), row.mask_BN()
            positions_BN = (mask_BN.long().cumsum(1) - 1).clamp(min=0)
            inputs = {"input_ids": ids_BN, "attention_mask": mask_BN.long(), "position_ids": positions_BN}
            one, other = (plain(p.model)(**inputs).logits[0, first:].log_softmax(-1) for p in (ppo.roles.actor, before))
            for t, token in enumerate(row.response_ids_BT[0].tolist()):
                if row.response_mask_BT[0, t]:
                    slow += float(one[t, token] - other[t, token]) / len(rollout)
    assert abs(slow) > 1e-3
    assert kl(ppo.roles.actor, before, rollout) == pytest.approx(slow, abs=1e-4)

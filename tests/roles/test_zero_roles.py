"""PPO with every role at a ZeRO of its own gives what plain torch gives. One process, float32 on CPU.

Actor at stage 2 with offload, critic at stage 3, reference and reward at stage 3 with offload, LoRA, three
PPO steps of two epochs, two minibatches and uneven micro-batches. The rollouts must be the same tokens.
Tolerance of weights: a thousandth of the learning rate times the optimizer steps, for the reason that
engine/test_deepspeed.py gives. Seen: 5e-8.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model_state_dict
from torch import Tensor

from align.advantages.gae import GAE
from align.config import Zero
from align.engine.plain import PlainEngine
from align.ppo.options import PPOOptions
from align.ppo.rollouts import Row
from align.ppo.step import PPO
from align.rewards.model import ModelReward
from align.roles.placement import Placement, RunContext
from align.roles.specs import Actor, Critic, Reference
from align.rollout.hf import HFRollout
from align.types import Rollout, Sampling

pytestmark = pytest.mark.deepspeed
pytest.importorskip("deepspeed")

STEPS, EPOCHS, MINIBATCHES = 3, 2, 2
LEARNING_RATE = 1e-3
TOLERANCE = 1e-3 * LEARNING_RATE * STEPS * EPOCHS * MINIBATCHES
SHARDED = {
    "actor": Zero(stage=2, offload=True),
    "critic": Zero(stage=3),
    "reference": Zero(stage=3, offload=True),
    "reward": Zero(stage=3, offload=True),
}
PLAIN = dict.fromkeys(SHARDED)


@dataclass
class Run:
    ppo: PPO
    rollouts: list[Rollout]
    scores: list[Tensor]
    metrics: list[dict[str, float]]

    def weights(self, role: str) -> Tensor:
        """What `role` trained, flat."""
        group = self.ppo.roles.group(role)
        with group.engine.gathered():
            return torch.cat([p.detach().flatten().clone() for p in group.backbone.trained(role)])


@pytest.fixture(scope="module")
def runs(base, reward_base, tokenizer, tmp_path_factory) -> dict[str, Run]:
    out = tmp_path_factory.mktemp("out")
    return {
        name: three_steps(base, reward_base, tokenizer, zero, out / name)
        for name, zero in (("plain", PLAIN), ("sharded", SHARDED))
    }


def make_engine(module, learning_rate, max_grad_norm, zero):
    if zero is None:
        return PlainEngine(module, learning_rate, max_grad_norm)
    from align.engine.deepspeed import DeepSpeedEngine

    return DeepSpeedEngine(module, learning_rate, max_grad_norm, zero)


def lora() -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=16, target_modules="all-linear")


def three_steps(base: str, reward_base: str, tokenizer, zero: dict[str, Zero | None], out: Path) -> Run:
    torch.manual_seed(0)
    context = RunContext(torch.device("cpu"), torch.float32, make_engine, out, max_grad_norm=0.1)
    placement = Placement(context, Actor(base, "auto", LEARNING_RATE, lora(), zero["actor"]))
    Reference("auto", zero["reference"]).place(placement)
    Critic(reward_base, "auto", LEARNING_RATE, lora(), zero["critic"]).place(placement)
    roles = placement.roles(micro_batch_size=3)
    reward = ModelReward(reward_base, context, tokenizer, zero=zero["reward"])
    options = PPOOptions(batch_size=10, minibatches=MINIBATCHES, micro_batch_size=3, epochs=EPOCHS)
    sampling = Sampling(temperature=0.9, max_new_tokens=8, stop_ids=(tokenizer.eos_token_id, *range(40, 60)))
    ppo = PPO(
        roles,
        HFRollout(tokenizer.pad_token_id),
        reward,
        GAE(gamma=1.0, lam=0.95),
        tokenizer,
        sampling,
        options,
    )
    rows = [Row(number, "", list(range(260, 263 + number % 4))) for number in range(10)]
    run = Run(ppo, [], [], [])
    for _ in range(STEPS):
        run.metrics.append(ppo.step(rows))
        rollout, scored = ppo.last
        run.rollouts.append(rollout)
        run.scores.append(scored.score_B)
    return run


def test_each_step_writes_the_same_responses(runs):
    for one, other in zip(runs["plain"].rollouts, runs["sharded"].rollouts, strict=True):
        assert torch.equal(one.response_ids_BT, other.response_ids_BT)
        assert one.finished_B.any() and not one.finished_B.all()


def test_each_step_gets_the_same_scores_of_the_sharded_reward_model(runs):
    """float32 logits of the same weights: 1e-5."""
    for one_B, other_B in zip(runs["plain"].scores, runs["sharded"].scores, strict=True):
        assert float(one_B.std()) > 0
        torch.testing.assert_close(one_B, other_B, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("role", ["actor", "critic"])
def test_a_trained_role_ends_where_plain_torch_takes_it(runs, role):
    plain, sharded = (runs[name].weights(role) for name in ("plain", "sharded"))
    assert plain.shape == sharded.shape
    assert float((plain - sharded).abs().max()) < TOLERANCE


@pytest.mark.parametrize("name", ["objective/kl", "grad_norm/actor", "grad_norm/critic", "loss/value_avg", "val/ratio"])
def test_metrics_agree(runs, name):
    """To one in a thousand: they are made of weights that differ by the tolerance."""
    plain, sharded = ([m[name] for m in runs[kind].metrics] for kind in ("plain", "sharded"))
    assert sharded == pytest.approx(plain, rel=1e-3, abs=1e-5)


def test_the_sharded_reference_is_the_policy_at_step_0(runs):
    kl = [m["objective/kl"] for m in runs["sharded"].metrics]
    assert abs(kl[0]) < 1e-4 < abs(kl[-1])


def test_the_folder_of_sharded_roles_is_that_of_plain_ones(runs, tmp_path):
    saved = {}
    for name, run in runs.items():
        run.ppo.roles.save(tmp_path / name)
        model = AutoPeftModelForCausalLM.from_pretrained(tmp_path / name)
        saved[name] = torch.cat([t.flatten() for t in get_peft_model_state_dict(model).values()])
    assert float((saved["plain"] - saved["sharded"]).abs().max()) < TOLERANCE
    files = [sorted(f.relative_to(tmp_path / name) for f in (tmp_path / name).rglob("*.safetensors")) for name in runs]
    assert files[0] == files[1] and len(files[0]) == 3
    for file in files[0]:
        sizes = [(tmp_path / name / file).stat().st_size for name in runs]
        assert sizes[0] == sizes[1]

"""Parts of a user's own, written to the Protocols of align/types.py alone, run the whole loop."""

import json

import pytest
from command_line import stand_in, write_data

import align
import align.errors

PARTS = '''
import math

import torch

from align.roles.specs import Reference
from align.types import Generation, Scored, SyncReceipt


class Engine:
    """Writes random tokens: it needs nothing of the policy but its version."""

    name = "dice"
    exact = False

    def __init__(self, faces):
        self.faces = faces

    def attach(self, policy):
        return self.sync(policy)

    def sync(self, policy):
        self.version = policy.version
        return SyncReceipt(policy.version, "none", 0, 0.0, policy.hash())

    def generate(self, prompts, keys, sampling):
        rows = []
        for key in keys:
            random = torch.Generator().manual_seed(key % 2**63)
            rows.append(torch.randint(20, 20 + self.faces, (sampling.max_new_tokens,), generator=random))
        ids_BT = torch.stack(rows)
        mask_BT = torch.ones_like(ids_BT, dtype=torch.bool)
        logp_BT = torch.full(ids_BT.shape, -math.log(self.faces))
        ended_B = torch.zeros(len(rows), dtype=torch.bool)
        return Generation(ids_BT, mask_BT, logp_BT, ended_B, torch.full((len(rows),), self.version))

    def close(self):
        pass


class Even:
    """A reward: share of even token ids."""

    wants = set()

    def __call__(self, rollout, texts, state):
        even_BT = (rollout.response_ids_BT % 2 == 0) & rollout.response_mask_BT
        return Scored(even_BT.sum(1) / rollout.response_mask_BT.sum(1))


class Score:
    """An advantage: the score less its mean, on every token."""

    needs_critic = False
    min_samples = 1

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, score_B, reward_BT, value_BT, mask_BT, group_B):
        return self.scale * (score_B - score_B.mean())[:, None] * mask_BT, None


def reinforce(logp_BT, old_logp_BT, advantage_BT, mask_BT):
    return -advantage_BT * logp_BT


class Held:
    """A reference, with a setting that align does not have."""

    def __init__(self, path, remark):
        self.path, self.remark = path, remark

    def place(self, placement):
        placement.context.tell(f"reference: {self.remark}")
        Reference(self.path, None).place(placement)
'''
YAML = {
    "rollout/dice": "defaults:\n  - /schema/rollout@_here_\n  - _self_\n_target_: parts.Engine\nfaces: 6\n",
    "reward/even": "_target_: parts.Even\n",
    "advantage/score": "_target_: parts.Score\nscale: 2.0\n",
    "policy_loss/reinforce": "_target_: parts.reinforce\n",
    "reference/held": "_target_: parts.Held\npath: auto\nremark: held by hand\n",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    write_data(tmp_path)
    (tmp_path / "parts.py").write_text(PARTS)
    for name, text in YAML.items():
        file = tmp_path / "conf" / f"{name}.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    yield from stand_in(tmp_path, monkeypatch)


def test_an_engine_a_reward_an_advantage_a_loss_and_a_role_of_a_users_own_run_the_loop(here, base, capsys):
    words = [f"{name.partition('/')[0]}={name.partition('/')[2]}" for name in YAML]
    summary = align.run(
        [
            "stages=ppo", f"actor.path={base}", "ppo.data.path=prompts.jsonl", "critic=none", "ppo.steps=2",
            "ppo.batch_size=8", "rollout.max_new_tokens=8", "ppo.max_prompt_tokens=32", "ppo.eval_every=1",
            "cpu_linear=torch", "evaluate.samples=4", "rollout.faces=7", *words,
        ]
    )  # fmt: skip
    card = json.loads((here / "runs/run/latest/ppo/card.json").read_text())
    assert card["rollout_engine"] == summary["rollout_engine"] == "dice"
    assert "reference: held by hand" in card["start"]
    steps = [json.loads(line) for line in (here / "runs/run/latest/ppo/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == [0, 1, 2]
    assert steps[1]["val/length"] == 8 and 0 < steps[1]["objective/scores"] < 1
    assert steps[1]["loss/policy_avg"] != 0 and steps[1]["grad_norm/actor"] > 0


def test_a_setting_that_a_class_of_a_users_own_does_not_have_is_refused(here, base):
    words = ["stages=ppo", f"actor.path={base}", "ppo.data.path=prompts.jsonl", "reward=even", "critic=none"]
    words += ["advantage=score", "reference=held", "+reference.remrak=x"]
    with pytest.raises(align.errors.AlignError, match=r"reference\.remrak=x: parts\.Held has no such argument"):
        align.run(words)

"""The first loss, gradient, weight, log-probability or score that is not finite ends its stage; nothing is saved."""

import json
import math
import shutil

import pytest
import torch
from command_line import refused, stand_in, write_data, write_rows
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments

from align import ops
from align.errors import AlignError
from align.report.report import Report
from align.stages.finite import Guard
from align.stages.training import train

BROKEN = "model.layers.1.mlp.down_proj.weight"
PATHS = {"sft": "model", "rm": "rm.path", "dpo": "actor.path", "kto": "actor.path"}
DATA = {"sft": "demos", "rm": "pairs", "dpo": "pairs", "kto": "pairs"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    for folder in stand_in(tmp_path, monkeypatch):
        write_data(folder)
        yield folder


@pytest.fixture
def broken(here):
    """broken(folder) -> a copy of the model with one weight that is not a number."""

    def make(folder: str, name: str = BROKEN) -> str:
        copy = shutil.copytree(folder, here / f"broken_{len(list(here.iterdir()))}")
        state = load_file(copy / "model.safetensors")
        state[name][0, 0] = math.nan
        save_file(state, copy / "model.safetensors", {"format": "pt"})
        return str(copy)

    return make


def no_weights(here) -> bool:
    return not [*here.glob("runs/**/*.safetensors")]


@pytest.mark.parametrize("stage", PATHS)
def test_a_weight_that_is_not_a_number_is_named_at_the_first_step(here, base, broken, capsys, stage):
    words = f"stages=[{stage}] {PATHS[stage]}={broken(base)} {stage}.data.path={DATA[stage]}.jsonl"
    words += f" {stage}.data.eval_share=0 data@{stage}.data={'prompt_completion' if stage == 'sft' else 'preferences'}"
    refused(capsys, words, [f"{stage}, step 1: the loss is nan", "down_proj", "use a model whose weights are finite"])
    assert no_weights(here)
    folder = here / "runs" / "run" / "latest"
    assert "loss" not in (folder / stage / "metrics.jsonl").read_text()
    assert json.loads((folder / "ended.json").read_text())["stage"] == stage


def test_adapters_side_by_side_end_so_too(here, base, broken, capsys):
    words = f"stages=[sft] model={broken(base)} sft.data.path=demos.jsonl sft.data.eval_share=0.2 "
    refused(capsys, words + "sft.parallel_adapters=2", ["sft, step 1: the loss of adapter_0 is nan", "down_proj"])
    assert no_weights(here)


def test_a_loss_of_settings_is_laid_to_its_settings(here, base, capsys):
    words = f"stages=[dpo] actor.path={base} dpo.data.path=pairs.jsonl dpo.loss=robust dpo.args.label_smoothing=0.5"
    refused(capsys, words, ["dpo, step 1: the loss is ", "the weights are finite", "settings of the loss"])
    assert no_weights(here)


def test_pretraining_on_too_large_steps_ends_at_the_step(here, capsys, monkeypatch):
    write_rows(here / "corpus.jsonl", [{"text": "a red kite flies over the quiet harbour"}] * 40)
    real, steps = nn.utils.clip_grad_norm_, []

    def clip(parameters, bound):
        steps.append(1)
        found = list(parameters)
        if len(steps) == 2:
            found[-1].grad.fill_(3e38)  # moves finite weights far
            found[-1].data.fill_(3e38)
            return torch.tensor(1.0)
        return real(found, bound)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", clip)
    words = "stages=[pretrain] data@pretrain.data=text pretrain.data.path=corpus.jsonl pretrain.data.eval_share=0"
    words += " pretrain.steps=5 pretrain.batch_size=2 pretrain.max_length=8 pretrain.hidden_size=32 pretrain.layers=1"
    refused(capsys, f"{words} pretrain.heads=2", ["pretrain, step 3: ", "use a lower pretrain.learning_rate"])
    assert no_weights(here)


class Line(PreTrainedModel):
    """A weight; the loss is it times the row, and the gradient or the loss breaks where a row says so."""

    def __init__(self) -> None:
        super().__init__(PretrainedConfig())
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, input_ids: torch.Tensor, **labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * input_ids).sqrt().mean()}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([1.0, 1.0, -1.0, 1.0], "sft, step 3: the loss is nan"),
        ([1.0, 1.0, 0.0, 1.0], "sft, step 3: the gradient of weight is not finite"),
    ],
)
def test_the_last_good_checkpoint_stays(tmp_path, rows, said):
    """A root of a number below 0 is no number; the root's slope at 0 (times 0) is none, though its value is 0."""
    settings = {"per_device_train_batch_size": 1, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    args = TrainingArguments(
        str(tmp_path / "trainer"), use_cpu=True, report_to="none", train_sampling_strategy="sequential",
        logging_steps=1, disable_tqdm=True, **settings,
    )  # fmt: skip
    trainer = Trainer(Line(), args, train_dataset=[{"input_ids": torch.tensor([x])} for x in rows])
    with Report().stage("sft", tmp_path) as report, pytest.raises(AlignError, match=said):
        train(trainer, report)
    kept = [folder.name for folder in (tmp_path / "trainer").iterdir()]
    assert kept == ["checkpoint-2"]
    assert load_file(tmp_path / "trainer" / "checkpoint-2" / "model.safetensors")["weight"].isfinite().all()


def test_weights_are_looked_at_before_they_are_saved():
    model = nn.Linear(2, 2)
    Guard("rm", model, "a lower rm.learning_rate").weights(4)
    model.bias.data[1] = math.inf
    with pytest.raises(AlignError, match=r"rm, step 4: the weights in bias are not finite(.|\n)*a lower rm.learning"):
        Guard("rm", model, "a lower rm.learning_rate").weights(4)


def test_the_first_tensor_that_is_not_finite_is_found():
    good, bad = torch.ones(3), torch.tensor([1.0, math.inf])
    assert ops.first_not_finite([("a", good), ("b", bad), ("c", bad)]) == "b"
    assert ops.first_not_finite([("a", good), ("whole", torch.tensor([1]))]) is None


PPO = "stages=[ppo] ppo.data.path=prompts.jsonl rollout=hf rollout.max_new_tokens=4 ppo.max_prompt_tokens=32 "
PPO += "ppo.batch_size=4 ppo.steps=2 "


@pytest.mark.parametrize(
    ("role", "said"),
    [
        ("actor", ["PPO step 1: log-probabilities of the actor (rollout=hf)"]),
        ("reference", ["PPO step 1: log-probabilities of the reference"]),
        ("critic", ["PPO step 1: values of the critic"]),
    ],
)
def test_ppo_names_the_role_whose_weights_are_broken(here, base, reward_base, broken, capsys, role, said):
    paths = {"actor": base, "reference": base, "critic": reward_base}
    words = " ".join(f"{name}.path={broken(path) if name == role else path}" for name, path in paths.items())
    words += " critic=own reward=fn reward.fn=my_rewards.brevity"
    refused(capsys, f"{PPO} {words}", [*said, "use a model whose weights are finite"])
    assert no_weights(here)


def test_a_broken_reward_model_in_an_ensemble_is_named(here, base, reward_base, broken, capsys):
    bad = broken(reward_base)
    words = f"actor.path={base} reward=ensemble reward.path=[{reward_base},{bad}] critic=none advantage=rloo"
    words += " rollout.samples_per_prompt=2"
    refused(capsys, f"{PPO} {words}", [bad, "a score is not finite", "use a reward model whose weights are finite"])


def test_files_of_a_run_have_null_and_no_nan(tmp_path):
    with Report().stage("rm", tmp_path) as report:
        report.write_card(figures={"loss": math.nan, "all": [math.inf, 1.0]})
    assert "NaN" not in (tmp_path / "card.json").read_text()
    assert json.loads((tmp_path / "card.json").read_text())["figures"] == {"loss": None, "all": [None, 1.0]}

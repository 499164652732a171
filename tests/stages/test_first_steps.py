"""The first optimizer step of every trainer trains, and the rates are PPO's where they warm up."""

import json

import pytest
import torch
from command_line import stand_in, write_data
from peft.utils import load_peft_weights
from torch import nn
from transformers import Trainer, TrainingArguments

import align
from align.engine.plain import Schedule
from align.stages.training import warm_up_from_the_first_step

NAMES = {"cosine": "cosine", "linear": "linear", "constant": "constant_with_warmup"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    for folder in stand_in(tmp_path, monkeypatch):
        write_data(folder)
        yield folder


def trainer(folder, **settings) -> Trainer:
    args = TrainingArguments(str(folder), learning_rate=0.3, use_cpu=True, report_to="none", **settings)
    one = Trainer(nn.Linear(2, 2), args)
    warm_up_from_the_first_step(one)
    return one


def rates(one: Trainer, steps: int) -> list[float]:
    """Of each step, as the optimizer has it."""
    one.create_optimizer_and_scheduler(steps)
    found = []
    for _ in range(steps):
        found.append(one.optimizer.param_groups[0]["lr"])
        one.optimizer.step()
        one.lr_scheduler.step()
    return found


@pytest.mark.parametrize("shape", NAMES)
@pytest.mark.parametrize(("warmup", "steps"), [(0.05, 1), (0.05, 3), (4, 10), (12, 10)])
def test_rates_are_those_of_ppo(tmp_path, shape, warmup, steps):
    one = trainer(tmp_path, lr_scheduler_type=NAMES[shape], warmup_steps=warmup)
    ours = Schedule(0.3, shape, one.args.get_warmup_steps(steps))
    assert rates(one, steps) == pytest.approx([ours.rate(step, steps) for step in range(steps)], rel=1e-12)


@pytest.mark.parametrize("name", ["inverse_sqrt", "polynomial", "cosine_with_restarts", "warmup_stable_decay"])
def test_no_step_of_a_schedule_that_warms_up_is_lost(tmp_path, name):
    more = {"lr_scheduler_kwargs": {"num_decay_steps": 2}} if name == "warmup_stable_decay" else {}
    found = rates(trainer(tmp_path, lr_scheduler_type=name, warmup_steps=3, **more), 8)
    assert found[:4] == pytest.approx([0.3 / 4, 0.3 / 2, 0.3 * 3 / 4, 0.3])
    assert min(found[:7]) > 0


def test_a_state_that_is_saved_goes_on_where_it_was(tmp_path):
    one, other = (trainer(tmp_path, lr_scheduler_type="cosine", warmup_steps=3) for _ in range(2))
    one.create_optimizer_and_scheduler(8)
    other.create_optimizer_and_scheduler(8)
    for _ in range(2):
        one.optimizer.step()
        one.lr_scheduler.step()
    other.optimizer.load_state_dict(one.optimizer.state_dict())
    other.lr_scheduler.load_state_dict(one.lr_scheduler.state_dict())
    for each in (one, other):
        each.optimizer.step()
        each.lr_scheduler.step()
    assert other.lr_scheduler.get_last_lr() == one.lr_scheduler.get_last_lr() == [0.3] * 2


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_one_optimizer_step_trains(here, base, stage):
    """A warm-up of one step in one: the rate is half of the peak, and the adapter's B is no longer 0."""
    file = {"sft": "demos", "rm": "pairs"}[stage]
    words = f"stages=[{stage}] model={base} {stage}.data.path={file}.jsonl {stage}.data.eval_share=0"
    words += f" {stage}.batch_size=16 {stage}.learning_rate=1e-3"
    align.run(words.split())
    folder = here / "runs" / "run" / "latest" / stage
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in found if "learning_rate" in row] == [5e-4]
    moved = [float(tensor.abs().max()) for key, tensor in load_peft_weights(folder).items() if "lora_B" in key]
    assert moved and min(moved) > 1e-5


def test_pretraining_begins_above_zero_and_logs_the_rate_of_each_step(here):
    (here / "corpus.jsonl").write_text('{"text": "a red kite flies over the quiet harbour"}\n' * 40)
    words = "stages=[pretrain] pretrain.data.path=corpus.jsonl pretrain.data.eval_share=0 pretrain.steps=12"
    words += " pretrain.batch_size=2 pretrain.max_length=8 pretrain.hidden_size=32 pretrain.layers=1 pretrain.heads=2"
    align.run([*words.split(), "data@pretrain.data=text"])
    lines = (here / "runs" / "run" / "latest" / "pretrain" / "metrics.jsonl").read_text().splitlines()
    ours = Schedule(3e-3, "cosine", 1)
    assert [json.loads(line)["lr"] for line in lines] == pytest.approx([ours.rate(step, 12) for step in range(12)])
    assert torch.tensor([json.loads(line)["lr"] for line in lines]).min() > 0

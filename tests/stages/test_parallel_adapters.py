"""Adapters trained side by side are those that runs of their own make; what cannot be so is refused.

float32. The same sums come in another order (the rows of a pass, LoRA in one function): a gradient is off by about
1e-7, and Adam makes of that a small share of a learning rate. CLOSE is 1 % of the rates here.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from command_line import refused, stand_in, write_rows
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_hook
from transformers import LlamaModel

import align

RATE = 1e-3
CLOSE = {"rtol": 0, "atol": 1e-5}
WORDS = "a red kite flies over the quiet harbour while seven old sailors count their ropes".split()


@pytest.fixture
def here(tmp_path, monkeypatch):
    generator = random.Random(0)
    for name, count in (("a", 22), ("b", 13), ("held", 4)):
        rows = [(f"{name} {i} {' '.join(generator.choices(WORDS, k=generator.randint(1, 9)))}") for i in range(count)]
        answers = [" " + " ".join(generator.choices(WORDS, k=generator.randint(1, 12))) for _ in rows]
        demos = [{"prompt": prompt, "completion": answer} for prompt, answer in zip(rows, answers)]
        write_rows(tmp_path / f"{name}.jsonl", demos)
    yield from stand_in(tmp_path, monkeypatch)


def sft(base: str, *more: str, method: str = "lora", name: str = "run") -> Path:
    """The folder that a run of SFT leaves; later settings win."""
    align.run([
        "stages=[sft]", f"model={base}", f"name={name}", "device=cpu", "precision=fp32", "sft.data.path=a.jsonl",
        "sft.data.eval_path=held.jsonl", "sft.batch_size=4", f"sft.learning_rate={RATE}", f"peft@sft.peft={method}",
        *more,
    ])  # fmt: skip
    return (Path("runs") / name / "latest" / "sft").resolve()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def card(folder: Path) -> dict:
    return json.loads((folder / "card.json").read_text())


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def check_same(together: Path, number: int, alone: Path) -> None:
    """Adapter, loss, gradient and rate of every step, and held-out loss are those of the run alone, which learns."""
    name = f"adapter_{number}"
    found, wanted = weights(together / name), weights(alone)
    assert found.keys() == wanted.keys()
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], **CLOSE, msg=lambda m, k=key: f"{k}: {m}")
    assert max(t.abs().max() for k, t in wanted.items() if "lora_B" in k or "_up" in k) > 50 * CLOSE["atol"]
    for figure in ("loss", "grad_norm", "learning_rate"):
        own = [row[f"{name}/{figure}"] for row in metrics(together) if f"{name}/{figure}" in row]
        assert own == pytest.approx([row[figure] for row in metrics(alone) if figure in row], rel=1e-4), figure
    assert card(together)["adapters"][number]["eval_loss"] == pytest.approx(card(alone)["eval_loss"], rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "pfeiffer"])
def test_seeds_side_by_side_are_runs_of_their_own(here, base, method):
    together = sft(base, "sft.parallel_adapters=3", "seed=5", method=method)
    for number in (0, 2):
        check_same(together, number, sft(base, f"seed={5 + number}", method=method, name=f"alone{number}"))
    first, second = (weights(together / f"adapter_{i}") for i in (0, 1))
    assert any((first[key] - second[key]).abs().max() > 100 * CLOSE["atol"] for key in first)


@pytest.mark.parametrize("method", ["houlsby", "parallel"])
def test_other_bottleneck_adapters_too(here, base, method):
    together = sft(base, "sft.parallel_adapters=2", method=method)
    check_same(together, 1, sft(base, "seed=1", method=method, name="alone"))


def test_each_step_is_one_pass_for_the_rows_of_all(here, base):
    rows = []

    def seen(module, inputs, output):
        if isinstance(module, LlamaModel) and module.training:
            rows.append(len(output.last_hidden_state))

    with register_module_forward_hook(seen):
        sft(base, "sft.data.path=[a.jsonl,b.jsonl]")
    assert rows == [8, 8, 8, 4 + 1, 4, 2]


def test_rates_side_by_side_share_the_seed(here, base):
    plus = "sft.loraplus_lr_ratio=4"
    together = sft(base, "sft.learning_rate=[1e-3,5e-4]", plus)
    check_same(together, 1, sft(base, "sft.learning_rate=5e-4", plus, name="alone"))
    assert [one["seed"] for one in card(together)["adapters"]] == [0, 0]


def test_data_sets_of_different_lengths_each_take_their_own_steps(here, base):
    """22 and 13 rows, batches of 4 in accumulation of 2, two epochs: 6 and 4 steps, the last ones of an epoch short."""
    more = ["sft.batch_size=8", "sft.args.gradient_accumulation_steps=2", "sft.epochs=2", "sft.args.max_grad_norm=0.1"]
    together = sft(base, "sft.data.path=[a.jsonl,b.jsonl]", "sft.learning_rate=[1e-3,2e-3]", *more)
    check_same(together, 0, sft(base, *more, name="first"))
    check_same(together, 1, sft(base, "sft.data.path=b.jsonl", "sft.learning_rate=2e-3", *more, name="second"))
    steps = [sum(f"adapter_{i}/loss" in row for row in metrics(together)) for i in (0, 1)]
    assert steps == [6, 4]


def test_layers_computed_again_in_the_backward_pass_change_nothing(here, base):
    more = ["sft.args.gradient_checkpointing=true", "sft.args.max_steps=3"]
    together = sft(base, "sft.parallel_adapters=2", *more)
    check_same(together, 1, sft(base, "seed=1", *more, name="alone"))


def test_the_best_on_held_out_rows_is_the_stages_result(here, base):
    together = sft(base, "sft.learning_rate=[1e-6,3e-3,1e-5]")
    told = card(together)
    assert told["best"] == "adapter_1" and told["eval_loss"] == min(one["eval_loss"] for one in told["adapters"])
    best, root = weights(together / "adapter_1"), weights(together)
    assert all(torch.equal(best[key], root[key]) for key in best)
    assert not (together / "trainer").exists()


def test_plain_peft_and_later_runs_take_the_adapters(here, base):
    together = sft(base, "sft.parallel_adapters=2")
    for folder in (together, together / "adapter_0", together / "adapter_1"):
        model = AutoPeftModelForCausalLM.from_pretrained(folder)
        assert list(model.peft_config) == ["default"]
    later = sft(base, f"model={together / 'adapter_1'}", "sft.parallel_adapters=2", name="later")
    assert "goes on with the adapter" in card(later)["start"]
    check_same(later, 1, sft(base, f"model={together / 'adapter_1'}", "seed=1", name="alone"))


def test_the_stages_after_it_go_on_from_the_best(here, base):
    align.run([
        "experiment=tiny", "debug=default", "stages=[sft,rm]", f"model={base}", "sft.parallel_adapters=2",
        "rollout.max_new_tokens=8", "sft.data.demonstrations=64", "rm.data.pairs=64", "sft.data.held_out=32",
    "rm.data.held_out=32", "rm.norm_samples=8", "name=tiny",
    ])  # fmt: skip
    run = Path("runs/tiny/latest").resolve()
    assert card(run / "rm")["start"] == f"goes on with the adapter of {run / 'sft'}"
    assert len(card(run / "sft")["adapters"]) == 2


SIDE = "stages=sft model={base} sft.data.path=a.jsonl"
BEST = "stages=best_of data@best_of.data=prompt_completion best_of.data.path=a.jsonl best_of.parallel_adapters=2"
REFUSED = [
    ("all weights", "sft.parallel_adapters=2 peft@sft.peft=none", ["all weights train", "peft@sft.peft=lora"]),
    ("hooks", "sft.parallel_adapters=2 peft@sft.peft=adalora", ["ADALORA", "align -m seed=0,1"]),
    ("a method that is not routed", "sft.learning_rate=[1e-4,1e-3] peft@sft.peft=ia3", ["IA3", "learning_rate=0.0001"]),
    ("DoRA", "sft.parallel_adapters=2 peft@sft.peft=dora", ["DoRA", "peft@sft.peft=lora"]),
    ("a part of the base", "sft.parallel_adapters=2 peft@sft.peft=pissa", ["init_lora_weights=pissa"]),
    ("whole modules", "sft.parallel_adapters=2 +sft.peft.modules_to_save=[lm_head]", ["modules_to_save=['lm_head']"]),
    ("another forward", "sft.parallel_adapters=2 +sft.peft.alora_invocation_tokens=[5]", ["alora_invocation_tokens"]),
    ("biases of the base", "sft.parallel_adapters=2 +sft.peft.bias=all", ["bias=all"]),
    ("no adapter at all", "sft.parallel_adapters=0", ["sft.parallel_adapters=0", "from 1"]),
    ("an argument of TRL's", "sft.parallel_adapters=2 sft.args.packing=true", ["sft.args.packing", "leave it out"]),
    ("a schedule by losses", "sft.parallel_adapters=2 sft.args.lr_scheduler_type=greedy", ["greedy", "cosine"]),
    ("two counts", "sft.parallel_adapters=3 sft.learning_rate=[1e-4,1e-3]", ["lists 2", "sft.parallel_adapters=3"]),
    ("two lists", "sft.learning_rate=[1e-4,1e-3,1e-2] sft.data.path=[a.jsonl,b.jsonl]", ["lists 2", "lists 3"]),
    ("a rate in a list", "sft.learning_rate=[1e-4,0]", ["sft.learning_rate=0", "above 0"]),
    ("null for a rate", "sft.learning_rate=null", ["sft.learning_rate=null"]),
    ("a word for a rate", "sft.learning_rate=fast", ["sft.learning_rate=fast"]),
    ("no file", "sft.data.path=[]", ["sft.data.path=[]"]),
    ("nothing held out", "sft.parallel_adapters=2 sft.data.eval_share=0", ["held out", "sft.data.eval_share=0.05"]),
    ("the last seeds", "sft.parallel_adapters=2 seed=4294967295", ["sft.parallel_adapters=2", "seed=4294967294"]),
    ("best_of", f"{BEST} peft@best_of.peft=none", ["best_of.peft: 2 adapters", "use peft@best_of.peft=lora"]),
    ("TRL's for best_of", f"{BEST} best_of.args.packing=true", ["best_of.args.packing"]),
    ("files for another stage", "stages=rm data@rm.data=preferences rm.data.path=[a.jsonl,b.jsonl]", ["SFT alone"]),
]  # fmt: skip


@pytest.mark.parametrize("settings, words", [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused_before_a_model_loads(here, base, capsys, settings, words):
    refused(capsys, f"{SIDE} {settings}".format(base=base), words)
    assert not Path("runs").exists()

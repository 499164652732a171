"""An ensemble from making its members to PPO: `rm.members`, `reward=ensemble` by path, and what is refused.

float32; 1e-4 where a batch holds other rows, or one base is computed apart from another.
"""

import io
import json
from pathlib import Path

import pytest
import torch
from command_line import LEARNED, RM, refused, stand_in, write_data
from peft import AutoPeftModelForSequenceClassification
from rich.console import Console
from safetensors.torch import load_file

import align
from align.report.report import Report
from align.stages.rm.stage import train_members

SHORT = [
    "device=cpu", "precision=fp32", "cpu_linear=torch", "rm.data.path=pairs.jsonl", "rm.data.eval_share=0.4",
    "rm.args.max_steps=2", "rm.batch_size=4", "rm.norm_samples=8", "rm.learning_rate=1e-2",
    "ppo.data.path=prompts.jsonl", "ppo.data.eval_share=0.2", "rollout=hf", "rollout.max_new_tokens=8",
    "ppo.max_prompt_tokens=32", "ppo.batch_size=8", "ppo.steps=1", "evaluate.samples=4", "evaluate.show=0",
]  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    write_data(folder)
    return folder


@pytest.fixture
def here(home, monkeypatch):
    yield from stand_in(home, monkeypatch)


def run(*words: str, name: str) -> Path:
    align.run([*SHORT, f"name={name}", *words])
    return (Path("runs") / name / "latest").resolve()


@pytest.fixture(scope="module")
def whole(home, base):
    """A run of rm and ppo with three members."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        return run("stages=[rm,ppo]", f"model={base}", "rm.members=3", "reward=ensemble", "seed=4", name="whole")


def card(folder: Path) -> dict:
    return json.loads((folder / "card.json").read_text())


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_each_member_is_what_a_run_with_its_seed_makes(here, whole, base):
    alone = run("stages=[rm]", f"model={base}", "seed=6", name="alone") / "rm"
    member, other = weights(alone), weights(whole / "rm" / "member_3")
    assert member.keys() == other.keys() and all(torch.equal(member[key], other[key]) for key in member)
    first = weights(whole / "rm" / "member_1")
    assert not torch.equal(first["base_model.model.score.weight"], member["base_model.model.score.weight"])
    for figure in ("eval_accuracy", "loss", "start", "learning_rate"):
        assert card(whole / "rm" / "member_3")[figure] == card(alone)[figure]
    assert metrics(alone)["train_loss"] == metrics(whole / "rm" / "member_3")["train_loss"]


def test_the_best_member_is_the_stages_result(here, whole):
    told = card(whole / "rm")
    assert [(one["name"], one["seed"]) for one in told["members"]] == [(f"member_{i}", 3 + i) for i in (1, 2, 3)]
    best = max(told["members"], key=lambda one: one["eval_accuracy"])
    assert told["best"] == best["name"] and told["eval_accuracy"] == best["eval_accuracy"] and told["stage"] == "rm"
    root, chosen = weights(whole / "rm"), weights(whole / "rm" / best["name"])
    assert all(torch.equal(root[key], chosen[key]) for key in root)
    assert told["score"] == card(whole / "rm" / best["name"])["score"]
    AutoPeftModelForSequenceClassification.from_pretrained(whole / "rm" / "member_2", num_labels=1)


@pytest.mark.parametrize(
    ("pairs", "first", "second"),
    [
        (40, "member_2 is the best", None),
        (1, "member_2 counts as the best", "warning: only 1 held-out pair:"),
        (0, "member_1 counts as the best", "warning: no held-out pairs:"),
    ],
)
def test_a_best_member_by_few_pairs_is_said_to_be_one(tmp_path, pairs, first, second):
    def train(seed, folder, home, report):
        report.write_card(**({"eval_accuracy": seed / 2, "eval_pairs": pairs} if pairs else {}))

    console = Console(file=io.StringIO(), width=200)
    with Report(console=console).stage("rm", tmp_path) as report:
        train_members(2, 0, tmp_path, report, train)
    said = [line.strip() for line in console.file.getvalue().splitlines() if not line.lstrip().startswith("rm/")]
    assert first in said[0] and (len(said) == 1 if second is None else second in said[1])


def test_ppo_takes_this_runs_members_on_the_actors_base(here, whole):
    start = card(whole / "ppo")["start"]
    for number in (1, 2, 3):
        assert any(f"rm/member_{number} on the actor's base" in line for line in start), start
    found = metrics(whole / "ppo")
    means = [found[f"rewards/member_{i}/mean"] for i in (1, 2, 3)]
    assert len(set(means)) == 3 and found["rewards/disagreement/mean"] > 0
    assert found["objective/scores"] == pytest.approx(sum(means) / 3 - found["rewards/disagreement/mean"], abs=1e-5)


def test_evaluation_tells_the_score_that_ppo_learns_from(here, whole):
    """Of a reward model it is the shifted one; another reward's stands beside the reward model's."""

    def evaluated(*words: str) -> dict:
        found = run("stages=[evaluate]", f"actor.path={whole / 'ppo'}", *words, name="evaluated") / "evaluate"
        return card(found)["policies"]["ppo"]

    members = [whole / "rm" / f"member_{i}" for i in (1, 2, 3)]
    scores = []
    for member in members:
        told = evaluated(f"reward.path={member}")
        assert "reward_model" not in told
        scores.append(told["score"])
    raw, scale = evaluated(f"reward.path={members[0]}", "reward.normalize=false")["score"], card(members[0])["score"]
    assert scores[0] == pytest.approx((raw - scale["mean"]) / scale["std"], abs=1e-4)
    told = evaluated("reward=ensemble", "reward.combine=mean", f"reward.path={whole / 'rm'}")
    assert told["score"] == pytest.approx(sum(scores) / 3, abs=1e-4)
    assert told["reward_model"] == pytest.approx(raw, abs=1e-4)
    assert "score" in card(whole / "evaluate")["policies"]["ppo"]


@pytest.mark.parametrize("path", ["{rm}", "'{rm}/member_*'", "[{rm}/member_1,{rm}/member_2,{rm}/member_3]"])
def test_a_step_with_a_base_of_their_own_is_the_same(here, whole, base, path):
    """Every figure but times; the first is of this very run's folder, which `latest` has left by then."""
    words = ["stages=[ppo]", f"model={base}", f"critic.path={whole / 'rm'}", "seed=4", "reward=ensemble"]
    named = f"reward.path={path.format(rm=whole / 'rm')}".replace("'", "")
    apart = run(*words, named, "reward.backbone=own", name="apart") / "ppo"
    assert sum("on the backbone of" in line for line in card(apart)["start"]) == 2
    one, other = metrics(whole / "ppo"), metrics(apart)
    assert one.keys() == other.keys()
    for name in one:
        if not name.startswith(("time/", "seconds/", "perf/", "tokens_per")):
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), name
    hashes = card(apart)["hashes"]
    assert {"reward", "reward_2", "reward_3"} <= hashes.keys() and len({hashes[f"reward{i}"] for i in ("", "_2")}) == 2


def test_latest_may_be_the_run_that_is_gone_on_with(here, whole, base):
    words = ["stages=[ppo]", f"model={base}", "reward=ensemble", "reward.path=runs/latest_test/latest/rm"]
    first = run("stages=[rm]", f"model={base}", "rm.members=2", name="latest_test")
    second = run(*words, "critic=none", "advantage=rloo", "rollout.samples_per_prompt=2", name="latest_test")
    assert first != second and card(second / "ppo")["inputs"]["reward_2"] == str(first / "rm" / "member_2")


def test_this_runs_members_judge_preferences(here, base):
    words = "reward@preferences.judge=ensemble preferences.data.path=prompts.jsonl preferences.max_prompt_tokens=32"
    answers = "preferences.samples=16 rollout.max_new_tokens=40"  # a random model ends an answer in six
    made = run("stages=[rm,preferences]", f"model={base}", "rm.members=2", *f"{words} {answers}".split(), name="judged")
    told = card(made / "preferences")
    assert told["policies"]["actor"]["judged"] > 0 and told["rankings"]["prompts"] > 0
    assert told["inputs"]["reward"] == str(made / "rm")


MODELS = f"{LEARNED} reward=ensemble reward.path="
REFUSED = [
    ("one member", f"{RM} stages=[rm,ppo] ppo.data.path=prompts.jsonl reward=ensemble", ["=1", "use rm.members=3"]),
    ("no member", f"{RM} rm.members=0", ["rm.members=0", "from 1"]),
    ("the last seeds", f"{RM} rm.members=2 seed=4294967295", ["rm.members=2", "seed=4294967294"]),
    ("a folder with one", f"{MODELS}{{rm}}/member_1", ["there is one at most", "rm.members=3"]),
    ("a glob of none", f"{MODELS}nothing/*", ["reward.path=nothing/*", "[FOLDER,FOLDER]"]),
    ("no such folder", f"{MODELS}runs/nothing/latest/rm", ["reward.path", "no folder runs/nothing/latest/rm"]),
    (
        "a judge of one",
        "stages=preferences model={base} preferences.data.path=prompts.jsonl reward@preferences.judge=ensemble "
        "preferences.judge.path={rm}/member_1",
        ["preferences.judge.path", "there is one at most"],
    ),
    ("one twice", f"{MODELS}[{{rm}}/member_1,{{rm}}/member_1]", ["member_1 is there twice", "[FOLDER,FOLDER]"]),
    ("a list of one", f"{MODELS}[{{rm}}]", ["there is one at most", "[FOLDER,FOLDER]"]),
    ("a policy", f"{MODELS}[{{rm}},{{base}}]", ["reward.path", "a language model"]),
    ("nobody's", f"{LEARNED} reward=ensemble", ["reward.path is auto", "stages=[rm,ppo]"]),
    ("a word", f"{MODELS}{{rm}} reward.combine=median", ["reward.combine=median", "mean"]),
    ("a seat", f"{MODELS}{{rm}} reward.backbone=shred", ["reward.backbone=shred"]),
    (
        "both ways",
        f"{MODELS}{{rm}} +reward@reward.terms.a=model reward.terms.a.path={{rm}}",
        ["reward.path", "reward.terms.a.path", "leave the terms out"],
    ),
]


@pytest.mark.parametrize("settings, words", [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused_before_a_model_loads(here, whole, base, capsys, settings, words):
    before = len(list(Path("runs").glob("run/*")))
    refused(capsys, settings.format(base=base, rm=whole / "rm"), words)
    assert len(list(Path("runs").glob("run/*"))) == before


def test_a_judge_is_compared_on_the_samples_that_measure_the_score(here, base):
    words = ["stages=[rm]", f"model={base}", "+reward@rm.judge=fn", "rm.judge.fn=my_rewards.brevity"]
    assert 0 <= card(run(*words, name="judged") / "rm")["judge_agreement"] <= 1
    words[2:] = ["+reward@rm.judge=format", "rm.judge.pattern=never"]
    assert card(run(*words, name="silent") / "rm")["judge_agreement"] is None


def test_a_judge_of_samples_that_cannot_be(here, base, capsys):
    words = f"{RM.format(base=base)} +reward@rm.judge=fn rm.judge.fn=my_rewards.brevty"
    refused(capsys, words, ["my_rewards", "brevty"])

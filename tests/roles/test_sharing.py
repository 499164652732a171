"""Roles on one backbone compute, train and save what roles on backbones of their own do; nobody else moves."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from align.engine.plain import PlainEngine
from align.errors import AlignError
from align.peft.switch import routed
from align.rewards.model import ModelReward
from align.roles.roles import Roles
from align.roles.seating import Seating, Setting
from align.roles.specs import Actor, Critic, Reference
from align.types import Experience, Rollout, Scores

RATE = 1e-2
DEFAULT = object()
WANT = {"logp", "ref_logp", "value", "reward"}


def lora(**more) -> LoraConfig:
    return LoraConfig(**{"r": 8, "lora_alpha": 16, "target_modules": "all-linear", **more})


@pytest.fixture(scope="module")
def sft(lora_model, base, tmp_path_factory) -> str:
    """The folder of a trained adapter on `base`."""
    model = lora_model(seed=3)
    model.peft_config["default"].base_model_name_or_path = base
    folder = tmp_path_factory.mktemp("sft")
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def rm(base, tmp_path_factory) -> str:
    """The folder of a reward model: adapter and score head on the policy's own base."""
    torch.manual_seed(2)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model = get_peft_model(plain, lora(task_type="SEQ_CLS", base_model_name_or_path=base))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path_factory.mktemp("rm")
    model.save_pretrained(folder)
    (folder / "card.json").write_text(json.dumps({"score": {"mean": 0.5, "std": 2.0}}))
    return str(folder)


@pytest.fixture
def make_roles(sft, rm, tokenizer, tmp_path):
    """make_roles(critic, reward, peft, …) -> Roles and the lines that were said"""

    def make(
        critic="adapter", reward="shared", peft=DEFAULT, path=sft, checkpointing=False, **more
    ) -> tuple[Roles, ModelReward, list[str]]:
        said: list[str] = []
        setting = Setting(
            torch.device("cpu"), torch.float32, lambda m, rates, norm, zero: PlainEngine(m, rates, norm),
            tmp_path, gradient_checkpointing=checkpointing, tell=said.append,
        )  # fmt: skip
        torch.manual_seed(0)
        seats = Seating(setting, Actor(path, "auto", RATE, lora() if peft is DEFAULT else peft, None))
        Reference("auto", None).seat(seats)
        if critic:
            Critic(rm, "auto", RATE, lora(), None, critic, **more).seat(seats)
        model = ModelReward(rm, setting, tokenizer, backbone=reward, seats=seats)
        return seats.roles(micro_batch_size=3), model, said

    return make


def rollout(rows: int = 4, seed: int = 0) -> Rollout:
    """Random rows, prompts padded left and responses right."""
    generator = torch.Generator().manual_seed(seed)
    mask_BP, mask_BT = torch.ones(rows, 6, dtype=torch.bool), torch.ones(rows, 5, dtype=torch.bool)
    for row in range(rows):
        mask_BP[row, : row % 4] = False
        mask_BT[row, 5 - row % 3 :] = False
    ids = torch.randint(5, 250, (rows, 11), generator=generator)
    zeros = torch.zeros(rows, 5)
    return Rollout(
        ids[:, :6], mask_BP, ids[:, 6:], mask_BT, mask_BT, zeros, torch.arange(rows), torch.zeros(rows).long(),
        torch.ones(rows).bool(), torch.zeros(rows).long(), 0.8,
    )  # fmt: skip


def train(roles: Roles, steps: int = 1, who: tuple[str, ...] = ("actor", "critic")) -> list[dict[str, float]]:
    """Steps of two micro-batches on a made-up loss of each role."""

    def loss(new: Scores) -> dict[str, torch.Tensor]:
        losses = {}
        if new.logp_BT is not None:
            losses["actor"] = new.logp_BT.sum() / 10
        if new.value_BT is not None:
            losses["critic"] = (new.value_BT - 1).square().sum() / 10
        return losses

    norms = []
    for step in range(steps):
        data = rollout(seed=step)
        whole = Experience(data, Scores(), torch.zeros_like(data.logp_BT), None)
        for rows in (torch.tensor([0, 1]), torch.tensor([2, 3])):
            roles.train(whole[rows].trim(), loss, last=bool(rows[0] == 2), roles=who)
        norms.append(roles.step())
    return norms


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def moved(before: dict[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if not torch.equal(before[name], p)}


def close(one: Scores, other: Scores, want=WANT, atol=1e-5) -> None:
    for name in want:
        a, b = (getattr(s, f"{name}_B" if name == "reward" else f"{name}_BT") for s in (one, other))
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def test_four_roles_sit_on_one_base(make_roles):
    roles, reward, said = make_roles()
    assert len(roles.groups) == 1
    assert roles.groups[0].backbone.adapters == {
        "actor": "default", "reference": "ref", "critic": "critic", "reward": "reward",
    }  # fmt: skip
    assert reward.wants == {"reward"}
    assert any(line.startswith("critic: the adapter of") and "on the actor's base" in line for line in said)


def test_all_four_score_in_one_trunk_pass(make_roles):
    roles, _, _ = make_roles()
    model, calls = roles.actor.model.get_base_model().model, []
    model.register_forward_hook(lambda module, args, output: calls.append(1))
    roles.score(rollout(3), WANT)
    assert len(calls) == 1


def test_one_backbone_scores_as_backbones_of_their_own(make_roles, tokenizer):
    """fp32, 1e-5: the same weights, more rows in a batch."""
    shared, reward, _ = make_roles()
    apart, alone, _ = make_roles(critic="own", reward="own")
    assert len(apart.groups) == 2
    data = rollout(7)
    one, other = shared.score(data, WANT), apart.score(data, WANT - {"reward"})
    close(one, other, WANT - {"reward"})
    assert float(one.value_BT.abs().max()) > 0.1
    from align.types import RewardState, Texts

    texts = Texts([], [], [])
    torch.testing.assert_close(
        reward(data, texts, RewardState(0, one)).score_B, alone(data, texts, RewardState(0)).score_B, rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_one_backbone_trains_as_backbones_of_their_own(make_roles, checkpointing):
    """Three AdamW steps; norms to one in 10^4, scores to 1e-4: fp32 sums of more rows, in another order."""
    shared, _, _ = make_roles(checkpointing=checkpointing)
    apart, _, _ = make_roles(critic="own", reward="own")
    one, other = train(shared, 3), train(apart, 3)
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=1e-4) and a.keys() == {"actor", "critic"}
    data = rollout(5, seed=9)
    close(shared.score(data, WANT), apart.score(data, WANT - {"reward"}), WANT - {"reward"}, atol=1e-4)


@pytest.mark.parametrize("who", [("actor",), ("critic",), ("actor", "critic")])
def test_a_step_moves_the_roles_that_train_and_not_a_bit_of_another(make_roles, who):
    roles, _, _ = make_roles()
    backbone = roles.groups[0].backbone
    before, wants = weights(backbone), {n for n, p in backbone.named_parameters() if p.requires_grad}
    norms = train(roles, 1, who)[0]
    assert set(norms) == set(who)
    part = {"actor": (".default.",), "critic": (".critic.", "value_head.")}
    mine = tuple(piece for role in who for piece in part[role])
    changed = moved(before, backbone)
    assert changed and all(any(piece in name for piece in mine) for name in changed)
    for role in who:
        assert any(piece in name for piece in part[role] for name in changed), role
    assert {n for n, p in backbone.named_parameters() if p.requires_grad} == wants


def test_switching_roles_leaves_requires_grad_and_the_active_adapter(make_roles):
    roles, _, _ = make_roles()
    model = roles.actor.model
    before = {n: p.requires_grad for n, p in model.named_parameters()}
    for want in (WANT, {"ref_logp"}, {"value"}, {"reward"}, {"logp", "value"}):
        roles.score(rollout(3), want)
        with roles.actor.generating():
            pass
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before
    assert model.active_adapter == "default"


def test_the_reference_and_the_reward_do_not_move_by_a_bit_over_50_updates(make_roles):
    roles, _, _ = make_roles()
    data = rollout(6, seed=4)
    before = roles.score(data, WANT)
    train(roles, 50)
    after = roles.score(data, WANT)
    assert torch.equal(before.ref_logp_BT, after.ref_logp_BT) and torch.equal(before.reward_B, after.reward_B)
    assert not torch.allclose(before.logp_BT, after.logp_BT, atol=0.1)
    assert not torch.allclose(before.value_BT, after.value_BT, atol=0.1)


def test_an_exception_inside_a_routed_pass_leaves_nothing_behind(make_roles):
    roles, _, _ = make_roles()
    model, data = roles.actor.model, rollout(3)
    before = roles.score(data, WANT)
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    with pytest.raises(RuntimeError, match="on purpose"), routed(model, ["default", None, "critic"]):
        raise RuntimeError("on purpose")
    broken = model.get_base_model().model.layers[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        roles.score(data, WANT)
    broken.remove()
    assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks
    close(before, roles.score(data, WANT), atol=0)


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0])
def test_a_heads_gradient_reaches_the_trunk_by_its_scale(make_roles, scale):
    """The actor's gradient with a value loss is that without, plus `scale` times the value's own."""
    gradients = {}
    for name, who, trunk in (
        ("actor", ("actor",), scale),
        ("value", ("critic",), 1.0),
        ("both", ("actor", "critic"), scale),
    ):
        roles, _, _ = make_roles(critic="head", reward="own", trunk_gradient=trunk)
        engine, backbone = roles.groups[0].engine, roles.groups[0].backbone
        with torch.no_grad():
            backbone.value_head.weight.fill_(0.1)
        engine.step = lambda: {}
        train(roles, 1, who)
        found = [p.grad if p.grad is not None else torch.zeros_like(p) for p in backbone.trained("actor")]
        gradients[name] = torch.cat([g.flatten() for g in found])
        assert backbone.value_head.weight.grad is not None or name == "actor"
    assert float(gradients["value"].norm()) > 1e-2
    torch.testing.assert_close(gradients["both"], gradients["actor"] + scale * gradients["value"], rtol=1e-4, atol=1e-5)


def test_a_head_needs_no_second_trunk_pass(make_roles):
    roles, _, _ = make_roles(critic="head", reward="own")
    calls = []
    roles.actor.model.get_base_model().model.register_forward_hook(lambda *_: calls.append(1))
    train(roles)
    assert len(calls) == 2, "one a micro-batch"
    assert set(roles.rates()) == {"actor", "critic"}


def test_a_method_that_cannot_be_routed_takes_a_pass_for_each_adapter(make_roles, base, tmp_path):
    """An actor with DoRA: one base still, and the numbers of backbones of their own; fp32, 1e-4."""
    dora = lora(use_dora=True)
    shared, _, _ = make_roles(reward="own", path=base, peft=dora)
    apart, _, _ = make_roles(critic="own", reward="own", path=base, peft=dora)
    backbone = shared.groups[0].backbone
    assert len(shared.groups) == 1 and len(backbone.passes({"actor", "reference", "critic"})) == 3
    for a, b in zip(train(shared, 2), train(apart, 2), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    data, want = rollout(5, seed=9), {"logp", "ref_logp", "value"}
    close(shared.score(data, want), apart.score(data, want), want, atol=1e-4)


@pytest.mark.parametrize("critic", ["adapter", "head", "own"])
def test_heads_and_adapters_are_in_the_checkpoint_and_nothing_else(
    make_roles, critic, tmp_path, base, rm, sft, tokenizer
):
    """Loaded back, the same numbers: fp32, 1e-6."""
    roles, _, _ = make_roles(critic=critic)
    train(roles, 2)
    data = rollout(5, seed=8)
    before = roles.score(data, {"logp", "value"})
    roles.save(tmp_path / "saved")
    found = sorted(str(f.relative_to(tmp_path / "saved")) for f in (tmp_path / "saved").rglob("*.safetensors"))
    alone = ["adapter_model.safetensors", "critic/value_head.safetensors"]
    assert found == (alone if critic == "head" else sorted([*alone, "critic/adapter_model.safetensors"]))
    names = load_file(tmp_path / "saved" / "adapter_model.safetensors").keys()
    assert names and all("lora_" in name for name in names)
    setting = Setting(
        torch.device("cpu"), torch.float32, lambda m, rates, norm, zero: PlainEngine(m, rates, norm), tmp_path / "out"
    )
    seats = Seating(setting, Actor(str(tmp_path / "saved"), "continue", RATE, lora(), None))
    Critic(str(tmp_path / "saved" / "critic"), "auto", RATE, lora(), None, critic).seat(seats)
    close(before, seats.roles(3).score(data, {"logp", "value"}), {"logp", "value"}, atol=1e-6)
    if critic != "head":
        again = PeftModel.from_pretrained(
            AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), tmp_path / "saved" / "critic"
        )
        assert any("critic" not in n and "lora_A" in n for n, _ in again.named_parameters())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"peft": lora(r=4)}, ""),
        ({"critic_peft": lora(r=4)}, "its adapter differs: r is 8 there, 4 asked for"),
        ({"critic_peft": None}, "it trains all its weights"),
        ({"actor_peft": None}, "the actor trains all weights of its own"),
        ({"critic_path": "reward_base"}, "it stands on"),
        ({"critic_adapter": "new"}, "its earlier adapter is merged into a base of its own"),
    ],
)
def test_a_critic_that_cannot_share_says_why(base, rm, reward_base, tmp_path, change, why):
    said: list[str] = []
    setting = Setting(
        torch.device("cpu"), torch.float32, lambda m, rates, norm, zero: PlainEngine(m, rates, norm),
        tmp_path, tell=said.append,
    )  # fmt: skip

    def seat(backbone: str) -> Seating:
        actor = change.get("actor_peft", change.get("peft", lora()))
        seats = Seating(setting, Actor(base, "auto", RATE, actor, None))
        path = reward_base if "critic_path" in change else rm
        adapter = change.get("critic_adapter", "auto")
        Critic(path, adapter, RATE, change.get("critic_peft", lora()), None, backbone).seat(seats)
        return seats

    seats = seat("auto")
    assert len(seats.plans) == (2 if why else 1)
    assert why in said[-1]
    if why:
        trains = {n for n, p in seats.actor.model.named_parameters() if p.requires_grad}
        assert not any("critic" in n for n, _ in seats.actor.model.named_parameters()), "nothing stays behind"
        assert trains
        with pytest.raises(AlignError, match="critic=adapter: the critic cannot sit on the actor's base: ") as error:
            seat("adapter")
        assert why in str(error.value)


def test_a_shared_reward_that_cannot_be_is_refused(make_roles):
    """An actor that trains all its weights is no base to stand on."""
    with pytest.raises(AlignError, match=r"reward\.backbone=shared: the reward model cannot sit .*: the actor"):
        make_roles(critic=None, reward="shared", peft=None)
    _, reward, said = make_roles(critic=None, reward="auto", peft=None)
    assert reward.wants == set() and "a backbone of its own (the actor trains all weights of its own)" in said[-1]

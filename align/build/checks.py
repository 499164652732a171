"""Checks of PPO's roles, reward and rollout before a model loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.build.plugs import arguments, made, make, make_or_keep, peft, target_of
from align.build.prompts import longest_prompt
from align.build.rewards import check_reward, check_scoring
from align.build.zero import zero_of
from align.config.values import Plug, plug_of
from align.errors import AlignError
from align.plan.plan import RunPlan, Section, StagePlan
from align.plan.rewards import check_several, every_reward, learned
from align.plan.spec import AUTO

if TYPE_CHECKING:
    import torch

    from align.roles.folder import Folder

ROLES = ("actor", "critic", "reference")


def check_ppo(stage: StagePlan, plan: RunPlan, device: torch.device, inputs: dict[str, str]) -> None:
    """Raise AlignError for what is wrong; `inputs` are the paths that are known before the run, by role."""
    sections = stage.sections
    check_advantage(stage)
    check_scoring(sections.reward, stage.options.data, "ppo", plan.seed)
    check_watch(stage, plan.seed)
    for name, section in roles_of(stage).items():
        if hasattr(section.options, "zero"):
            zero_of(section.options.zero, trained=name != "reference")
        plug = Plug(section.target, section.own, name)
        arguments(plug, target_of(plug))
        check_method(name, section, stage.options.optimizer_steps)
    for one in every_reward(sections.reward):
        zero_of(plug_of(one.get("zero"), f"{one.key}.zero"), trained=False)
    check_goes_on(stage, plan)
    check_sharing(stage, plan)
    check_trunk(stage)
    check_folders(stage, device, inputs)


def roles_of(stage: StagePlan) -> dict[str, Section]:
    """The sections of the roles that are there, by name."""
    found = {name: getattr(stage.sections, name) for name in ROLES}
    return {name: section for name, section in found.items() if section is not None}


def check_watch(stage: StagePlan, seed: int) -> None:
    """Raise AlignError for a judge that cannot be, that is the reward, or that nothing calls."""
    watch, key = stage.sections.watch, "watch.judge"
    if watch is None:
        return
    judge = watch.options.judge
    watched = {path for one in every_reward(stage.sections.reward) for path in stage.models_at(one.key)}
    for one in every_reward(judge):
        if learned(one) and (one.get("path") == AUTO or watched & set(stage.models_at(one.key))):
            raise AlignError(
                f"{one.key}.path={one.get('path')}: it is the reward that is to be watched\n"
                f"  use {one.key}.path=FOLDER of another reward model, or reward@watch.judge=fn "
                "watch.judge.fn=my_rules.true_score"
            )
    if judge == stage.sections.reward:
        raise AlignError(
            f"{key}: it is the reward itself, and would rise with it\n"
            "  use another rule, such as watch.judge.fn=my_rules.true_score, or watch=none"
        )
    check_judge(judge, stage, seed)
    made(watch_plug(watch), check_reward(judge), **watch_settings(watch))
    if not stage.options.eval_every:
        raise AlignError("ppo.eval_every=0: watch looks at what it samples\n  use ppo.eval_every=8, or watch=none")


def watch_plug(watch: Section) -> Plug:
    return Plug(watch.target, key="watch")


def watch_settings(watch: Section) -> dict[str, object]:
    """The arguments of a watch beside its judge."""
    return {name: value for name, value in vars(watch.options).items() if name != "judge"} | watch.own.plain()


def check_judge(judge: Plug, stage: StagePlan, seed: int) -> None:
    """Raise AlignError for a judge of a stage's completions that cannot be, as far as is known before it loads."""
    check_scoring(judge, stage.options.data, stage.spec.name, seed)
    check_named(judge, stage)


def check_method(role: str, section: Section, steps: int) -> None:
    """Raise AlignError for a method that does not fit the run's optimizer steps, or DeepSpeed."""
    from align.peft.rates import check_loraplus
    from align.peft.stateful import hooks_of, planned

    options = section.options
    method = peft(getattr(options, "peft", None))
    planned(method, steps, role)
    check_loraplus(getattr(options, "loraplus_lr_ratio", None), method, role)
    zero = zero_of(options.zero) if hooks_of(method).needs_gradients else None
    if zero is not None and zero.stage == 3:
        raise AlignError(
            f"{role}.peft: {method.peft_type.value} reads whole matrices after a step, which zero@{role}.zero=stage3 "
            f"shards\n  use zero@{role}.zero=stage2"
        )


def method_of(stage: StagePlan) -> Plug | None:
    """The PEFT method by which a stage trains; None: all weights."""
    if stage.sections.actor is not None:
        return stage.sections.actor.options.peft
    return getattr(stage.options, "peft", None)


def check_goes_on(stage: StagePlan, plan: RunPlan) -> None:
    """Raise AlignError where a stage starts from an adapter that cannot merge, with another method."""
    from align.peft.routes import why_unmergeable

    critic = stage.sections.critic
    steps = [(one.spec.name, method_of(one), one.input("path")) for one in plan.kinds("rm")]
    steps.append(("actor", method_of(stage), stage.input("actor")))
    if critic is not None and critic.options.backbone != "head":
        steps.append(("critic", critic.options.peft, stage.input("critic")))
    for role, own, given in steps:
        source = plan.stage(given.source) if given is not None and given.source else None
        earlier = peft(method_of(source)) if source is not None else None
        if earlier is None or not (why := why_unmergeable(earlier)):
            continue
        mine = peft(own)
        if mine is None or mine.peft_type != earlier.peft_type:
            raise AlignError(
                f"{role}.peft: {role} starts from what {source.name} makes with {earlier.peft_type.value}, which "
                f"cannot be merged ({why})\n  choose the same method for {source.name}.peft and {role}.peft, one that "
                f"merges for {source.name}.peft, such as lora, or another start: {role}.path=FOLDER"
            )


def check_sharing(stage: StagePlan, plan: RunPlan) -> None:
    """Raise AlignError where settings keep a critic or a reward model off the actor's base."""
    actor = stage.sections.actor.options
    trained = plan.kinds("rm")
    for word, key, zero, path, own, instead in sharing(stage):
        critic, made_here = key == "critic", path == AUTO and bool(trained)
        method = own if critic else method_of(trained[-1]) if made_here else None
        why = ""
        if actor.peft is None:
            why = "the actor trains all its weights (peft@actor.peft=none)"
        elif critic and own is None:
            why = "the critic trains all its weights (peft@critic.peft=none)"
        elif made_here and method_of(trained[-1]) is None:
            why = "the reward model trains all its weights (peft@rm.peft=none)"
            why = f"it starts from the reward model, and {why}" if critic else why
        elif method and (theirs := peft(method).peft_type) != (mine := peft(actor.peft).peft_type):
            why = f"PEFT takes one method a model: the actor's is {mine.value}, the other's {theirs.value}"
        elif not critic and zero is not None:
            why = f"the reward model has other ZeRO settings (zero@{key}.zero)"
        for owner, plug in (("actor", actor.zero), ("critic", zero if critic else None)):
            if plug is not None and plug.get("stage") == 3:
                why = why or f"zero@{owner}.zero=stage3 divides the base"
        if why:
            raise AlignError(f"{word}: the two cannot sit on one base: {why}\n  use {instead}")


def sharing(stage: StagePlan) -> list[tuple[str, str, Plug | None, str, Plug | None, str]]:
    """Settings that put a role on the actor's base: the words, key, ZeRO, path and method, and what else to use."""
    found = []
    critic = stage.sections.critic
    if critic is not None and critic.options.backbone == "adapter":
        one = critic.options
        found.append(("critic=adapter", "critic", one.zero, one.path, one.peft, "critic=own"))
    for reward in every_reward(stage.sections.reward):
        if learned(reward) and reward.get("backbone") == "shared":
            key, zero = reward.key, plug_of(reward.get("zero"), f"{reward.key}.zero")
            found.append((f"{key}.backbone=shared", key, zero, reward.get("path"), None, f"{key}.backbone=own"))
    return found


def check_trunk(stage: StagePlan) -> None:
    """Raise AlignError where a value head is to shape the actor's trunk, and nothing in it trains."""
    critic = stage.sections.critic
    if critic is None or critic.options.backbone != "head" or not critic.options.trunk_gradient:
        return
    settings = peft(stage.sections.actor.options.peft)
    if settings is None:
        return
    found = settings.to_dict()
    targets, saved = (found.get(name) or [] for name in ("target_modules", "modules_to_save"))
    if isinstance(targets, str) or found.get("target_parameters") or found.get("trainable_token_indices"):
        return  # a pattern, or more than modules: seen when the model is there
    trained = [*targets, *saved]
    if trained and all(name.endswith("lm_head") for name in trained):
        raise AlignError(
            "critic=head: the actor trains nothing in its trunk that a value could shape (actor.peft: lm_head alone)\n"
            "  use critic.trunk_gradient=0, or critic=own"
        )


def check_advantage(stage: StagePlan) -> None:
    """Raise AlignError where the advantage, the policy's loss, the critic and the batches do not fit together."""
    sections, options = stage.sections, stage.options
    make_or_keep(sections.policy_loss)
    advantage, critic = make(sections.advantage), sections.critic
    name = sections.advantage.target.rpartition(".")[2]
    if advantage.needs_critic and critic is None:
        raise AlignError(
            f"critic=none: advantage {name} needs a critic\n"
            "  use critic=own, or advantage=rloo rollout.samples_per_prompt=4"
        )
    if not advantage.needs_critic and critic is not None:
        raise AlignError(f"advantage {name} uses no critic, so one would be trained for nothing\n  use critic=none")
    if options.critic_warmup and not advantage.needs_critic:
        raise AlignError(
            f"ppo.critic_warmup={options.critic_warmup}: advantage {name} has no critic to warm up\n"
            "  use ppo.critic_warmup=0"
        )
    if options.critic_warmup and critic.options.backbone == "head" and critic.options.trunk_gradient:
        raise AlignError(
            f"ppo.critic_warmup={options.critic_warmup} with critic=head: the critic's gradient would move the actor's "
            "trunk\n  use critic.trunk_gradient=0, or critic=own"
        )
    options.check_batches(sections.rollout.options.samples_per_prompt, advantage.min_samples)


def check_folders(stage: StagePlan, device: torch.device, inputs: dict[str, str]) -> None:
    """Raise AlignError for models of the wrong kind, of other vocabularies, or that the rollout cannot serve."""
    from align.peft.routes import check_servable
    from align.rewards.model import check_same_tokenizer
    from align.roles.folder import CAUSAL, SCORE, inspect
    from align.roles.loading import look
    from align.roles.start import check_adapter
    from align.roles.tokenizer import load_tokenizer
    from align.rollout.choice import check_rollout

    folders: dict[str, list[Folder]] = {}
    rewards = check_named(stage.sections.reward, stage)
    for key, folder in rewards:
        folders.setdefault(key, []).append(folder)
    kinds = {"actor": (CAUSAL,), "critic": (CAUSAL, SCORE), "reference": (CAUSAL,)}
    for role, section in roles_of(stage).items():
        if role not in inputs or getattr(section.options, "backbone", "") == "head":
            continue  # for a value head on the trunk, a folder with the head alone will do
        folder = look(inputs[role], role, kinds[role])
        folders[role] = [folder]
        if hasattr(section.options, "adapter"):
            check_adapter(folder, role, peft(section.options.peft), section.options.adapter)
    check_bases(stage, folders)
    start = stage.input("actor").origin
    if start.path is not None:
        model = inspect(start.path, start.key, CAUSAL).config()
        policy = load_tokenizer(start.path, start.key)
        starts = [stage.input(name) for name in ("reward", "critic", "reference")]
        others = {one.origin.path: one.origin.key for one in starts if one is not None and one.origin.path is not None}
        for other, key in (others | {folder.path: f"{key}.path" for key, folder in rewards}).items():
            if other != start.path:
                check_same_tokenizer(load_tokenizer(other, key), policy, key)
    else:
        model = dict(start.shape)
    method, rollout = peft(stage.sections.actor.options.peft), stage.sections.rollout
    longest_prompt(stage, [inputs["actor"]] if "actor" in inputs else [])
    target_of(Plug(rollout.target, key="rollout"))
    check_rollout(rollout.options.engine, model, device.type == "cpu")
    check_servable(method, rollout.options.engine, rollout.options.fallback)


def check_named(reward: Plug, stage: StagePlan) -> list[tuple[str, Folder]]:
    """The reward models that a reward and those inside it name, by key. Raises AlignError for what is none."""
    from align.roles.folder import SCORE, inspect
    from align.roles.start import check_fits

    found = []
    for one in every_reward(reward):
        paths = stage.models_at(one.key)
        for path in paths:
            found.append((one.key, inspect(path, f"{one.key}.path", SCORE)))
            check_fits(found[-1][1], one.key)
        if paths:
            check_several(one, paths)
    return found


def check_bases(stage: StagePlan, folders: dict[str, list[Folder]]) -> None:
    """Raise AlignError for a role that is to sit on the actor's base, and whose folder stands on another."""
    for actor in folders.get("actor", ()):
        for word, key, *_, instead in sharing(stage):
            for folder in folders.get(key, ()):
                if apart := why_folder_apart(stage, actor, key, folder):
                    role = "critic" if key == "critic" else "reward model"
                    raise AlignError(f"{word}: the {role} cannot sit on the actor's base: {apart}\n  use {instead}")


def why_folder_apart(stage: StagePlan, actor: Folder, key: str, folder: Folder) -> str:
    """Reason why the critic or reward model in `folder` cannot sit on the base of that in `actor`; '' where it can."""
    from peft import PeftConfig

    from align.roles.placement import why_settings_apart

    options = stage.sections.actor.options
    mine, base = peft(options.peft), actor.base or actor.path
    if actor.base and options.adapter == "new":
        base = "one that is still to be merged (actor.adapter=new)"
    if key == "critic":
        critic = stage.sections.critic.options
        return why_settings_apart(mine, base, folder, peft(critic.peft), critic.adapter)
    if folder.base is None:
        return "it is a whole model, no adapter"
    return why_settings_apart(mine, base, folder, PeftConfig.from_pretrained(folder.path))

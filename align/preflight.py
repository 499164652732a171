"""What can be known of PPO's roles, reward and rollout before a model loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omegaconf import DictConfig

from align.checks import absent
from align.errors import AlignError
from align.longest_prompt import first_start, longest_prompt
from align.members import check_several, learned
from align.nodes import call, call_or_keep, check_arguments, made, peft, plain_values, target_of
from align.rewarding import check_reward, check_scoring, reward_nodes
from align.stages.ranges import check_batches

if TYPE_CHECKING:
    from align.build import Build
    from align.roles.folder import Folder

ROLES = ("actor", "critic", "reference")


def check_roles(build: Build, inputs: dict[str, str]) -> None:
    """Raises AlignError; `inputs` are the paths that are known before the run, by role."""
    cfg = build.cfg
    check_advantage(build)
    check_scoring(cfg.reward, "reward", cfg.ppo.data, "ppo", cfg.seed)
    check_watch(build)
    for key, node in [(name, cfg[name]) for name in ROLES] + list(reward_nodes(cfg.reward)):
        if not absent(node) and "zero" in node:
            build.zero(node.zero, f"{key}.zero", trained=key in ("actor", "critic"))
    for name in ROLES:
        if not absent(cfg[name]):
            check_arguments(target_of(cfg[name], name), list(plain_values(cfg[name])), name)
            check_method(cfg, name)
    build.dtype()  # refuses bf16 where the CPU lacks it
    check_goes_on(cfg, build.stages)
    check_sharing(cfg, build.stages)
    check_trunk(cfg)
    check_folders(build, inputs)


def optimizer_steps(ppo: DictConfig) -> int:
    """That a run of PPO makes."""
    return ppo.steps * ppo.epochs * ppo.minibatches


def check_watch(build: Build) -> None:
    """The judge that looks on is one that can be, is not the reward, and is asked."""
    cfg, key = build.cfg, "watch.judge"
    if absent(cfg.watch):
        return
    watched = {path for name, _ in reward_nodes(cfg.reward) for path in build.reward_paths.get(name, ())}
    for name, node in reward_nodes(cfg.watch.judge, key):
        if learned(node) and (node.path == "auto" or watched & set(build.reward_paths[name])):
            raise AlignError(
                f"{name}.path={node.path} is the reward that is to be watched\n  write {name}.path=FOLDER of another "
                "reward model, or reward@watch.judge=fn watch.judge.fn=my_rules.true_score"
            )
    if cfg.watch.judge == cfg.reward:
        raise AlignError(
            "watch.judge is the reward itself, and would rise with it\n"
            "  write another rule, such as watch.judge.fn=my_rules.true_score, or watch=none"
        )
    check_judge(build, cfg.watch.judge, key, "ppo")
    made(cfg.watch, "watch", check_reward(cfg.watch.judge, key), **plain_values(cfg.watch))
    if not cfg.ppo.eval_every:
        raise AlignError("watch looks at what ppo.eval_every samples, and it is 0\n  write ppo.eval_every=8")


def check_judge(build: Build, judge: DictConfig, key: str, stage: str) -> None:
    """A judge of what a stage's policy writes can be, as far as is known before its models load."""
    check_scoring(judge, key, build.cfg[stage].data, stage, build.cfg.seed)
    check_named(build, judge, key)


def check_method(cfg: DictConfig, role: str) -> None:
    """A method with a state fits the run's optimizer steps, and is not under DeepSpeed where that cannot be."""
    from align.peft.rates import check_loraplus
    from align.peft.stateful import hooks_of, planned

    method = peft(cfg[role].get("peft"), f"{role}.peft")
    planned(method, optimizer_steps(cfg.ppo), role)
    if "loraplus_lr_ratio" in cfg[role]:
        check_loraplus(cfg[role].loraplus_lr_ratio, method, role)
    if hooks_of(method).needs_gradients and not absent(cfg[role].zero):
        raise AlignError(
            f"{role}.peft: {method.peft_type.value} reads gradients after a step, which DeepSpeed has dropped by then\n"
            f"  write zero@{role}.zero=none"
        )


def check_goes_on(cfg: DictConfig, stages: list[str]) -> None:
    """What cannot merge is gone on with by the same method alone, as far as settings tell of stages still to run."""
    from align.peft.routes import why_unmergeable

    made = "rm" if "rm" in stages else "sft"
    for role, stage in (("rm", "sft"), ("actor", "sft"), ("critic", made)):
        node = cfg[role]
        if stage not in stages or absent(node) or node.path != "auto" or node.get("backbone") == "head":
            continue
        earlier, mine = peft(cfg[stage].peft, f"{stage}.peft"), peft(node.peft, f"{role}.peft")
        if (role == "rm" and made != "rm") or earlier is None or not (why := why_unmergeable(earlier)):
            continue
        if mine is None or mine.peft_type != earlier.peft_type:
            raise AlignError(
                f"{role}.peft: {role} starts from what {stage} makes with {earlier.peft_type.value}, which cannot be "
                f"merged ({why})\n  choose the same method for {stage}.peft and {role}.peft, one that "
                f"merges for {stage}.peft, such as lora, or another start: {role}.path=FOLDER"
            )


def check_sharing(cfg: DictConfig, stages: list[str]) -> None:
    """What keeps a critic or a reward model off the actor's base or trunk, as far as settings alone tell."""
    for word, key, node, instead in asked_to_share(cfg):
        critic = key == "critic"
        made_here = node.path == "auto" and "rm" in stages
        method = node.peft if critic else cfg.rm.peft if made_here else None
        why = ""
        if absent(cfg.actor.peft):
            why = "the actor trains all its weights (peft@actor.peft=none)"
        elif critic and absent(node.peft):
            why = "the critic trains all its weights (peft@critic.peft=none)"
        elif made_here and absent(cfg.rm.peft):
            why = "the reward model trains all its weights (peft@rm.peft=none)"
            why = f"it starts from the reward model, and {why}" if critic else why
        elif method and (theirs := peft(method, "peft").peft_type) != (mine := peft(cfg.actor.peft, "peft").peft_type):
            why = f"PEFT takes one method a model: the actor's is {mine.value}, the other's {theirs.value}"
        elif not critic and not absent(node.zero):
            why = f"the reward model has ZeRO settings of its own (zero@{key}.zero)"
        for owner in ("actor", "critic") if critic else ("actor",):
            if not absent(cfg[owner].zero) and cfg[owner].zero.stage == 3:
                why = why or f"zero@{owner}.zero=stage3 divides the base"
        if why:
            raise AlignError(f"{word}: the two cannot sit on one base: {why}\n  write {instead}")


def asked_to_share(cfg: DictConfig) -> list[tuple[str, str, DictConfig, str]]:
    """What asks for a seat on the actor's base, by name: the words, the node's key, the node, what to write instead."""
    asked = []
    if not absent(cfg.critic) and cfg.critic.get("backbone") == "adapter":
        asked.append(("critic=adapter", "critic", cfg.critic, "critic=own"))
    for key, node in reward_nodes(cfg.reward):
        if learned(node) and node.backbone == "shared":
            asked.append((f"{key}.backbone=shared", key, node, f"{key}.backbone=own"))
    return asked


def check_trunk(cfg: DictConfig) -> None:
    """A value head that is to shape the actor's trunk finds something there that trains."""
    if absent(cfg.critic) or cfg.critic.get("backbone") != "head" or not cfg.critic.get("trunk_gradient"):
        return
    settings = peft(cfg.actor.get("peft"), "actor.peft")
    if settings is None:
        return
    told = settings.to_dict()
    targets, saved = (told.get(name) or [] for name in ("target_modules", "modules_to_save"))
    if isinstance(targets, str) or told.get("target_parameters") or told.get("trainable_token_indices"):
        return  # a pattern, or more than modules: seen when the model is there
    trained = [*targets, *saved]
    if trained and all(name.endswith("lm_head") for name in trained):
        raise AlignError(
            "critic=head: the actor trains nothing in its trunk that a value could shape (actor.peft: lm_head alone)\n"
            "  write critic.trunk_gradient=0, or critic=own"
        )


def check_advantage(build: Build) -> None:
    """The advantage, the policy's loss, the critic and the batches must fit together."""
    cfg = build.cfg
    call_or_keep(cfg.policy_loss, "policy_loss")
    advantage = call(cfg.advantage, "advantage")
    name = cfg.advantage._target_.rpartition(".")[2]
    if advantage.needs_critic and absent(cfg.critic):
        raise AlignError(
            f"critic=none, but advantage {name} needs a critic\n"
            "  write critic=own, or advantage=rloo rollout.samples_per_prompt=4"
        )
    if not advantage.needs_critic and not absent(cfg.critic):
        raise AlignError(f"advantage {name} uses no critic, so one would be trained for nothing\n  write critic=none")
    if cfg.ppo.critic_warmup and not advantage.needs_critic:
        raise AlignError(
            f"ppo.critic_warmup={cfg.ppo.critic_warmup}: advantage {name} has no critic to warm up\n"
            "  write ppo.critic_warmup=0"
        )
    if cfg.ppo.critic_warmup and cfg.critic.get("backbone") == "head" and cfg.critic.get("trunk_gradient"):
        raise AlignError(
            f"ppo.critic_warmup={cfg.ppo.critic_warmup} with critic=head: the critic's gradient would move the actor's "
            "trunk\n  write critic.trunk_gradient=0, or critic=own"
        )
    check_batches(cfg.ppo, cfg.rollout.samples_per_prompt, advantage.min_samples)


def check_folders(build: Build, inputs: dict[str, str]) -> None:
    """Models are of the right kind, speak one vocabulary, and are ones that the rollout can serve."""
    from align.peft.routes import check_servable
    from align.rewards.model import check_same_tokenizer
    from align.roles.folder import CAUSAL, SCORE, inspect
    from align.roles.loading import look
    from align.roles.start import check_adapter
    from align.roles.tokenizer import load_tokenizer
    from align.rollout.choice import check_rollout

    cfg, folders = build.cfg, {}
    rewards = check_named(build, cfg.reward, "reward")
    for of_reward, folder in rewards:
        folders.setdefault(of_reward, []).append(folder)
    for role, kinds in (("actor", (CAUSAL,)), ("critic", (CAUSAL, SCORE)), ("reference", (CAUSAL,))):
        if role in inputs:
            node = cfg[role]
            if node.get("backbone") == "head":
                continue  # a folder with a value head alone will do
            folder = look(inputs[role], role, kinds)
            folders[role] = [folder]
            if "adapter" in node:
                check_adapter(folder, role, peft(node.get("peft"), f"{role}.peft"), node.adapter)
    check_bases(cfg, folders)
    base, key = first_start(build, inputs, "actor", "sft")
    if base is not None:
        model = inspect(base, f"{key}.path", CAUSAL).config()
        policy = load_tokenizer(base, f"{key}.path")
        starts = [first_start(build, inputs, *one) for one in (("reward", "rm"), ("critic", "rm"), ("reference", ""))]
        others = dict(starts) | {folder.path: of_reward for of_reward, folder in rewards}
        for other, other_key in others.items():
            if other is not None and other != base:
                check_same_tokenizer(load_tokenizer(other, f"{other_key}.path"), policy, f"{other_key}.path")
    elif "pretrain" in build.stages:
        model = {"hidden_size": cfg.pretrain.hidden_size, "num_attention_heads": cfg.pretrain.heads}
    else:
        return
    method = peft(cfg.actor.peft, "actor.peft")
    longest_prompt(build, "ppo", [inputs["actor"]] if "actor" in inputs else [])
    target_of(cfg.rollout, "rollout")
    check_rollout(cfg.rollout.engine, model, build.device().type == "cpu")
    check_servable(method, cfg.rollout.engine, cfg.rollout.fallback)


def check_named(build: Build, node: DictConfig, key: str) -> list[tuple[str, Folder]]:
    """The reward models that a reward and those inside it name, by the reward's key; each is one, and fits its base."""
    from align.roles.folder import SCORE, inspect
    from align.roles.start import check_fits

    found = []
    for name, one in reward_nodes(node, key):
        paths = build.reward_paths.get(name)
        for path in paths or ():
            found.append((name, inspect(path, f"{name}.path", SCORE)))
            check_fits(found[-1][1], name)
        if paths:
            check_several(one, name, paths)
    return found


def check_bases(cfg: DictConfig, folders: dict[str, list[Folder]]) -> None:
    """Who is to sit on the actor's base must stand on it, as far as the folders of each key tell."""
    for actor in folders.get("actor", ()):
        for word, key, _, instead in asked_to_share(cfg):
            for folder in folders.get(key, ()):
                if apart := why_folder_apart(cfg, actor, key, folder):
                    role = "critic" if key == "critic" else "reward model"
                    raise AlignError(f"{word}: the {role} cannot sit on the actor's base: {apart}\n  write {instead}")


def why_folder_apart(cfg: DictConfig, actor: Folder, key: str, folder: Folder) -> str:
    """Why the critic or the reward model in `folder` cannot sit on the base of the one in `actor` ('' if it can)."""
    from peft import PeftConfig

    from align.roles.placement import why_settings_apart

    mine, base = peft(cfg.actor.peft, "actor.peft"), actor.base or actor.path
    if actor.base and cfg.actor.adapter == "new":
        base = "one that is still to be merged (actor.adapter=new)"
    if key == "critic":
        return why_settings_apart(mine, base, folder, peft(cfg.critic.peft, "critic.peft"), cfg.critic.adapter)
    if folder.base is None:
        return "it is a whole model, no adapter"
    return why_settings_apart(mine, base, folder, PeftConfig.from_pretrained(folder.path))

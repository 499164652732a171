"""One PPO step of align on the peer benchmark's work: CPU seconds by phase, and peak memory above imports.

    python benchmarks/ppo_step.py --size s --work full --linear onednn

32 prompts of 16-64 tokens, 64 new tokens (`uneven`: up to), 4 epochs of one minibatch, so 4 optimizer steps, in
micro-batches of 8; a reward model, a critic, KL 0.05. `lora`: rank 16 on every linear layer of actor and critic.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

from meter import Meter, prepare

from align.ppo.options import PPOOptions

WORK = {"full": (None, "own"), "uneven": (None, "own"), "lora": (16, "own"), "lora_head": (16, "head")}
"""Rank of the adapters, and where the critic sits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["xs", "s", "m"], default="s")
    parser.add_argument("--work", choices=list(WORK), default="full")
    parser.add_argument("--linear", choices=["torch", "onednn", "auto"], default="torch")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--fixtures", default="build/benchmark")
    parser.add_argument("--profile", action="store_true", help="the costliest operators of the last update")
    parser.add_argument("--json", help="a file for the figures")
    args = parser.parse_args()
    prepare()

    import torch
    from fixtures import make

    torch.set_num_threads(int(__import__("os").environ["OMP_NUM_THREADS"]))
    import peft
    import transformers  # noqa: F401  (before the meter's base)

    import align.ppo.step  # noqa: F401

    meter = Meter()
    folder = make(Path(args.fixtures), args.size)
    rank, critic = WORK[args.work]
    adapter = None if rank is None else partial(
        peft.LoraConfig, r=rank, lora_alpha=2 * rank, target_modules="all-linear"
    )  # fmt: skip
    ppo, said = build(folder / args.size, args.work, adapter, critic, args.linear)
    for part, name in ((ppo.engine, "generate"), (ppo.roles, "score"), (ppo, "score_texts"), (ppo, "update")):
        meter.wrap(part, name, {"score_texts": "reward"}.get(name, name))
    meter.wrap(ppo.engine, "sync", "sync")
    rows = prompts(folder)
    meter.start()
    for step in range(args.steps):
        if args.profile and step == args.steps - 1:
            profile(ppo)
        metrics = ppo.step(rows[32 * step : 32 * step + 32])
        meter.end_step()
    tokens = int(ppo.last[0].response_mask_BT.sum())
    meter.report(
        args.json, system="align", size=args.size, work=args.work, linear=said, torch=torch.__version__,
        tokens=tokens, ratio=round(metrics["val/ratio"], 6),
    )  # fmt: skip


def prompts(folder: Path) -> list:
    """The fixtures' prompts as rows of a data set."""
    from align.ppo.rollouts import Row

    ids = json.loads((folder / "prompts.json").read_text())
    return [Row(number, "", prompt) for number, prompt in enumerate(ids)]


def plain_context(**more):
    """Roles in float32 on the CPU, trained by plain torch."""
    import torch

    from align.engine.plain import PlainEngine
    from align.roles.placement import RunContext

    engine = lambda module, rates, norm, zero: PlainEngine(module, rates, norm)
    return RunContext(torch.device("cpu"), torch.float32, engine, Path(tempfile.mkdtemp()), **more)


def build(
    folder: Path, work: str, adapter, critic: str, linear: str, batch: int = 32, new_tokens: int = 64, epochs: int = 4
):
    """The loop as `align.build.runtime` wires it."""
    import torch

    from align.advantages.gae import GAE
    from align.engine.linear import choose_linear, use_fast_linears
    from align.ppo.step import PPO
    from align.rewards.model import ModelReward
    from align.roles.placement import Placement
    from align.roles.specs import Actor, Critic, Reference
    from align.roles.tokenizer import load_tokenizer
    from align.rollout.hf import HFRollout
    from align.types import Sampling

    context = plain_context(max_grad_norm=0.0)
    torch.manual_seed(0)
    path = str(folder / ("policy_eos" if work == "uneven" else "policy"))
    placement = Placement(context, Actor(path, "auto", 3e-6, adapter and adapter(task_type="CAUSAL_LM"), None))
    Reference("auto", None).place(placement)
    other = adapter and adapter(task_type="SEQ_CLS")
    Critic(str(folder / "value"), "auto", 3e-6, other, None, critic).place(placement)
    roles = placement.roles(micro_batch_size=8)
    tokenizer = load_tokenizer(path, "path")
    reward = ModelReward(str(folder / "reward"), context, tokenizer)
    kind, words = choose_linear(roles.actor.model, linear)
    if kind == "onednn":
        for one in (*(group.backbone for group in roles.groups), reward.slot.shared):
            use_fast_linears(one)
    options = PPOOptions(batch_size=batch, minibatches=1, micro_batch_size=8, epochs=epochs, kl_coef=0.05)
    sampling = Sampling(1.0, new_tokens, (tokenizer.eos_token_id,))
    advantage = GAE(options.gamma, options.lam)
    ppo = PPO(roles, HFRollout(tokenizer.pad_token_id), reward, advantage, tokenizer, sampling, options)
    return ppo, words


def profile(ppo) -> None:
    """Prints the costliest operators of the next update."""
    import torch

    update = ppo.update

    def profiled(experience):
        with torch.profiler.profile() as seen:
            found = update(experience)
        print(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=48))
        return found

    ppo.update = profiled


if __name__ == "__main__":
    main()

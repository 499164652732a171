"""align's side of learning.py, one run: PPO in full on the stories model.

python benchmarks/learning_align.py --steps 60 --seed 0
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import stories
from meter import prepare

from align.ppo.options import PPOOptions


def main() -> None:
    args = stories.arguments(__doc__)
    prepare()
    ppo, tokenizer = build(args.model, args.seed, args.steps)
    steps, written = [], []
    for step in range(args.steps):
        rows = prompts(stories.openings(args.seed, step), tokenizer)
        before = time.process_time()
        metrics = ppo.step(rows)
        steps.append(stories.figures(metrics, time.process_time() - before))
        written.append(ppo.last[0].response_ids_BT.tolist())
    stories.report(args, "align", steps)
    if args.completions:
        Path(args.completions).write_text(json.dumps(written))


def prompts(texts: list[str], tokenizer) -> list:
    from align.ppo.rollouts import Row

    return [Row(number, text, tokenizer(text)["input_ids"]) for number, text in enumerate(texts)]


def build(path: str, seed: int, steps: int):
    """The loop as `align.build.runtime` wires it, and the tokenizer."""
    from ppo_step import plain_context

    from align.advantages.gae import GAE
    from align.ppo.step import PPO
    from align.rewards.function import FunctionReward
    from align.roles.placement import Placement
    from align.roles.specs import Actor, Critic, Reference
    from align.roles.tokenizer import load_tokenizer
    from align.rollout.hf import HFRollout
    from align.types import Sampling

    context = plain_context(max_grad_norm=0.0)  # TRL does not clip gradients, whatever its own says
    placement = Placement(context, Actor(path, "auto", stories.RATE, None, None, "linear"))
    Reference("auto", None).place(placement)
    Critic(path, "auto", stories.RATE, None, None, "own", schedule="linear").place(placement)
    tokenizer = load_tokenizer(path, "path")
    options = PPOOptions(
        steps=steps, batch_size=stories.BATCH, minibatches=1, micro_batch_size=stories.BATCH, epochs=stories.EPOCHS,
        kl_coef=stories.KL_COEF, clip=stories.CLIP, value_clip=stories.VALUE_CLIP,
    )  # fmt: skip
    # every completion has all its tokens: TRL puts the score of one that ends elsewhere than we do
    sampling = Sampling(1.0, stories.TOKENS, (tokenizer.pad_token_id,))
    roles = placement.roles(stories.BATCH)
    engine, reward = HFRollout(tokenizer.pad_token_id), FunctionReward(stories.rule)
    advantage = GAE(stories.GAMMA, stories.LAM)
    return PPO(roles, engine, reward, advantage, tokenizer, sampling, options, seed=seed), tokenizer


if __name__ == "__main__":
    main()

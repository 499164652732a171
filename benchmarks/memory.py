"""Memory of four roles on one backbone: peak of the resident set over two PPO steps, above imports.

    python benchmarks/memory.py                               # actor, critic, reference and reward model on one base
    python benchmarks/memory.py --critic own --reward own     # a base each
    python benchmarks/memory.py --rollout vllm                # vLLM in the process, on the same weights

A random Llama of 34M parameters in float32, LoRA of rank 16 for actor, critic and reward model; 32 prompts of
16-64 tokens, 64 new tokens, 4 epochs of one minibatch. What a pass of `--micro` rows keeps for its backward pass
counts, too: a row for each adapter.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from meter import Meter, prepare

from align.ppo.options import PPOOptions

SHAPES = {
    "34m": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
    "1m": {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 2},
}
"""By size; 1m is there to see that a benchmark runs."""
RANK = 16
STEPS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--critic", choices=["adapter", "head", "own"], default="adapter")
    parser.add_argument("--reward", choices=["shared", "own"], default="shared")
    parser.add_argument("--rollout", choices=["hf", "vllm"], default="hf")
    parser.add_argument("--share-weights", choices=["true", "false"], default="true")
    parser.add_argument("--kv-cache-mib", type=int, default=64)
    parser.add_argument("--micro", type=int, default=8)
    parser.add_argument("--rows", type=int, default=64, help="completions that rollout=hf writes at a time")
    parser.add_argument("--size", choices=list(SHAPES), default="34m")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--fixtures", default="build/benchmark")
    parser.add_argument("--make", action="store_true", help="make the models and end")
    args = parser.parse_args()
    prepare()
    if args.make:
        make(Path(args.fixtures) / args.size)
        return
    step(args, made(args.fixtures, args.size))


def made(fixtures: str, size: str) -> Path:
    """The folder of the models of a size; makes them once, in another process, whose memory does not count."""
    folder = Path(fixtures) / size
    if not (folder / "ready").exists():
        command = [sys.executable, __file__, "--make", "--fixtures", fixtures, "--size", size]
        subprocess.run(command, check=True)
    return folder


def make(folder: Path) -> None:
    """A random policy with its tokenizer, and a reward model: an adapter and a score on the same base."""
    import fixtures as shared
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(shared.make(folder.parent))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shared.VOCABULARY, pad_token_id=shared.PAD, eos_token_id=shared.EOS, **SHAPES[folder.name]
    )
    LlamaForCausalLM(config).save_pretrained(folder / "policy")
    trunk = AutoModelForSequenceClassification.from_pretrained(folder / "policy", num_labels=1)
    get_peft_model(trunk, lora("SEQ_CLS", str((folder / "policy").resolve()))).save_pretrained(folder / "reward")
    for name in ("policy", "reward"):
        tokenizer.save_pretrained(folder / name)
    (folder / "ready").write_text("")


def lora(task: str | None = None, base: str | None = None):
    from peft import LoraConfig

    return LoraConfig(
        r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type=task, base_model_name_or_path=base
    )


def step(args: argparse.Namespace, folder: Path) -> None:
    from ppo_step import plain_context, prompts

    import align.ppo.step
    import align.roles.specs
    from align.advantages.gae import GAE
    from align.ppo.step import PPO
    from align.rewards.model import ModelReward
    from align.roles.placement import Placement
    from align.roles.tokenizer import load_tokenizer
    from align.rollout.hf import HFRollout
    from align.types import Sampling

    if args.rollout == "vllm":
        from align.library_variables import prepare as before_vllm

        before_vllm()
        import vllm.v1.engine.core  # imports like the others: vLLM puts them off until it starts
        import vllm.v1.worker.cpu_model_runner  # noqa: F401

        from align.rollout.vllm.rollout import VLLMRollout
    meter = Meter()
    context = plain_context(gradient_checkpointing=args.checkpointing)
    specs, policy, judge = align.roles.specs, str(folder / "policy"), str(folder / "reward")
    placement = Placement(context, specs.Actor(policy, "auto", 1e-5, lora(), None))
    specs.Reference("auto", None).place(placement)
    specs.Critic(judge, "auto", 1e-5, lora(), None, args.critic).place(placement)
    tokenizer = load_tokenizer(policy, "path")
    reward = ModelReward(judge, context, tokenizer, backbone=args.reward, placement=placement)
    roles = placement.roles(micro_batch_size=args.micro)
    if args.rollout == "vllm":
        share = args.share_weights == "true"
        engine = VLLMRollout(policy, roles.actor, 128, 32, args.kv_cache_mib, share)
    else:
        engine = HFRollout(tokenizer.pad_token_id, args.rows)
    options = PPOOptions(batch_size=32, minibatches=1, micro_batch_size=args.micro, epochs=4, kl_coef=0.05)
    sampling = Sampling(1.0, 64, (tokenizer.eos_token_id,))
    ppo = PPO(roles, engine, reward, GAE(options.gamma, options.lam), tokenizer, sampling, options)
    rows = prompts(folder.parent)
    meter.start()
    for number in range(STEPS):
        ppo.step(rows[32 * number : 32 * number + 32])
        meter.end_step()
    meter.report(None, **{k: v for k, v in vars(args).items() if k != "fixtures"})
    parameters = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in roles.actor.model.parameters()}
    print(json.dumps({"weights_mib": round(sum(parameters.values()) / 2**20), "groups": len(roles.groups)}))
    ppo.engine.close()


if __name__ == "__main__":
    main()

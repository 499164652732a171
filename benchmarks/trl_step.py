"""The same step by TRL: PPO of its last release that had one (1.12), or RLOO (1.16), which has no critic.

    PYTHON benchmarks/trl_step.py --algorithm ppo --size s --work full      # PYTHON with trl==1.12.0
    PYTHON benchmarks/trl_step.py --algorithm rloo --size s --work full     # PYTHON with trl==1.16.0

RLOO writes two responses to each of 16 prompts. Run by benchmarks/against_trl.py.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from meter import Meter, prepare

BATCH, MICRO, EPOCHS, TOKENS, RANK = 32, 8, 4, 64, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", choices=["ppo", "rloo"], default="ppo")
    parser.add_argument("--size", choices=["xs", "s", "m"], default="s")
    parser.add_argument("--work", choices=["full", "uneven", "lora"], default="full")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--fixtures", default="build/benchmark")
    parser.add_argument("--json", help="a file for the figures")
    args = parser.parse_args()
    prepare()

    import torch
    import trl
    from fixtures import make
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(int(__import__("os").environ["OMP_NUM_THREADS"]))
    if args.algorithm == "ppo":
        import trl.experimental.ppo
    else:
        import trl.trainer.rloo_trainer
    meter = Meter()
    folder = make(Path(args.fixtures), args.size)
    models = folder / args.size
    policy = AutoModelForCausalLM.from_pretrained(models / ("policy_eos" if args.work == "uneven" else "policy"))
    reward = AutoModelForSequenceClassification.from_pretrained(models / "reward", num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    ids = json.loads((folder / "prompts.json").read_text())
    train = ppo if args.algorithm == "ppo" else rloo
    train(args, meter, policy, reward, tokenizer, ids)
    meter.report(
        args.json, system=f"trl {trl.__version__} {args.algorithm}", size=args.size, work=args.work,
        torch=torch.__version__,
    )  # fmt: skip


def shared(micro: int) -> dict:
    """Arguments that both trainers take."""
    return {
        "output_dir": tempfile.mkdtemp(), "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": BATCH // micro, "learning_rate": 3e-6, "temperature": 1.0, "bf16": False,
        "use_cpu": True, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no",
        "logging_steps": 1, "disable_tqdm": True, "seed": 0,
    }  # fmt: skip


def lora(task: str):
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear", task_type=task)


def ends_of_steps(meter: Meter, every: int = 1):
    """A callback that closes the meter's step after each `every` of the trainer's."""
    from transformers import TrainerCallback

    class Ends(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            self.seen = 0
            meter.start()

        def on_step_end(self, *args, **kwargs):
            self.seen += 1
            if self.seen % every == 0:
                while meter.phases:
                    meter.leave()
                meter.end_step()

    return Ends()


def ppo(args, meter: Meter, policy, reward, tokenizer, ids) -> None:
    import copy

    import torch
    import trl.experimental.ppo.ppo_trainer as module
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    value = AutoModelForSequenceClassification.from_pretrained(
        Path(args.fixtures) / args.size / "value", num_labels=1
    )  # fmt: skip
    adapted = args.work == "lora"
    if adapted:  # the trainer wraps the policy alone; the critic keeps the names that the trainer looks for
        from peft import inject_adapter_in_model

        value.model = inject_adapter_in_model(lora(None), value.model)
        for name, parameter in value.named_parameters():
            parameter.requires_grad_("lora_" in name or name.startswith("score"))
    config = PPOConfig(
        **shared(MICRO), num_mini_batches=1, total_episodes=BATCH * args.steps, num_ppo_epochs=EPOCHS,
        local_rollout_forward_batch_size=BATCH, response_length=TOKENS, kl_coef=0.05,
        stop_token="eos" if args.work == "uneven" else None, num_sample_generations=0,
    )  # fmt: skip
    forward = module.forward

    def watched(model, *rest):
        if not torch.is_grad_enabled():
            with meter.phase("score"):
                return forward(model, *rest)
        if "update" not in meter.phases:  # from the first forward of the update to the end of the step
            meter.enter("update")
        return forward(model, *rest)

    module.forward = watched
    meter.wrap(module, "batch_generation", "generate")
    meter.wrap(module, "get_reward", lambda model, *rest: "reward" if model is reward else "score")
    PPOTrainer(
        args=config, processing_class=tokenizer, model=policy, ref_model=None if adapted else copy.deepcopy(policy),
        reward_model=reward, value_model=value, train_dataset=Dataset.from_dict({"input_ids": ids}),
        peft_config=lora("CAUSAL_LM") if adapted else None, callbacks=[ends_of_steps(meter)],
    ).train()  # fmt: skip


def rloo(args, meter: Meter, policy, reward, tokenizer, ids) -> None:
    import torch
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    config = RLOOConfig(
        **shared(MICRO), num_generations=2, num_iterations=EPOCHS, max_steps=EPOCHS * args.steps,
        max_completion_length=TOKENS, beta=0.05, use_vllm=False,
    )  # fmt: skip
    trainer = RLOOTrainer(
        model=policy, reward_funcs=reward, reward_processing_classes=tokenizer, args=config, processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"prompt": [tokenizer.decode(row) for row in ids]}),
        peft_config=lora("CAUSAL_LM") if args.work == "lora" else None, callbacks=[ends_of_steps(meter, EPOCHS)],
    )  # fmt: skip
    meter.wrap(trainer, "_generate_single_turn", "generate")
    meter.wrap(trainer, "_calculate_rewards", "reward")
    meter.wrap(
        trainer,
        "_get_per_token_logps_and_entropies",
        lambda *rest, **more: None if torch.is_grad_enabled() else "score",
    )
    meter.wrap(trainer, "training_step", "update")
    trainer.train()


if __name__ == "__main__":
    main()

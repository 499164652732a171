"""TRL's side of learning.py, one run: PPO of TRL 1.12 on the stories model, with a rule for a reward model.

PYTHON benchmarks/learning_trl.py --steps 60 --seed 0      # PYTHON with trl==1.12.0
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import stories
from meter import prepare


def main() -> None:
    args = stories.arguments(__doc__)
    prepare()

    import torch
    import trl.experimental.ppo.ppo_trainer as module
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(args.model, padding_side="left")
    policy, reference = (AutoModelForCausalLM.from_pretrained(args.model) for _ in range(2))
    value = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=1)
    value.score = torch.nn.Linear(value.config.hidden_size, 1)  # as align's critic starts: with a bias, all zeros
    torch.nn.init.zeros_(value.score.weight), torch.nn.init.zeros_(value.score.bias)
    rule = torch.nn.Module()  # stands where the trainer wants a reward model
    score_by_rule(module, rule, tokenizer)
    if args.completions:
        replay(module, json.loads(Path(args.completions).read_text()))
    batches = [prompts(stories.openings(args.seed, step), tokenizer) for step in range(args.steps)]
    watch = watcher()
    trainer = PPOTrainer(
        args=settings(args.seed, args.steps), processing_class=tokenizer, model=policy, ref_model=reference,
        reward_model=rule, value_model=value, train_dataset=batches, callbacks=[watch],
    )  # fmt: skip
    trainer.dataloader = batches  # in align's order
    trainer.train()
    stories.report(args, "trl", watch.steps)


def settings(seed: int, steps: int):
    """Gradients are never clipped by this trainer, and one micro-batch is one optimizer step."""
    from trl.experimental.ppo import PPOConfig

    return PPOConfig(
        output_dir=tempfile.mkdtemp(), seed=seed, use_cpu=True, bf16=False, gradient_checkpointing=False,
        per_device_train_batch_size=stories.BATCH, gradient_accumulation_steps=1, num_mini_batches=1,
        total_episodes=stories.BATCH * steps, num_ppo_epochs=stories.EPOCHS,
        local_rollout_forward_batch_size=stories.BATCH, response_length=stories.TOKENS, stop_token=None,
        temperature=1.0, learning_rate=stories.RATE, lr_scheduler_type="linear", adam_beta1=stories.BETAS[0],
        adam_beta2=stories.BETAS[1], adam_epsilon=stories.EPSILON, weight_decay=0.0, kl_coef=stories.KL_COEF,
        kl_estimator="k1", cliprange=stories.CLIP, cliprange_value=stories.VALUE_CLIP, gamma=stories.GAMMA,
        lam=stories.LAM, vf_coef=1.0,  # policy and critic share no weight: align's critic has its own loss
        whiten_rewards=False, num_sample_generations=0, report_to="none", save_strategy="no", logging_steps=1,
        disable_tqdm=True,
    )  # fmt: skip


def prompts(texts: list[str], tokenizer) -> dict:
    return {"input_ids": tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]}


def score_by_rule(module, rule, tokenizer) -> None:
    """The trainer's `get_reward` asks the rule where it is given the reward model."""
    import torch

    get_reward = module.get_reward

    def asked(model, query_responses, pad_token_id, context_length):
        if model is not rule:
            return get_reward(model, query_responses, pad_token_id, context_length)
        texts = tokenizer.batch_decode(query_responses[:, context_length:], skip_special_tokens=True)
        return None, torch.tensor(stories.rule(texts)), None

    module.get_reward = asked


def replay(module, completions: list[list[list[int]]]) -> None:
    """The trainer takes these completions for its own, step by step."""
    import torch

    turns = iter(completions)

    def given(model, queries, size, pad_token_id, generation_config):
        ids = torch.cat([queries, torch.tensor(next(turns))], dim=1)
        logits = module.forward(model, ids, pad_token_id).logits
        return ids, logits[:, queries.shape[1] - 1 : -1]

    module.batch_generation = given


def watcher():
    """A callback that keeps each step's figures and CPU seconds."""
    from transformers import TrainerCallback

    class Watcher(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            self.steps, self.before = [], time.process_time()

        def on_log(self, args, state, control, logs, **kwargs):
            self.logs = logs

        def on_step_end(self, *args, **kwargs):
            now = time.process_time()
            self.steps.append(stories.figures(self.logs, now - self.before))
            self.before = now

    return Watcher()


if __name__ == "__main__":
    main()

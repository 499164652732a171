"""Stage `pretrain`: a byte-level tokenizer and a small Llama, made from a corpus.

    align stages=[pretrain] data@pretrain.data=text pretrain.data.path=corpus.jsonl

Documents are joined by EOS into one stream; a row is `max_length` tokens of it from a random place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from align.data.source import Source
from align.engine.linear import give_kernel
from align.engine.plain import Schedule
from align.errors import AlignError
from align.plan.plan import StagePlan
from align.plan.runtime import Runtime
from align.report.report import StageReport
from align.stages.pretrain.spec import PretrainOptions
from align.stages.training import guard_of

EOS, PAD, USER, ASSISTANT = "<eos>", "<pad>", "<|user|>", "<|assistant|>"
CHAT_TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|> {{ m['content'] }}<|assistant|>"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}<eos>{% endif %}{% endfor %}"
)
WARMUP = 0.05
NOTHING_HELD_OUT = "no held-out loss: pretrain.data holds out less than a row of pretrain.max_length"


@dataclass
class Pretrain:
    options: PretrainOptions
    data: Source
    seed: int
    device: torch.device

    def check(self, inputs: dict[str, str]) -> None:
        self.data.check("pretrain")

    def run(self, inputs: dict[str, str], out: Path, report: StageReport) -> None:
        split = self.data.load("pretrain", self.seed)
        tokenizer = train_tokenizer([row["text"] for row in split.train], self.options)
        train, held_out = (_stream(rows, tokenizer) for rows in (split.train, split.eval))
        if len(train) <= self.options.max_length:
            raise AlignError(
                f"pretrain.data: the corpus has {len(train)} tokens, fewer than a row of "
                f"pretrain.max_length={self.options.max_length}"
            )
        torch.manual_seed(self.seed)
        model = LlamaForCausalLM(_architecture(self.options, tokenizer)).to(self.device)
        give_kernel(model, report.say)
        parameters = sum(p.numel() for p in model.parameters())
        report.say(f"{parameters:,} parameters, {len(train):,} tokens, {len(tokenizer)} words in the vocabulary")
        self._train(model, train, held_out, report)
        loss = held_out_loss(model, held_out, self.options.max_length)
        report.say(NOTHING_HELD_OUT if loss is None else f"held-out loss {loss:.3f} nats a token")
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        report.write_card(parameters=parameters, tokens=len(train), eval_loss=loss)

    def _train(self, model: LlamaForCausalLM, train: torch.Tensor, held_out: torch.Tensor, report: StageReport) -> None:
        options = self.options
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=options.learning_rate, betas=(0.9, 0.95), weight_decay=options.weight_decay
        )
        schedule = Schedule(options.learning_rate, "cosine", round(options.steps * WARMUP))
        generator = torch.Generator().manual_seed(self.seed)
        offsets = torch.arange(options.max_length)
        model.train()
        guard = guard_of(model, report)
        with report.steps(options.steps) as tell:
            for step in range(1, options.steps + 1):
                first = torch.randint(len(train) - options.max_length, (options.batch_size, 1), generator=generator)
                ids = train[first + offsets].to(self.device)
                rate = optimizer.param_groups[0]["lr"] = schedule.rate(step - 1, options.steps)
                loss = model(input_ids=ids, labels=ids).loss
                guard.loss(loss, step)
                loss.backward()
                guard.gradients(step)
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                report.metrics(step, {"loss": loss.item(), "grad_norm": float(norm), "lr": rate})
                tell(step, f"loss {loss.item():.3f}")
        guard.weights(options.steps)
        model.eval()


def build(stage: StagePlan, runtime: Runtime) -> Pretrain:
    data = runtime.data(stage.options.data)
    return Pretrain(stage.options, data, runtime.seed, runtime.device)


def train_tokenizer(texts: list[str], options: PretrainOptions) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with EOS, pad and the two turn marks; deterministic for a corpus."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=options.vocab_size,
        special_tokens=[PAD, EOS, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=EOS, pad_token=PAD, additional_special_tokens=[USER, ASSISTANT],
        model_max_length=options.max_positions,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, stream: torch.Tensor, length: int) -> float | None:
    """Mean negative log-likelihood in nats a token over whole rows of the held-out stream; None where it has none."""
    rows = stream[: len(stream) // length * length].view(-1, length).to(model.device)
    if not len(rows):
        return None
    losses = [float(model(input_ids=part, labels=part).loss) * len(part) for part in rows.split(64)]
    return sum(losses) / len(rows)


def _stream(rows: list[dict], tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    ids = tokenizer([row["text"] for row in rows], add_special_tokens=False)["input_ids"] if rows else []
    return torch.tensor([i for document in ids for i in (*document, tokenizer.eos_token_id)], dtype=torch.long)


def _architecture(options: PretrainOptions, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=options.hidden_size,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=options.intermediate_size,
        max_position_embeddings=options.max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )

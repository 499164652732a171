"""Rows reach TRL's trainers as the file has them: no key added, no turn dropped, no token joined, no end cut unsaid."""

import copy

import pytest
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from align.stages import training

NAMES = (
    "{% for m in messages %}{% if 'name' in m %}({{ m['name'] }}){% endif %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


def turns(*contents: str, **more: str) -> list[dict]:
    """Messages of user and assistant in turn; `more` are keys of the first."""
    found = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    found[0] |= more
    return found


@pytest.fixture
def templated(tokenizer):
    """templated(template) -> the tokenizer with that chat template."""

    def make(template: str):
        other = copy.deepcopy(tokenizer)
        other.chat_template = template
        return other

    return make


def trained_texts(rows: list[dict], tokenizer, base: str, tmp_path, **args) -> list[str]:
    """Texts that TRL's SFTTrainer trains on."""
    settings = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **args)
    model = AutoModelForCausalLM.from_pretrained(base)
    trainer = SFTTrainer(model, settings, train_dataset=training.dataset(rows), processing_class=tokenizer)
    return [tokenizer.decode(row["input_ids"]) for row in trainer.train_dataset]


def test_a_key_of_one_rows_messages_is_not_added_to_the_others(templated, base, tmp_path):
    rows = [{"messages": turns("a red kite", "rain", name="Bob")}, {"messages": turns("seven", "ropes")}]
    found = trained_texts(rows, templated(NAMES), base, tmp_path)
    assert found == ["(Bob)a red kiterain<eos>", "sevenropes<eos>"]

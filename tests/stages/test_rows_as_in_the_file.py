"""Rows reach TRL's trainers as the file has them: no key added, no turn dropped, no token joined, no end cut unsaid."""

import copy

import pytest
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from align.data.encode import fitting_examples, fitting_pairs, prompt_ids, sequences
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


def trained_on(rows: list[dict], tokenizer, base: str, tmp_path, **args) -> list[dict]:
    """Rows of TRL's SFTTrainer."""
    settings = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", **args)
    model = AutoModelForCausalLM.from_pretrained(base)
    trainer = SFTTrainer(model, settings, train_dataset=training.dataset(rows), processing_class=tokenizer)
    return list(trainer.train_dataset)


def test_a_key_of_one_rows_messages_is_not_added_to_the_others(templated, base, tmp_path):
    rows = [{"messages": turns("a red kite", "rain", name="Bob")}, {"messages": turns("seven", "ropes")}]
    found = trained_on(rows, templated(NAMES), base, tmp_path)
    assert [templated(NAMES).decode(row["input_ids"]) for row in found] == [
        "(Bob)a red kiterain<eos>",
        "sevenropes<eos>",
    ]


MERGING = [{"prompt": "a red ki", "completion": "te flies"}, {"prompt": "rain", "completion": " over"}]


def test_a_token_of_prompt_and_completion_is_parted_as_in_rollouts(tokenizer, base, tmp_path):
    rows, tally = fitting_examples(MERGING, tokenizer, 100, "sft")
    assert tally.changed == {"apart": 1} and tally.lines()[0].startswith("1 of 2 rows in which")
    found = trained_on(rows, tokenizer, base, tmp_path, max_length=100)
    for row, given in zip(found, MERGING, strict=True):
        prompt = prompt_ids(given["prompt"], tokenizer)
        whole = tokenizer.decode(row["input_ids"])
        assert row["input_ids"][: len(prompt)] == prompt and whole == given["prompt"] + given["completion"] + "<eos>"
        assert row["labels"] == [-100] * len(prompt) + row["input_ids"][len(prompt) :]


def test_pairs_are_parted_for_a_reward_model_and_counted_for_dpo(tokenizer):
    pairs = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": " no"} for row in MERGING]
    rows, tally = fitting_pairs(pairs, tokenizer, 100, "rm")
    assert tally.changed == {"apart": 1}
    assert [row["chosen_ids"] for row in rows] == [one.ids for one in sequences(pairs, "chosen", tokenizer)]
    _, tally = fitting_pairs(pairs, tokenizer, 100, "dpo")
    assert tally.changed == {"joined": 1} and "1 of 2 rows" in tally.lines()[0]


def test_a_completion_in_a_space_of_its_own_is_left_as_it_is(tokenizer, base, tmp_path):
    rows, tally = fitting_examples(MERGING[1:], tokenizer, 100, "sft")
    assert rows == MERGING[1:] and tally.lines() == []

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from align.data.encode import (
    completion_as,
    fitting_examples,
    fitting_pairs,
    fitting_prompts,
    prompt_ids,
)
from align.errors import AlignError

USER = {"role": "user", "content": "hi"}
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "[{{ m.role[0] }}]{{ m.content }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[a]{% endif %}"
)


def tokenizer_of(ends: bool = False, template: str | None = TEMPLATE, eos: str | None = "<eos>"):
    """A token a byte; begins every text with <bos>, and ends it with <eos> if `ends`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<bos>", "<eos>", *alphabet])}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>" if ends else "<bos> $A", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token=eos,
        chat_template=template,
        name_or_path="models/small",
    )


def pair(prompt: str, chosen: str, rejected: str) -> dict:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def small(kind: str):
    # Imported here: the model classes take seconds to import, and only the slow tests need them.
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=300,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_labels=1,
        pad_token_id=0,
    )
    return getattr(transformers, kind)(config)


def test_the_ids_of_a_string_begin_with_bos_and_have_no_eos():
    for ends in (False, True):
        tokenizer = tokenizer_of(ends)
        ids = prompt_ids("ab", tokenizer)
        assert ids[0] == 1 and tokenizer.decode(ids[1:]) == "ab"


def test_an_eos_that_the_prompt_itself_ends_with_stays():
    for ends in (False, True):
        tokenizer = tokenizer_of(ends)
        assert tokenizer.decode(prompt_ids("ab<eos>", tokenizer)) == "<bos>ab<eos>"
        assert tokenizer.decode(prompt_ids("ab<eos><eos>", tokenizer)) == "<bos>ab<eos><eos>"


def test_an_empty_string_gives_what_the_tokenizer_begins_with():
    assert prompt_ids("", tokenizer_of(ends=True)) == [1]


def test_messages_go_through_the_template_with_the_generation_prompt():
    tokenizer = tokenizer_of()
    ids = prompt_ids([USER], tokenizer)
    assert type(ids) is list and tokenizer.decode(ids) == "[u]hi<eos>[a]"


def test_a_missing_chat_template_names_the_tokenizer_and_what_to_do():
    with pytest.raises(AlignError, match=r"models/small has no chat template.*chat_template.jinja"):
        prompt_ids([USER], tokenizer_of(template=None))
    assert prompt_ids("a", tokenizer_of(template=None))


def test_messages_that_the_template_refuses_are_named():
    with pytest.raises(AlignError, match=r"refuses messages of system, user \(no system role\)"):
        prompt_ids([{"role": "system", "content": "be kind"}, USER], tokenizer_of())


@pytest.mark.parametrize("place", [1, 2, 3])
def test_the_first_message_that_the_template_refuses_is_named(place):
    talk = [USER, {"role": "assistant", "content": "yes"}]
    talk.insert(place - 1, {"role": "system", "content": "be kind"})
    with pytest.raises(AlignError, match=rf"message {place} is the system's 'be kind'"):
        prompt_ids(talk, tokenizer_of())


def test_a_completion_has_the_form_of_its_prompt():
    assert completion_as("p", " a") == " a"
    assert completion_as([USER], "a") == [{"role": "assistant", "content": "a"}]


def test_prompts_that_fit_come_with_their_index_and_ids():
    tokenizer = tokenizer_of()
    rows = [{"prompt": "a" * length, "x": length} for length in (4, 5, 2)]
    fitting, left_out = fitting_prompts(rows, tokenizer, max_prompt_tokens=5, key="ppo")  # one of them is bos
    assert left_out.lines() == [
        "1 of 3 prompts left out: 1 longer than ppo.max_prompt_tokens=5 (the longest, row 2, has 6 tokens)"
    ]
    assert fitting == [(0, rows[0], prompt_ids("aaaa", tokenizer)), (2, rows[2], prompt_ids("aa", tokenizer))]
    assert [len(ids) for _, _, ids in fitting] == [5, 3]


def test_prompts_that_are_all_too_long_say_how_long_and_which_keys():
    rows = [{"prompt": "a" * length} for length in (9, 30)]
    with pytest.raises(AlignError) as caught:
        fitting_prompts(rows, tokenizer_of(), max_prompt_tokens=5, key="ppo")
    message = str(caught.value)
    assert "no prompt is left of 2" in message and "10 to 31 tokens" in message
    assert "ppo.max_prompt_tokens" in message and "ppo.data.path" in message


def test_a_prompt_without_a_token_is_refused():
    tokenizer = tokenizer_of()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(AlignError, match="prompt of row 2 of those loaded is empty"):
        fitting_prompts([{"prompt": "a"}, {"prompt": ""}], tokenizer, 5, "ppo")


def test_no_rows_at_all_fit_without_an_error():
    """Held-out rows at eval_share=0."""
    for fitting, key in ((fitting_prompts, "ppo"), (fitting_pairs, "rm"), (fitting_examples, "sft")):
        kept, left_out = fitting([], tokenizer_of(), 5, key)
        assert kept == [] and left_out.total == 0 and left_out.lines() == []


PAIRS = [
    pair("pp", " good", " bad"),
    pair("pp", " same", " same"),
    pair("pp", " ", " bad"),
    pair("pp", " good", ""),
    pair("pp", " 34567", " bad"),  # 1 bos + 2 + 6 + 1 eos = 10 tokens
    pair("pp", " 345678", " bad"),
    pair("pp", " bad", " 345678"),
]


def test_pairs_are_counted_with_bos_and_eos():
    fitting, left_out = fitting_pairs(PAIRS, tokenizer_of(), max_length=10, key="rm")
    assert fitting == [PAIRS[0], PAIRS[4]]
    assert left_out.left_out == {"too_long": 2, "alike": 1, "empty": 2}
    longer = "2 longer than rm.max_length=10 (the longest, row 6, has 11 tokens)"
    assert left_out.lines() == [f"5 of 7 rows left out: 1 with completions alike, 2 empty, {longer}"]
    left_out = fitting_pairs(PAIRS, tokenizer_of(), None, "rm")[1].left_out
    assert left_out == {"too_long": 0, "alike": 1, "empty": 2}


def test_pairs_that_differ_only_in_a_written_eos_are_alike():
    rows = [pair("p", " a<eos>", " a"), pair("p", " a", " b")]
    fitting, left_out = fitting_pairs(rows, tokenizer_of(), 20, "rm")
    assert (fitting, left_out.left_out) == ([rows[1]], {"too_long": 0, "alike": 1, "empty": 0})


def test_pairs_of_messages_with_and_without_a_prompt_are_counted_alike():
    good, bad, long = ([{"role": "assistant", "content": text}] for text in ("good", "bad", "good as gold"))
    explicit = [
        {"prompt": [USER], "chosen": good, "rejected": bad},
        {"prompt": [USER], "chosen": good, "rejected": good},
        {"prompt": [USER], "chosen": bad, "rejected": long},
    ]
    implicit = [{side: [USER] + row[side] for side in ("chosen", "rejected")} for row in explicit]
    limit = len("[u]hi") + 1 + len("[a]good") + 1
    for rows in (explicit, implicit):
        fitting, left_out = fitting_pairs(rows, tokenizer_of(), limit, "rm")
        assert (fitting, left_out.left_out) == (rows[:1], {"too_long": 1, "alike": 1, "empty": 0})
        with pytest.raises(AlignError):
            fitting_pairs(rows, tokenizer_of(), limit - 2, "rm")


@pytest.mark.parametrize(
    ("rows", "said", "unsaid"),
    [
        (PAIRS[1:4], "1 with completions alike", "max_length"),
        (PAIRS[2:4], "2 with an empty completion", "alike"),
        (PAIRS[5:], "2 longer than rm.max_length=10 (11 to 11 tokens", "alike"),
    ],
)
def test_no_pair_left_says_why(rows, said, unsaid):
    with pytest.raises(AlignError) as caught:
        fitting_pairs(rows, tokenizer_of(), 10, "rm")
    assert said in str(caught.value) and unsaid not in str(caught.value)


def test_a_tokenizer_without_eos_is_refused_for_pairs():
    with pytest.raises(AlignError, match="models/small has no eos_token"):
        fitting_pairs(PAIRS, tokenizer_of(eos=None), 10, "rm")


@pytest.mark.slow
def test_pairs_that_fit_are_those_that_trl_keeps(tmp_path):
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    rows = [PAIRS[0], *PAIRS[4:]]
    trainer = RewardTrainer(
        model=small("LlamaForSequenceClassification"),
        args=RewardConfig(output_dir=str(tmp_path), max_length=10, use_cpu=True, bf16=False, report_to="none"),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer_of(),
    )
    fitting, left_out = fitting_pairs(rows, tokenizer_of(), 10, "rm")
    assert len(trainer.train_dataset) == len(fitting) == 2
    assert left_out.left_out == {"too_long": 2, "alike": 0, "empty": 0}


EXAMPLES = [{"prompt": "p" * length, "completion": " c"} for length in (3, 8, 9, 20)]


def test_an_example_needs_a_completion_token_within_max_length():
    fitting, left_out = fitting_examples(EXAMPLES, tokenizer_of(), max_length=10, key="sft")
    assert (fitting, left_out.left_out["no_room"]) == (EXAMPLES[:2], 2)  # bos and 9 of the prompt fill the ten
    fitting, left_out = fitting_examples(EXAMPLES, tokenizer_of(), None, "sft")
    assert (fitting, left_out.lines()) == (EXAMPLES, [])


def test_no_example_left_says_how_long_the_prompts_are():
    with pytest.raises(AlignError, match=r"sft.max_length=10: no example is left of 2.*\(10 to 21 tokens\)"):
        fitting_examples(EXAMPLES[2:], tokenizer_of(), 10, "sft")


def test_rows_that_are_learned_whole_all_stay():
    for rows in ([{"text": "a" * 99}], [{"messages": [USER, {"role": "assistant", "content": "a" * 99}]}]):
        fitting, left_out = fitting_examples(rows, tokenizer_of(), 10, "sft")
        assert (fitting, left_out.changed) == (rows, {"cut": 1})


@pytest.mark.slow
@pytest.mark.parametrize("form", ["strings", "messages"])
@pytest.mark.parametrize("ends", [False, True])
def test_examples_that_fit_are_those_that_trl_keeps(tmp_path, form, ends):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = EXAMPLES
    if form == "messages":
        rows = [
            {
                "prompt": [{"role": "user", "content": "p" * length}],
                "completion": [{"role": "assistant", "content": "c"}],
            }
            for length in (1, 2, 3, 4)
        ]
    trainer = SFTTrainer(
        model=small("LlamaForCausalLM"),
        args=SFTConfig(output_dir=str(tmp_path), max_length=10, use_cpu=True, bf16=False, report_to="none"),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer_of(ends),
    )
    fitting, left_out = fitting_examples(rows, tokenizer_of(ends), 10, "sft")
    assert len(trainer.train_dataset) == len(fitting) == 2
    assert left_out.left_out["no_room"] == 2


IGNORES = "{% for m in messages %}{% if m.role != 'tool' %}[{{ m.role[0] }}]{{ m.content }}{% endif %}{% endfor %}"
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}


@pytest.mark.parametrize("turn, part", [({"role": "tool", "content": "sunny"}, "content"), (CALL, "tool_calls")])
def test_a_turn_that_the_template_leaves_out_is_refused_with_its_row(turn, part):
    rows = [{"messages": [USER]}, {"messages": [USER, turn, {"role": "assistant", "content": "yes"}]}]
    tokenizer = tokenizer_of(template=IGNORES)
    words = (
        rf"models/small leaves out the {part} of message 2, in row 2 .*the {turn['role']}'s(.|\n)*chat_template.jinja"
    )
    with pytest.raises(AlignError, match=words):
        fitting_examples(rows, tokenizer, 100, "sft")
    with pytest.raises(AlignError, match=f"the {part} of message 2"):
        prompt_ids(rows[1]["messages"], tokenizer)
    assert prompt_ids([USER, {"role": "assistant", "content": ""}, USER], tokenizer)  # nothing to leave out


def test_rows_that_are_cut_are_counted_and_left_out_by_choice():
    rows = [{"prompt": "pp", "completion": " good"}, {"prompt": "pp", "completion": " as good as gold"}]
    fitting, tally = fitting_examples(rows, tokenizer_of(), 10, "sft")
    assert fitting == rows and tally.changed == {"cut": 1}
    (line,) = tally.lines()
    assert line.startswith("1 of 2 rows cut at sft.max_length=10") and "EOS" in line and "has 20 tokens" in line
    assert "sft.too_long=leave_out" in line
    fitting, tally = fitting_examples(rows, tokenizer_of(), 10, "sft", too_long="leave_out")
    assert fitting == rows[:1] and tally.changed == {} and tally.left_out["too_long"] == 1
    with pytest.raises(AlignError, match=r"sft.max_length=10: no example is left of 1.*20 to 20 tokens"):
        fitting_examples(rows[1:], tokenizer_of(), 10, "sft", too_long="leave_out")


def test_a_template_that_renders_a_prompt_otherwise_before_a_completion_is_told():
    template = IGNORES + "{% if add_generation_prompt %}[a]=>{% endif %}"
    good, bad = ([{"role": "assistant", "content": text}] for text in ("good", "bad"))
    pairs = [{"prompt": [USER], "chosen": good, "rejected": bad}] * 2
    tokenizer = tokenizer_of(template=template)
    for rows, found in (
        (pairs, fitting_pairs(pairs, tokenizer, 100, "dpo")),
        ([{"messages": [USER, *good]}] * 2, fitting_examples([{"messages": [USER, *good]}] * 2, tokenizer, 100, "sft")),
    ):
        assert found[0] == rows and found[1].changed == {"otherwise": 2}
        (line,) = found[1].lines()
        assert line.startswith("2 of 2 rows in which the chat template renders") and "'=>'" in line


@pytest.mark.parametrize(
    ("row", "token"),
    [
        ({"prompt": "a<eos>b", "completion": " c"}, "<eos>"),
        ({"prompt": "<bos>a", "completion": " c<pad>d<eos>"}, "<pad>"),
        ({"prompt": "<bos>a", "completion": " c<eos>"}, None),
        ({"messages": [{"role": "user", "content": "a<eos>"}]}, "<eos>"),
    ],
)
def test_the_text_of_a_special_token_is_counted(row, token):
    _, tally = fitting_examples([row], tokenizer_of(), 100, "sft")
    assert tally.changed == ({"special": 1} if token else {})
    assert token is None or token in tally.lines()[0]

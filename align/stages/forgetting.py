"""What training costs a policy elsewhere: its loss on general text, and how diverse its samples are."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from align.data.files import FileData
from align.data.source import Source, Split
from align.errors import AlignError
from align.roles.policy import TrainedPolicy
from align.stages.answers import label_logp
from align.stages.text_metrics import distinct, self_bleu
from align.types import Rollout

LONGEST = 512


def general_texts(source: Source, seed: int, held_out: Callable[[Split], list[dict]]) -> list[str]:
    """The texts of `evaluate.general`: all of a file's, and of what is made on the spot those that are `held_out`.

    Raises AlignError for what is wrong with it, under that key; a source knows the purpose `pretrain`.
    """
    try:
        split = source.load("pretrain", seed)
    except AlignError as error:
        raise AlignError(str(error).replace("pretrain.data", "evaluate.general")) from error
    whole = isinstance(source, FileData) and source.eval_path is None
    return [row["text"] for row in ([*split.train, *split.eval] if whole else held_out(split))]


def text_loss(policy: TrainedPolicy, texts: list[str], tokenizer: PreTrainedTokenizerBase, batch_size: int) -> float:
    """Nats a token of texts as they are, each from its second token on, up to 512 of them.

    Raises AlignError where no text has two tokens.
    """
    ids = [one[:LONGEST] for one in tokenizer(texts)["input_ids"]]
    ids = [one for one in ids if len(one) > 1]
    if not ids:
        raise AlignError("evaluate.general: no text has two tokens, so that none has a loss\n  write longer texts")
    total = sum(label_logp(policy, ids, [1] * len(ids), batch_size))
    return -total / sum(len(one) - 1 for one in ids)


def diversity(rollout: Rollout, texts: list[str]) -> dict[str, float]:
    """distinct-1 and -2, self-BLEU (0 to 1, the higher the more alike), and entropy in nats a token.

    The entropy is the mean of -log p of the sampled tokens, an estimate without bias at temperature 1.
    """
    mask_BT = rollout.response_mask_BT
    entropy = -float((rollout.logp_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1))
    return {
        "distinct_1": distinct(texts, 1), "distinct_2": distinct(texts, 2), "self_bleu": self_bleu(texts),
        "entropy": entropy,
    }  # fmt: skip

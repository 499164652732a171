"""Check of rows of stages that start from an earlier one's model, apart from the pipeline, which imports no torch."""

from __future__ import annotations

from typing import Any

from align.data.encode import check_dialogues
from align.data.files import unwritten
from align.data.source import LIKE, PURPOSES
from align.plan.plan import StagePlan
from align.roles.tokenizer import load_tokenizer


def check_later(steps: list[tuple[StagePlan, Any]]) -> None:
    """Raise AlignError for messages in their data that the chat template refuses.

    The template is that of the model that the run starts from, which stages hand on; of a model that is still to be
    made there is none to check.
    """
    for stage, step in steps:
        start = stage.input("actor") or stage.input("path")
        if start is None or start.path is not None or start.origin.path is None or stage.spec.name not in PURPOSES:
            continue
        tokenizer, data = load_tokenizer(start.origin.path, "model"), step.data
        for source in data if isinstance(data, list) else [data]:
            if not unwritten(source):
                split = source.load(stage.spec.name, step.seed)
                rows = [*split.train, *split.eval, *split.test]
                if LIKE.get(stage.spec.name, stage.spec.name) == "ppo":  # other columns are a reward's
                    rows = [{"prompt": row["prompt"]} for row in rows]
                check_dialogues(rows, tokenizer, f"{stage.spec.name}.data")

"""What stages that start from an earlier one's model will read: looked at before the first of them trains."""

from __future__ import annotations

from typing import Any

from align.data.encode import check_dialogues
from align.data.files import unwritten
from align.data.source import LIKE, PURPOSES
from align.roles.tokenizer import load_tokenizer


def check_later(steps: dict[str, Any], known: dict[str, dict[str, str]]) -> None:
    """Raises AlignError for messages in their data that the chat template refuses.

    `steps` are a run's stages by name, `known` their inputs as far as they are there. The template is that of the
    first model, which stages hand on; one that `pretrain` is still to make is not looked at.
    """
    starts = {name: known[name].get("actor", known[name].get("path")) for name in steps}
    first = next((path for path in starts.values() if path is not None), None)
    later = [name for name in steps if name in PURPOSES and starts[name] is None]
    if first is None or "pretrain" in steps or not later:
        return
    tokenizer = load_tokenizer(first, "model")
    for name in later:
        data = steps[name].data
        for source in data if isinstance(data, list) else [data]:
            if not unwritten(source):
                split = source.load(name, steps[name].seed)
                rows = [*split.train, *split.eval, *split.test]
                if LIKE.get(name, name) == "ppo":  # other columns are a reward's
                    rows = [{"prompt": row["prompt"]} for row in rows]
                check_dialogues(rows, tokenizer, f"{name}.data")

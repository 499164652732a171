"""Rewards of your own; in this folder: `align experiment=tiny reward=fn reward.fn=my_rewards.brevity`."""


def brevity(completions, target=20, **kwargs):
    """0 for a completion of `target` words; less, the further its length is from that."""
    texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [-abs(len(text.split()) - target) / target for text in texts]


def right(completions, answer, **kwargs):
    """1 for a completion that holds the row's answer, else 0; no opinion on a row without one."""
    return [None if a is None else float(a in c) for c, a in zip(completions, answer, strict=True)]

"""Keys: what a completion's randomness depends on, and nothing else."""

from __future__ import annotations

import hashlib


def sample_key(seed: int, purpose: str, step: int, row: int, sample: int) -> int:
    """A number below 2^63 from (seed, purpose, step, row of the data set, number of the sample).

    Batch, order and number of ranks do not enter, so they change nothing; equal prompts in two rows or
    two samples of one row get different completions.
    """
    words = f"{seed}/{purpose}/{step}/{row}/{sample}".encode()
    return int.from_bytes(hashlib.sha256(words).digest()[:8], "big") >> 1

"""Which bytes a stage was made from."""

from __future__ import annotations

import hashlib
from pathlib import Path

WEIGHTS = ("*.safetensors", "*.bin", "config.json", "adapter_config.json", "tokenizer.json")
CHUNK = 1 << 20


def fingerprint(path: str | Path) -> str | None:
    """SHA-256 of a model's folder, names and bytes of weights, configuration and tokenizer; None for a hub name.

    The first 16 hexadecimal digits.
    """
    folder = Path(path)
    if not folder.is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted({file for pattern in WEIGHTS for file in folder.glob(pattern)}):
        digest.update(file.name.encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def fingerprints(inputs: dict[str, str], base: str | None) -> dict[str, str]:
    """Fingerprints of a stage's inputs by name, and of the plain model under its adapter."""
    named = {**inputs, **({"base": base} if base else {})}
    found = {name: fingerprint(path) for name, path in named.items()}
    return {name: value for name, value in found.items() if value}

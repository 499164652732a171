"""Fingerprint of the bytes that a stage starts from, and the kernel that an earlier run measured."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from align.config.choices import MEASURED

WEIGHTS = (
    "*.safetensors",
    "member_*/*.safetensors",
    "*.bin",
    "config.json",
    "adapter_config.json",
    "tokenizer.json",
    "rankings.jsonl",
    "held_out.jsonl",
)
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
        digest.update(str(file.relative_to(folder)).encode() + b"\0")
        with file.open("rb") as stream:
            while chunk := stream.read(CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def fingerprints(inputs: dict[str, str], base: str | None) -> dict[str, str]:
    """Fingerprints of a stage's inputs by name, and of the plain model under its adapter."""
    named = {**inputs, **({"base": base} if base else {})}
    found = {name: fingerprint(path) for name, path in named.items()}
    return {name: value for name, value in found.items() if value}


def measured_linear(home: Path, starts: Mapping[str, str | None]) -> tuple[str, str] | None:
    """The kernel that `cpu_linear=auto` measured for one of these stages before, and its card.json.

    `starts` has the folder that each stage starts from. A result of that very stage, or a checkpoint in its folder,
    comes first; then the newest run in `home`. Two kernels round differently: a run that is repeated keeps the first's.
    """
    for stage, start in starts.items():
        for file in _cards(home, stage, start):
            card = _read(file)
            chosen = card.get("cpu_linear", {}) if card.get("stage") == stage else {}
            origin = str(file) if chosen.get("from") == MEASURED else chosen.get("from", "")
            if Path(origin).name == file.name:
                return chosen["kind"], origin
    return None


def _cards(home: Path, stage: str, start: str | None) -> Iterator[Path]:
    if start:
        folder = Path(start).expanduser().resolve()
        yield from (place / "card.json" for place in (folder, *folder.parents[:2]))
    yield from sorted(home.resolve().glob(f"[0-9]*/{stage}/card.json"), reverse=True)


def _read(file: Path) -> dict[str, Any]:
    """A card; {} where there is none, or half of one by a run that was stopped."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {}

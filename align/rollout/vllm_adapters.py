"""LoRA adapters in a running vLLM: one at a time, replaced after every update.

vLLM keys its weights by an adapter's id and its prefix cache by name and path, so every version gets an
id, a name and a folder of its own; anything less has been seen to serve the old policy without a word.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.errors import AlignError


class Adapters:
    """Those of one engine, vLLM's LLM."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self.pushes = 0
        self.request: Any = None
        """What a call of `generate` names the adapter of now by; None before the first."""
        self.folder = tempfile.TemporaryDirectory(prefix="align-vllm-")

    def push(self, save: Callable[[Path], None]) -> int:
        """Hands over the adapter that `save` writes into a folder as a new one, and drops the old; its size in bytes.

        Raises AlignError for one that vLLM refuses; the old one stays.
        """
        from vllm.lora.request import LoRARequest

        self.pushes += 1
        name = f"policy-{self.pushes}"
        folder = Path(self.folder.name) / name
        folder.mkdir()
        save(folder)
        request = LoRARequest(name, self.pushes, str(folder))
        try:
            self.llm.llm_engine.add_lora(request)
        except ValueError as error:
            shutil.rmtree(folder)
            raise AlignError(f"rollout=vllm: vLLM refuses the actor's adapter: {error}\n  write rollout=hf") from error
        if self.request is not None:
            self.llm.llm_engine.remove_lora(self.request.lora_int_id)
            shutil.rmtree(self.request.lora_path)
        self.request = request
        return sum(file.stat().st_size for file in folder.glob("adapter_model*"))

    def close(self) -> None:
        """Deletes the folders; may be called twice."""
        self.request = self.llm = None
        self.folder.cleanup()

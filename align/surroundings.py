"""Environment variables that libraries read when they are imported, set before they are. No torch here."""

from __future__ import annotations

import os
from pathlib import Path

QUIET = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DS_LOG_LEVEL": "error",
}
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
ON_CPU = {
    "DS_ACCELERATOR": "cpu",
    "TORCHDYNAMO_DISABLE": "1",  # vLLM 0.32 compiles two tiny sampling functions for half a minute else
}


def prepare() -> None:
    """Sets what is not set yet: quiet libraries, vLLM in this process, no compiling on a CPU."""
    on_cpu = not Path("/dev/nvidia0").exists()
    for name, value in {**QUIET, **IN_PROCESS, **(ON_CPU if on_cpu else {})}.items():
        os.environ.setdefault(name, value)
    if on_cpu:
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override rollout.kv_cache_mib

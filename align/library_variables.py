"""Noise of libraries, and variables that they read when they are imported: both set before. No torch here."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import warnings
from pathlib import Path
from urllib.parse import urlsplit

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
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait take a busy machine's cores: 4 times slower there
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",  # it keeps code for 1024 shapes else, and a rollout's shapes never end
    "DS_ACCELERATOR": "cpu",
    "TORCHDYNAMO_DISABLE": "1",  # vLLM 0.32 compiles two tiny sampling functions for half a minute else
}
NOISE = (
    "fan_in_fan_out is set to",  # PEFT mends it itself
    "Model (has|with) `tie_word_embeddings=True`",  # align saves both ends apart where both trained
    "The following (rank|alpha)_pattern keys",  # align refuses those that match no module
    "Failed to load CPU gemm_4bit_forward",  # bitsandbytes' optional kernel
)
"""Beginnings of libraries' warnings on what align deals with, as regular expressions."""


def quiet() -> None:
    """Silence the warnings of libraries that NOISE lists, and no others."""
    for start in NOISE:
        warnings.filterwarnings("ignore", start)
    logged = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logged.addFilter(lambda record: not any(re.match(start, record.getMessage()) for start in NOISE))


def on_cpu() -> bool:
    """Return True where the machine has no GPU that CUDA would see; torch is not imported for that."""
    return not Path("/dev/nvidia0").exists()


def prepare() -> None:
    """Sets what is not set yet: quiet libraries, vLLM in this process, no compiling on a CPU."""
    cpu = on_cpu()
    for name, value in {**QUIET, **IN_PROCESS, **(ON_CPU if cpu else {})}.items():
        os.environ.setdefault(name, value)
    if cpu:
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override rollout.kv_cache_mib


def without_network() -> bool:
    """Return True where the hub cannot be reached; its libraries then read their cache at once, not after a minute."""
    from huggingface_hub import constants

    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return False  # the proxy knows the name, perhaps it alone
    if not constants.HF_HUB_OFFLINE:
        try:
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
        except OSError:
            constants.HF_HUB_OFFLINE = True
            if "datasets" in sys.modules:
                sys.modules["datasets"].config.HF_HUB_OFFLINE = True
    return constants.HF_HUB_OFFLINE

"""What vLLM does to the process that it runs in, beside its work, and how it is undone."""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def undone() -> Iterator[None]:
    """Undoes what vLLM does to its process beside its work, and keeps it from talking.

    The thread function and its value, random states and environment are as before; the default process
    group is not destroyed: engines of DeepSpeed may stand on it, and no new one would revive them.
    """
    environment, states = dict(os.environ), (random.getstate(), np.random.get_state())
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    destroy = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = lambda group=None: destroy(group) if group is not None else None
    logging.getLogger("vllm").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with torch.random.fork_rng():
                yield
    finally:
        torch.distributed.destroy_process_group = destroy
        torch.set_num_threads = set_threads
        torch.set_num_threads(threads)
        random.setstate(states[0])
        np.random.set_state(states[1])
        os.environ.clear()
        os.environ.update(environment)


@contextmanager
def memory_unbound() -> Iterator[None]:
    """Keeps vLLM 0.32 on CPU from binding all memory of this process to one NUMA node, for good."""
    operators = torch.ops._C
    operators.init_cpu_memory_env = lambda nodes: None
    try:
        yield
    finally:
        del operators.init_cpu_memory_env

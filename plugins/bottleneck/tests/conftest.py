"""Models and inputs of the tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny_models import CONFIGS
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel


@pytest.fixture
def plain() -> Callable[..., PreTrainedModel]:
    """plain(kind, task) -> the same model at each call."""

    def make(kind: str, task: str = "CAUSAL_LM") -> PreTrainedModel:
        torch.manual_seed(0)
        config = CONFIGS[kind]()
        if task == "CAUSAL_LM":
            return AutoModelForCausalLM.from_config(config).eval()
        config.num_labels = 1
        return AutoModelForSequenceClassification.from_config(config).eval()

    return make


@pytest.fixture
def ids_BT() -> Tensor:
    return torch.randint(3, 97, (3, 9), generator=torch.Generator().manual_seed(0))

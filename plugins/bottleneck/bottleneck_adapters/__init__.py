"""Bottleneck adapters as a method of PEFT: importing this package registers it.

>>> from peft import get_peft_model
>>> from bottleneck_adapters import BottleneckConfig
>>> model = get_peft_model(model, BottleneckConfig(placement="houlsby", task_type="CAUSAL_LM"))  # doctest: +SKIP
"""

from bottleneck_adapters.config import BottleneckConfig
from bottleneck_adapters.layer import BottleneckLayer
from bottleneck_adapters.model import BottleneckModel
from bottleneck_adapters.registration import register

register(BottleneckConfig, BottleneckModel)

__all__ = ["BottleneckConfig", "BottleneckLayer", "BottleneckModel"]

"""The methods of conf/peft and of the bottleneck plugin, as configuration builds them."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from peft import PeftConfig

from align.build.plugs import peft
from align.config.values import plug_of

CONF = Path(__file__).parents[1] / "conf" / "peft"
PLUGIN = ["houlsby", "pfeiffer", "parallel"]
SETTINGS = {"trainable_tokens": [f"token_indices={[*range(5, 300, 3)]}".replace(" ", "")]}
"""That a method cannot do without."""
METHODS = sorted({f.stem for f in CONF.glob("*.yaml")} - {"none"}) + PLUGIN
ROUTES = {
    "lora": "adapter", "lora_r1": "adapter", "rslora": "adapter", "pissa": "adapter", "qlora": "adapter",
    **dict.fromkeys(["adalora", "loha", "miss", "vera"], "converted"),
    **dict.fromkeys(["prompt", "p_tuning"], "embeddings"),
    **dict.fromkeys([*PLUGIN, "prefix", "p_tuning_v2"], "generate"),
}  # fmt: skip
"""Of the methods that are not merged."""


def method(name: str, *settings: str) -> PeftConfig:
    """The config of a method, with settings such as "peft.r=1"."""
    module = "bottleneck_adapters_conf" if name in PLUGIN else "align.conf"
    with initialize_config_module(module, version_base=None):
        needed = [f"peft.{setting}" for setting in SETTINGS.get(name, ())]
        node = compose(overrides=[f"+peft={name}", *needed, *settings]).peft
        return peft(plug_of(OmegaConf.to_container(node), "peft"))

"""Makes a method known to PEFT (0.21), whose list of kinds is an enum that is closed to others."""

from __future__ import annotations

from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import register_peft_method

NAME = "BOTTLENECK"


def kind() -> PeftType:
    """`PeftType.BOTTLENECK`, added if it is not there."""
    if NAME not in PeftType.__members__:
        member = str.__new__(PeftType, NAME)
        member._name_ = member._value_ = NAME
        member._sort_order_ = len(PeftType.__members__)
        PeftType._member_names_.append(NAME)
        PeftType._member_map_[NAME] = member
        PeftType._value2member_map_[NAME] = member
        type.__setattr__(PeftType, NAME, member)
    return PeftType[NAME]


def register(config: type[PeftConfig], model: type[BaseTuner]) -> None:
    """Registers the method; a second time does nothing."""
    if kind() not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=NAME.lower(), config_cls=config, model_cls=model, prefix=model.prefix)

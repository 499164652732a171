"""Comparisons of weights."""

import torch


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, bool]:
    """Whether each parameter is the same to the bit."""
    return {name: torch.equal(one[name], other[name]) for name in one}

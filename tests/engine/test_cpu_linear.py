"""One kernel for the linear layers of all models of a run."""

import pytest
import torch

from align.engine import linear
from align.engine import linear as cpu_linear
from align.engine.linear import CpuLinear, OneDNNLinear


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))


@pytest.mark.parametrize(("share", "kind"), [(0.5, "onednn"), (0.95, "torch")])
def test_auto_is_settled_by_the_first_model_and_stays(monkeypatch, share, kind):
    timed, said = [], []
    monkeypatch.setattr(linear, "_share", lambda layers: timed.append(1) or share)
    choice, models = CpuLinear("auto"), [model(), model()]
    for one in models:
        choice.apply(one, said.append)
    assert choice.kind == kind and len(timed) == 1
    assert said == (["linear layers by onednn: oneDNN takes 0.50 of torch's time here"] if kind == "onednn" else [])
    kinds = {isinstance(m, OneDNNLinear) for one in models for m in one if isinstance(m, torch.nn.Linear)}
    assert kinds == {kind == "onednn"}


def test_measuring_leaves_the_global_generator_alone():
    """Else an adapter that is made afterwards would start elsewhere in a run that measures."""
    if not linear.has_onednn():
        pytest.skip("this torch has one kernel")
    one, before = model(), torch.get_rng_state()
    choice = CpuLinear("auto")
    choice.apply(one)
    assert choice.origin == "measured" and torch.equal(torch.get_rng_state(), before)


def test_a_model_without_a_choice_is_no_measurement():
    choice = CpuLinear("auto")
    choice.apply(model().bfloat16())
    assert choice.facts() == {"kind": "torch", "from": "nothing to measure"}


def test_torch_leaves_a_model_alone():
    one = model()
    CpuLinear("torch").apply(one)
    assert type(one[0]) is torch.nn.Linear
    assert cpu_linear.CpuLinear().kind == "torch"


def test_onednn_trains_to_the_same_losses():
    """fp32, ten SGD steps: 1e-6, for sums in another order."""
    losses = {}
    for kind in ("torch", "onednn"):
        one = model()
        CpuLinear(kind).apply(one)
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1)
        losses[kind] = []
        for step in range(10):
            x = torch.randn(32, 64, generator=torch.Generator().manual_seed(step))
            loss = (one(x) - x).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[kind].append(float(loss.detach()))
    assert losses["torch"][0] > losses["torch"][-1]
    assert losses["onednn"] == pytest.approx(losses["torch"], abs=1e-6)

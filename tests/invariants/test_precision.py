"""precision=bf16: bf16 products under autocast; what trains, its optimizer and log-probabilities stay in float32."""

import pytest
import torch
from composed import assembled
from runs import all_finite, play
from safetensors.torch import load_file

from align import ops
from align.engine.linear import linear
from align.roles.modules import plain
from align.stages.ppo_stage import save

bf16_here = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
pytestmark = pytest.mark.skipif(not bf16_here, reason="this CPU has no bf16 instructions")
SEATS = ("critic=own", "critic=adapter", "critic=head", "critic=own peft@actor.peft=none peft@critic.peft=none")


def make(base, folder, *words):
    """Long micro-batches; one that is scored once more by `again`."""
    return assembled(base, folder, *" ".join(words).split())


@pytest.fixture(params=SEATS)
def seat(request) -> str:
    return request.param


def test_what_trains_and_its_optimizer_stay_in_float32_and_frozen_weights_do_not(base, rows, tmp_path, seat):
    ppo = make(base, tmp_path, seat, "precision=bf16")
    play(ppo, rows)
    kinds = {True: set(), False: set()}
    for group in ppo.roles.groups:
        for parameter in group.backbone.parameters():
            kinds[parameter.requires_grad].add(parameter.dtype)
        if group.trained:
            state = group.engine.optimizer.state
            assert {p.dtype for p in state} == {torch.float32}
            moments = [value for found in state.values() for value in found.values()]
            assert moments and {value.dtype for value in moments} == {torch.float32}
    assert kinds[True] == {torch.float32}
    assert kinds[False] == {torch.bfloat16}, "a reference, or a base under adapters"
    save(ppo, tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float32}


def test_losses_are_finite_and_near_those_in_float32(base, rows, tmp_path, seat):
    """The same rollout and scores, one update. bf16 has 8 bits: relative steps of 0.4 %, a few of them in a row."""
    full, half = (make(base, tmp_path / p, seat, f"precision={p}", "ppo.epochs=1") for p in ("fp32", "bf16"))
    full.step(rows)
    rollout, scored = full.last
    metrics = {}
    for name, ppo in (("full", make(base, tmp_path / "again", seat, "ppo.epochs=1")), ("half", half)):
        scores = ppo.roles.score(rollout, {"logp", "ref_logp", "value"})
        experience, found = ppo.experience(rollout, scores, scored)
        metrics[name] = {**found, **ppo.update(experience)}
        print(name, {k: v for k, v in metrics[name].items() if "loss" in k or "norm" in k or "entropy" in k})
    assert 0

"""precision=bf16: bf16 products under autocast; what trains, its optimizer and log-probabilities stay in float32."""

import pytest
import torch
from composed import assembled
from runs import all_finite, play
from safetensors.torch import load_file

from align import ops
from align.peft.adapters import use_adapter
from align.ppo.held_out import save
from align.roles.modules import plain, to_left

bf16_here = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
pytestmark = pytest.mark.skipif(not bf16_here, reason="this CPU has no bf16 instructions")
FULL = "critic=own peft@actor.peft=none peft@critic.peft=none"
WANT = {"logp", "ref_logp", "value"}


@pytest.fixture(params=["critic=own", "critic=adapter", "critic=head", FULL])
def seat(request) -> str:
    return request.param


def make(base, folder, *words):
    return assembled(base, folder, *" ".join(words).split())


def test_what_trains_and_its_optimizer_stay_in_float32_and_a_frozen_base_does_not(base, rows, tmp_path, seat):
    ppo = make(base, tmp_path, seat, "precision=bf16")
    assert all_finite(play(ppo, rows))
    kinds = {True: set(), False: set()}
    for group in ppo.roles.groups:
        for parameter in group.backbone.parameters():
            kinds[parameter.requires_grad].add(parameter.dtype)
        if group.trained:
            state = group.engine.optimizer.state
            moments = [value for found in state.values() for value in found.values()]
            assert moments and {value.dtype for value in [*state, *moments]} == {torch.float32}
    assert kinds[True] == {torch.float32}
    # in full fine-tuning the reference alone is frozen, a copy of the actor as it is
    assert kinds[False] == {torch.float32 if seat == FULL else torch.bfloat16}
    save(ppo, tmp_path / "saved")
    (file,) = (tmp_path / "saved").glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float32}


def test_losses_are_finite_and_near_those_in_float32(base, rows, tmp_path, seat):
    """An update on one rollout. bf16 has 8 bits, 0.4 % a rounding: mean losses agree to one in 200, norms to 50.

    The policy's loss, a mean of advantages of either sign that nearly cancel, to 0.005 (advantages have variance 1).
    """
    writer = make(base, tmp_path / "writer", seat)
    writer.step(rows)
    rollout, scored = writer.last
    found, logp = [], []
    for precision in ("fp32", "bf16"):
        ppo = make(base, tmp_path / precision, seat, f"precision={precision}", "ppo.epochs=1")
        scores = ppo.roles.score(rollout, WANT)
        experience, _ = ppo.experience(rollout, scores, scored)
        found.append(ppo.update(experience))
        logp.append(scores.logp_BT[rollout.response_mask_BT])
    full, half = found
    assert torch.tensor(list(half.values())).isfinite().all()
    assert half["loss/policy_avg"] == pytest.approx(full["loss/policy_avg"], abs=5e-3)
    assert half["loss/value_avg"] == pytest.approx(full["loss/value_avg"], rel=5e-3)
    for role in ("actor", "critic"):
        assert half[f"grad_norm/{role}"] == pytest.approx(full[f"grad_norm/{role}"], rel=0.02)
    assert 1e-3 < float((logp[1] - logp[0]).abs().mean()) < 0.1, "computed in bf16, and no worse than that"


@pytest.mark.parametrize("seat", ["critic=own", FULL])
def test_log_probabilities_are_taken_in_float32_of_bf16_logits(base, rows, tmp_path, seat):
    """To 1e-4 of logits by the model itself; a softmax in bf16 would be wrong by 0.01 and more at 5 nats."""
    ppo = make(base, tmp_path, seat, "precision=bf16", "ppo.micro_batch_size=64")
    ppo.step(rows)
    rollout, _ = ppo.last
    logp_BT = ppo.roles.score(rollout, {"logp"}).logp_BT
    model, mask_BT = ppo.roles.actor.model, rollout.response_mask_BT
    ids_BL, _ = to_left(rollout.input_ids_BN(), rollout.mask_BN())
    last_BT = rollout.prompt_mask_BP.sum(1)[:, None] + torch.arange(mask_BT.shape[1]) - 1
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        if seat == FULL:
            logits_BLV = model(ids_BL).logits
        else:
            with use_adapter(model, "default"):
                logits_BLV = plain(model)(ids_BL).logits
    assert logits_BLV.dtype == torch.bfloat16 and logp_BT.dtype == torch.float32
    logits_BTV = logits_BLV.gather(
        1, last_BT.clamp(max=ids_BL.shape[1] - 1)[..., None].expand(-1, -1, logits_BLV.shape[-1])
    )
    expected_BT = ops.logprobs(logits_BTV.float(), rollout.response_ids_BT)
    torch.testing.assert_close(logp_BT[mask_BT], expected_BT[mask_BT], rtol=0, atol=1e-4)
    low_BTV = logits_BTV.log_softmax(-1)
    low_BT = low_BTV.gather(-1, rollout.response_ids_BT[..., None]).squeeze(-1).float()
    assert low_BTV.dtype == torch.bfloat16 and float((low_BT - logp_BT)[mask_BT].abs().max()) > 0.005

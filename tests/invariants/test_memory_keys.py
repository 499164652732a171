"""The keys that save memory reach the passes, and leave the run's numbers. Tolerances: `runs`."""

import pytest
import torch
from composed import assembled
from runs import check_alike, play
from transformers import CTRLConfig, CTRLLMHeadModel

from align.errors import AlignError
from align.peft.checkpointing import recompute_layers
from align.roles.modules import plain


def passes(ppo) -> list[tuple[int, bool]]:
    """Tokens of each pass through the actor's first layer, filled as it runs, and whether it is differentiated."""
    found: list[tuple[int, bool]] = []
    layer = plain(ppo.roles.actor.model).base_model.layers[0]
    layer.register_forward_pre_hook(
        lambda module, args: found.append((args[0].shape[0] * args[0].shape[1], torch.is_grad_enabled()))
    )
    return found


def updates(ppo, rows) -> tuple[list[tuple[int, bool]], object]:
    """The passes of an update alone, and the run of two steps in which it was the first."""
    found, update = passes(ppo), ppo.update
    taken: list[tuple[int, bool]] = []

    def watched(experience):
        found.clear()
        metrics = update(experience)
        taken.extend(found if not taken else [])
        return metrics

    ppo.update = watched
    return taken, play(ppo, rows)


CRITICS = ("critic=own", "critic=adapter")


@pytest.fixture(scope="module")
def plain_run(base, rows, tmp_path_factory):
    """plain_run(critic): the passes and the run without either key."""
    runs = {}

    def of(critic: str):
        if critic not in runs:
            runs[critic] = updates(assembled(base, tmp_path_factory.mktemp("plain"), critic), rows)
        return runs[critic]

    return of


@pytest.mark.parametrize("critic", CRITICS)
def test_gradient_checkpointing_computes_each_layer_twice_and_changes_no_number(
    base, rows, tmp_path, plain_run, critic
):
    """epochs x minibatches passes are differentiated, each through torch's checkpoint and made again."""
    kept, one = plain_run(critic)
    ppo, called = assembled(base, tmp_path, critic, "ppo.gradient_checkpointing=true"), []
    layer = plain(ppo.roles.actor.model).base_model.layers[0]
    checkpoint = layer._gradient_checkpointing_func
    layer._gradient_checkpointing_func = lambda *args, **more: (called.append(1), checkpoint(*args, **more))[1]
    again, other = updates(ppo, rows)
    assert len(kept) == 4 and len(again) == 8 <= len(called)
    check_alike(other, one)


@pytest.mark.parametrize("tokens", [1, 50])
@pytest.mark.parametrize("critic", CRITICS)
def test_a_budget_of_tokens_bounds_every_pass_and_changes_no_number(base, rows, tmp_path, plain_run, critic, tokens):
    """A row that is longer goes alone; on a shared base a row counts once for each adapter that it goes through."""
    whole, one = plain_run(critic)
    ppo = assembled(base, tmp_path, critic, f"ppo.micro_batch_tokens={tokens}")
    cut, other = updates(ppo, rows)
    width = 2 if critic == "critic=adapter" else 1
    longest = int(other.rollouts[0].length_B().max())
    assert max(size for size, _ in cut) <= max(tokens, width * longest) < max(size for size, _ in whole)
    assert len(cut) > len(whole) == 4
    if tokens == 1:
        assert len(cut) == ppo.options.epochs * len(rows)
    check_alike(other, one)


def test_a_model_whose_layers_cannot_be_computed_again_is_refused():
    model = CTRLLMHeadModel(CTRLConfig(vocab_size=16, n_positions=8, n_embd=8, dff=8, n_layer=1, n_head=2))
    with pytest.raises(AlignError, match=r"ppo\.gradient_checkpointing=true: .* ctrl .*\n.*=false"):
        recompute_layers(model)

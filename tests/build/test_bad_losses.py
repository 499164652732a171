"""A loss that TRL does not have: refused before anything loads; the names are TRL's own."""

import inspect
import re

import pytest
import trl
from command_line import refused, stand_in, write_data

from align.config.choices import DPO_LOSSES, KTO_LOSSES, SFT_LOSSES

LOSSES = [
    ("stages=dpo dpo.loss=ip0", ["dpo.loss=ip0", "sigmoid, hinge, ipo", "nearest: ipo"]),
    ("stages=dpo dpo.loss=[ipo,sigmod]", ["dpo.loss=sigmod", "nearest: sigmoid"]),
    ("stages=dpo dpo.loss=[]", ["dpo.loss=[]", "use one of"]),
    ("stages=kto kto.loss=apo_zero", ["kto.loss=apo_zero", "kto, apo_zero_unpaired", "nearest: apo_zero_unpaired"]),
    ("stages=rm rm.loss=pair", ["rm.loss=pair", "nearest: pairs"]),
    ("stages=sft +sft.args.loss_type=dtf", ["sft.args.loss_type=dtf", "nll, dft", "nearest: dft"]),
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    write_data(tmp_path)
    yield from stand_in(tmp_path, monkeypatch)


@pytest.mark.parametrize("arguments, words", LOSSES, ids=[arguments for arguments, _ in LOSSES])
def test_a_loss_that_is_none_is_refused_with_the_nearest(here, capsys, base, arguments, words):
    refused(capsys, f"{arguments} model={base} data.path=pairs.jsonl", words)
    assert not (here / "runs").exists()


def test_the_losses_are_those_of_trl():
    for trainer, name, losses in (
        (trl.DPOTrainer, "_compute_loss", DPO_LOSSES),
        (trl.KTOTrainer, "_compute_loss", KTO_LOSSES),
    ):
        said = inspect.getsource(getattr(trainer, name))
        assert set(re.findall(r'loss_type == "(\w+)"', said)) == set(losses)
    assert f"not in {SFT_LOSSES}".replace("'", '"') in inspect.getsource(trl.SFTTrainer.__init__)

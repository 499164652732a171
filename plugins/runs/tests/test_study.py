"""The study on disk: taken up where it was left, with the settings that an unbroken search draws."""

from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from align.errors import AlignError
from align_runs.space import parse, space_of
from align_runs.study import ended, importance, locked, opened, pruner, sampler
from align_runs.trials import Plan

PLAN = Plan([], [], trials=20)
IDENTITY = {"objective": "sft.eval_loss", "a": "uniform(0,1)", "seed": "0"}
SPACE = space_of("a=uniform(0.0,1.0)", parse("a=uniform(0.0,1.0)"))


def draw(study: optuna.Study, plan: Plan = PLAN) -> tuple[optuna.Trial, float]:
    study.sampler = sampler(plan, 0, len(ended(study)))
    trial = study.ask()
    return trial, SPACE.suggest(trial)


def search(home, until: int, plan: Plan = PLAN) -> list[float]:
    """Trials that end, up to as many in all; what all ended ones were set to."""
    study = opened(home, "minimize", IDENTITY)
    while len(ended(study)) < until:
        trial, value = draw(study, plan)
        study.tell(trial, (value - 0.3) ** 2)
    return [trial.params["a"] for trial in ended(study)]


@pytest.mark.parametrize("name", ["random", "tpe"])
def test_a_search_that_was_stopped_draws_what_an_unbroken_one_draws(tmp_path, name):
    plan = replace(PLAN, sampler=name)
    for home in ("broken", "whole"):
        (tmp_path / home).mkdir()
    search(tmp_path / "broken", 5, plan)
    draw(opened(tmp_path / "broken", "minimize", IDENTITY), plan)  # under way, and never ended
    whole = search(tmp_path / "whole", 14, plan)
    assert search(tmp_path / "broken", 14, plan) == whole and len(set(whole)) == 14
    numbers = [trial.number for trial in ended(opened(tmp_path / "broken", "minimize", IDENTITY))]
    assert numbers == [0, 1, 2, 3, 4, *range(6, 15)]


def test_a_trial_that_was_stopped_twice_is_made_once(tmp_path):
    _, value = draw(opened(tmp_path, "minimize", IDENTITY))
    opened(tmp_path, "minimize", IDENTITY)
    study = opened(tmp_path, "minimize", IDENTITY)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, TrialState.WAITING] and ended(study) == []
    assert draw(study)[1] == value


def test_another_search_in_its_place_is_refused_with_what_changed(tmp_path):
    search(tmp_path, 1)
    for identity, expected in [
        (IDENTITY | {"a": "uniform(0,2)"}, r"a was uniform\(0,1\) and is uniform\(0,2\)"),
        (IDENTITY | {"seed": "1"}, "seed was 0 and is 1"),
        (IDENTITY | {"model": "x"}, "model was not there and is x"),
        (IDENTITY | {"objective": "sft.seconds"}, "objective was sft.eval_loss and is sft.seconds"),
    ]:
        with pytest.raises(AlignError, match=f"{expected}. Use name=NAME"):
            opened(tmp_path, "minimize", identity)
    assert len(ended(opened(tmp_path, "minimize", IDENTITY))) == 1


def test_a_search_without_a_value_yet_may_be_changed(tmp_path):
    study = opened(tmp_path, "minimize", IDENTITY)
    study.tell(draw(study)[0], state=TrialState.FAIL)
    fresh = opened(tmp_path, "maximize", IDENTITY | {"objective": "sft.seconds"})
    assert fresh.trials == [] and fresh.direction.name == "MAXIMIZE"


def test_one_process_at_a_time_and_only_in_a_folder_of_its_own(tmp_path):
    with locked(tmp_path / "mine"), pytest.raises(AlignError, match="another process"), locked(tmp_path / "mine"):
        pass
    (tmp_path / "runs" / "2026-01-01_00-00-00").mkdir(parents=True)
    with pytest.raises(AlignError, match="holds runs already"), locked(tmp_path / "runs"):
        pass


def test_the_median_of_earlier_trials_prunes_from_the_second_evaluation(tmp_path):
    study = opened(tmp_path, "minimize", IDENTITY)
    study.pruner = pruner(replace(PLAN, trials=4))
    good = study.ask()
    for number, value in enumerate([3.0, 2.0, 1.0], start=1):
        good.report(value, number)
        assert not good.should_prune()
    study.tell(good, 1.0)
    poor = study.ask()
    poor.report(9.0, 1)
    assert not poor.should_prune()
    poor.report(2.5, 2)
    assert poor.should_prune()


def test_what_matters_counts_most():
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    assert importance(study) == {}
    for _ in range(60):
        trial = study.ask()
        study.tell(trial, (trial.suggest_float("much", 0, 1) - 0.5) ** 2 + 1e-6 * trial.suggest_float("little", 0, 1))
    shares = importance(study)
    assert shares["much"] > 0.8 and sum(shares.values()) == pytest.approx(1)

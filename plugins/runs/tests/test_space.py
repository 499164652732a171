"""Spaces as they are typed: what they hold, what a trial is set to, what is refused."""

import optuna
import pytest

from align.errors import AlignError
from align_runs.space import parse, space_of


def space(word: str):
    return space_of(word, parse(word))


def test_the_end_of_a_range_is_not_in_it_as_in_hydra_and_python():
    assert space("a.b=range(1,8)").ends() == ["1", "7"]
    assert space("a.b=range(2,9,3)").ends() == ["2", "8"] and list(range(2, 9, 3))[-1] == 8
    assert space("a.b=range(2,10,3)").ends() == ["2", "8"] and space("a.b=range(5)").ends() == ["0", "4"]


def test_both_ends_of_the_others_are_in_them():
    assert space("a.b=log(1e-5,1e-2)").ends() == ["1e-05", "0.01"]
    assert space("a.b=uniform(0.5,2)").ends() == space("a.b=interval(0.5,2)").ends() == ["0.5", "2.0"]


def test_options_are_as_overrides_have_them():
    options = space("a=choice(4,lora,null,[q,v],'x, y',true,1e-3)").options
    read = [parse(f"a={option}").value() for option in options]
    assert read == [4, "lora", None, ["q", "v"], "x, y", True, 1e-3]


def test_numbers_have_four_digits_and_stay_within_the_ends():
    rate = space("a=log(1.23456e-5,1e-2)")
    assert rate.word(0.00123456) == "0.001235" and rate.word(1.23456e-5) == "1.235e-05"
    assert float(space("a=uniform(0.1,0.123449)").word(0.123449)) == 0.1234
    assert float(space("a=uniform(0.1,0.123451)").word(0.123451)) == 0.123451  # 0.1235 would lie outside


@pytest.mark.parametrize(
    ("word", "held"),
    [
        ("a=range(2,9,3)", lambda value: value in (2, 5, 8)),
        ("a=log(1e-4,1e-2)", lambda value: 1e-4 <= value <= 1e-2),
        ("a=choice(x,y)", lambda value: value in ("x", "y")),
    ],
)
def test_a_sampler_gives_what_is_in_the_space(word, held):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = {space(word).suggest(study.ask()) for _ in range(40)}
    assert len(found) > 1 and all(map(held, found))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a=log(0,1)", "lies above 0"),
        ("a=log(-1,1)", "lies above 0"),
        ("a=uniform(2,1)", r"wrong way round. Use uniform\(1,2\)"),
        ("a=range(8,1)", r"wrong way round. Use range\(1,8\)"),
        ("a=uniform(2,2)", r"both ends are the same. Use a=2"),
        ("a=range(2,3)", r"2 is all that is in it.* Use a=2"),
        ("a=range(0,1,0.1)", "whole numbers"),
        ("a=range(1,8,0)", "wrong way round"),
        ("a=log(x,1)", "no numbers"),
        ("a=log(1,inf)", "no numbers"),
        ("a=log(1)", "two ends"),
        ("a=choice()", "nothing to choose from"),
        ("a=choice(4,8,4)", "4 is in it twice"),
        ("a=choice(log(1,2),4)", "plain values"),
        ("~a=choice(4,8)", "without the ~"),
        ("a=normal(1,2)", r"no such function. Use one of log, uniform, range, choice"),
    ],
)
def test_a_space_with_nothing_to_search_is_refused(word, expected):
    with pytest.raises(AlignError, match=expected):
        space(word)

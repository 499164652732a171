"""A plugin that cannot be had or fails: one line with the reward, the row and the line of the plugin."""

import textwrap

import pytest
from test_function_reward import STATE, rollout

from align.errors import AlignError
from align.rewards.function import FunctionReward
from align.types import RewardState, Texts


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that one stands in: write(name, text) puts a module there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"))

    return write


def refused(fn, args=None):
    with pytest.raises(ValueError) as caught:
        FunctionReward(fn, args)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def failed(fn, completions=("a", "b", "c"), state=STATE, **columns):
    completions = list(completions)
    texts = Texts(["p"] * len(completions), completions, [[1]] * len(completions))
    reward = FunctionReward(fn)
    with pytest.raises(AlignError) as caught:
        reward(rollout(len(completions), **columns), texts, state)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_name_without_a_module_is_refused():
    assert "names no module: use MODULE.FUNCTION" in refused("brevity")


def test_a_missing_module_says_where_was_looked_and_what_is_near(folder):
    folder("my_rewards_a.py", "def brevity(**kwargs): ...")
    said = refused("my_reward_a.brevity")
    assert "no module my_reward_a in the folder you stand in, in ./plugins/NAME" in said
    assert said.endswith("did you mean my_rewards_a?")


def test_a_missing_module_is_looked_for_among_the_plugins(folder):
    folder("plugins/polite/polite_plugin/__init__.py", "")
    assert refused("polite_plugins.score").endswith("did you mean polite_plugin?")


def test_a_missing_module_of_a_package_names_its_neighbours():
    assert refused("trl.reward.think_format_reward").endswith("did you mean trl.rewards?")


def test_a_missing_function_names_the_nearest(folder):
    folder("my_rewards_b.py", "def brevity(**kwargs): ...")
    said = refused("my_rewards_b.brevty")
    assert "my_rewards_b.py) has no brevty" in said
    assert said.endswith("did you mean my_rewards_b.brevity?")


def test_a_module_that_raises_is_named_with_its_line(folder):
    folder("my_rewards_c.py", "import json\n\njson.loads('x')\n")
    said = refused("my_rewards_c.brevity")
    assert "JSONDecodeError" in said and said.endswith("(my_rewards_c.py:3)")


def test_a_module_that_is_no_python_is_named_with_its_line(folder):
    folder("my_rewards_d.py", "x = 1\ndef brevity(:\n")
    assert refused("my_rewards_d.brevity").endswith("(my_rewards_d.py:2)")


def test_a_module_whose_own_import_is_missing_is_not_called_missing(folder):
    folder("my_rewards_e/__init__.py", "from my_rewards_e.inner import x\n")
    folder("my_rewards_e/inner.py", "x = 1\nimport no_such_module_anywhere\n")
    said = refused("my_rewards_e.brevity")
    assert "No module named 'no_such_module_anywhere'" in said
    assert said.endswith("(my_rewards_e/inner.py:2)")


def test_what_cannot_be_called_is_refused(folder):
    folder("my_rewards_f.py", "brevity = 3\nclass Judge: ...\n")
    assert "cannot be called, it is int" in refused("my_rewards_f.brevity")
    assert "cannot be called, it is int" in refused(3)
    assert "is a class" in refused("my_rewards_f.Judge") and "_target_: my_rewards_f.Judge" in refused(
        "my_rewards_f.Judge"
    )


def test_a_function_that_takes_less_than_trl_gives_is_refused_before_the_run(folder):
    folder("my_rewards_g.py", "def brevity(completions):\n    return []\n")
    said = refused("my_rewards_g.brevity")
    assert "reward 'brevity' (my_rewards_g.py:1)" in said and "**kwargs" in said


def test_a_column_that_the_data_set_lacks_is_named_with_those_it_has():
    def accuracy(completions, solution, **kwargs): ...

    said = str(failed(accuracy, topic=["x"] * 3))
    assert "'solution'" in said and "columns of the data set: topic;" in said


def test_a_failing_row_is_named_with_the_line_of_the_plugin(folder):
    folder(
        "my_rewards_h.py",
        """
        def inverse(completions, **kwargs):
            return [share(c) for c in completions]

        def share(completion):
            return 1 / len(completion)
        """,
    )
    error = failed("my_rewards_h.inverse", ["a", "b", ""])
    assert str(error) == (
        "reward 'inverse', row 2 of the batch (row 12 of the data set): "
        "ZeroDivisionError: division by zero (my_rewards_h.py:5)"
    )
    assert isinstance(error.__cause__, ZeroDivisionError)


def test_the_line_is_the_plugins_where_a_library_raises(folder):
    folder(
        "my_rewards_i.py",
        """
        import json

        async def parsed(completions, **kwargs):
            return [json.loads(c) for c in completions]
        """,
    )
    said = str(failed("my_rewards_i.parsed", ["1", "{", "2"]))
    assert "row 1 of the batch (row 11 of the data set): JSONDecodeError" in said
    assert said.endswith("(my_rewards_i.py:4)")


def test_rows_are_tried_with_their_own_columns_and_log_nothing_twice():
    rows, logged = [], []

    def picky(completions, topic, log_metric, **kwargs):
        log_metric("calls", 1)
        rows.append(len(completions))
        return [{"x": 1.0}[name] for name in topic]

    state = RewardState(step=0, log_metric=lambda name, value: logged.append(name))
    said = str(failed(picky, state=state, topic=["x", "y", "x"]))
    assert "row 1 of the batch" in said and "KeyError: 'y'" in said
    assert rows == [3, 1, 1] and logged == ["calls"]


def test_a_failure_of_no_row_alone_is_said_to_be_one():
    def together(completions, **kwargs):
        if len(completions) > 1:
            raise RuntimeError("too many")
        return [0.0]

    said = str(failed(together))
    assert "RuntimeError: too many" in said and said.endswith("no row fails alone, only all 3 together")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ([1.0], "returned 1 score for 3 completions"),
        (
            [1.0, "2", 3.0],
            "row 1 of the batch (row 11 of the data set): returned str '2', not a number or None",
        ),
        ([1.0, 2.0, [3.0]], "row 2 of the batch (row 12 of the data set): returned list [3.0], not a number"),
        ([float("nan"), 2.0, 3.0], "row 0 of the batch (row 10 of the data set): returned nan, not a finite"),
        (
            [1.0, float("-inf"), 3.0],
            "row 1 of the batch (row 11 of the data set): returned -inf, not a finite",
        ),
        ([1.0, 1e39, 3.0], "row 1 of the batch (row 11 of the data set): returned 1e+39, not a finite"),
        (0.5, "returned float 0.5, not a list of numbers"),
        (None, "returned NoneType None, not a list of numbers"),
        ("abc", "returned str 'abc', not a list of numbers"),
    ],
)
def test_a_bad_answer_is_named(answer, said):
    def broken(completions, **kwargs):
        return answer

    message = str(failed(broken))
    assert said in message and "reward 'broken' (" in message and "test_function_errors.py:" in message

"""choose: a factory by name, its options checked before it is called."""

from __future__ import annotations

import pytest

from maieutic.algorithms import ALGORITHMS, make_algorithm
from maieutic.choose import choose
from maieutic.errors import ConfigError, UnknownName


def sized(length, beta=0.0):
    """A factory with one needed parameter and one optional one."""
    if length < 0:
        raise ValueError(f"got length={length}; expected 0 or more")
    return ("sized", length + 0, beta)


def bare():
    """A factory without parameters."""
    return "bare"


TABLE = {"sized": sized, "bare": bare}


def test_a_known_name_with_its_options():
    assert choose("thing", TABLE, "sized", {"length": 3, "beta": 0.5}) == ("sized", 3, 0.5)
    assert choose("thing", TABLE, "bare", {}) == "bare"


def test_defaults_fill_what_the_options_leave_open_and_only_that():
    defaults = {"length": 7, "unrelated": 1}
    assert choose("thing", TABLE, "sized", {}, defaults) == ("sized", 7, 0.0)
    assert choose("thing", TABLE, "sized", {"length": 2}, defaults) == ("sized", 2, 0.0)
    assert choose("thing", TABLE, "bare", {}, defaults) == "bare"


@pytest.mark.parametrize(
    ("name", "options", "kind", "message"),
    [
        ("size", {}, UnknownName, "unknown thing 'size'; did you mean 'sized'? Known: bare, sized."),
        ("xyz", {}, UnknownName, "unknown thing 'xyz'. Known: bare, sized."),
        (
            "sized", {"lenght": 1}, ConfigError,
            "thing 'sized' has no option 'lenght'; did you mean 'length'? It takes: length, beta.",
        ),
        ("sized", {"zzz": 1}, ConfigError, "thing 'sized' has no option 'zzz'. It takes: length, beta."),
        ("bare", {"length": 1}, ConfigError, "thing 'bare' has no option 'length'. It takes none."),
        ("sized", {"beta": 1}, ConfigError, "thing 'sized' needs length; it takes: length, beta."),
        ("sized", {"length": -1}, ConfigError, "thing 'sized': got length=-1; expected 0 or more"),
    ],
)  # fmt: skip
def test_every_error_says_what_would_do(name, options, kind, message):
    with pytest.raises(ConfigError) as caught:
        choose("thing", TABLE, name, options)
    assert type(caught.value) is kind
    assert str(caught.value) == message


def test_a_value_of_the_wrong_type_is_the_factorys_to_refuse():
    with pytest.raises(ConfigError, match=r"^thing 'sized': .*not supported") as caught:
        choose("thing", TABLE, "sized", {"length": "long"})
    assert isinstance(caught.value.__cause__, TypeError)


def test_an_algorithm_by_name():
    assert make_algorithm("dr_grpo", {}, max_completion_length=64).weigh.label == "constant_length(length=64)"
    assert "estimator=k2" in make_algorithm("grpo", {"beta": 0.1, "kl": "k2"}).loss.label
    assert "estimator=k3" in make_algorithm("grpo", {"beta": 0.1}).loss.label


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gpro", {}, "unknown algorithm 'gpro'; did you mean 'grpo'?"),
        ("grpo", {"kl": "k4"}, "unknown KL estimator 'k4'"),
        ("grpo", {"bta": 0.1}, "algorithm 'grpo' has no option 'bta'; did you mean 'beta'?"),
        ("sft", {"beta": 0.1}, "algorithm 'sft' has no option 'beta'. It takes none."),
        ("dr_grpo", {}, "algorithm 'dr_grpo' needs max_completion_length"),
        ("grpo", {"epsilon": 1.5}, "algorithm 'grpo': clipped_surrogate: got epsilon=1.5"),
        ("grpo", {"epochs": 0}, "algorithm 'grpo': sgd: got epochs=0"),
    ],
)
def test_an_impossible_algorithm(name, options, message):
    with pytest.raises(ConfigError) as caught:
        make_algorithm(name, options)
    assert str(caught.value).startswith(message)


def test_every_row_is_called_as_it_is_named():
    for name in ALGORITHMS:
        assert make_algorithm(name, {}, max_completion_length=8).name == name

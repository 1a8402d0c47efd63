"""A setting, named config or command that does not exist or does not fit is refused in a line."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from maest import config
from maest.helpers.errors import InputError
from maest.helpers.settings import (
    check_arguments,
    check_choice,
    check_settings,
    listed_names,
    typed_list,
)

LIMITS = {
    "seed": (None, 0),
    "rate": (None, "> 0, <= 1"),
    "pair": (None, ">= 0, < 1", (), 2),
    "task": ("tags", None, ("tags", "values")),
    "columns": ([1, 2], 0),
    "trainer.precision": ("16-mixed",),
}
DEFAULTS = {
    **{"seed": 0, "rate": 0.5, "pair": [0.9, 0.99], "task": None, "columns": []},
    "trainer": {"max_epochs": 10, "precision": None, "deep": {"flag": True}},
}


def refused(call: Any, *arguments: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        call(*arguments)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("given", "found", "nearest"),
    [
        ({"sed": 1}, "sed", "seed"),
        ({"trainer": {"max_epoch": 1}}, "trainer.max_epoch", "trainer.max_epochs"),
        ({"trainer": {"deep": {"flags": 1}}}, "trainer.deep.flags", "trainer.deep.flag"),
    ],
)
def test_unknown_key_at_any_depth(given, found, nearest):
    error = refused(check_settings, given, DEFAULTS)
    assert (error.kind, error.setting) == ("unknown", found)
    assert repr(nearest) in error.hint


@pytest.mark.parametrize(
    ("given", "setting"),
    [
        ({"seed": "abc"}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": None}, "seed"),
        ({"seed": -1}, "seed"),
        ({"rate": 0}, "rate"),
        ({"rate": 1.5}, "rate"),
        ({"rate": math.nan}, "rate"),
        ({"rate": math.inf}, "rate"),
        ({"pair": [0.9]}, "pair"),
        ({"pair": [0.9, 1]}, "pair"),
        ({"pair": [0.9, "a"]}, "pair"),
        ({"pair": 0.9}, "pair"),
        ({"columns": [1.5]}, "columns"),
        ({"columns": [-1]}, "columns"),
        ({"trainer": 5}, "trainer"),
        ({"trainer": {"deep": {"flag": 1}}}, "trainer.deep.flag"),
        ({"trainer": {"max_epochs": [1]}}, "trainer.max_epochs"),
        ({"trainer": {"precision": math.nan}}, "trainer.precision"),
    ],
)
def test_value_of_another_kind_or_out_of_bounds(given, setting):
    error = refused(check_settings, given, DEFAULTS, LIMITS)
    assert (error.kind, error.setting) == ("invalid", setting)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"rate": 1, "pair": [0, 0.5], "task": "values", "columns": [0, 3]},
        {"trainer": {"max_epochs": 5}},
        {"trainer": {"precision": "16-mixed"}},
        {"trainer": {"deep": {"flag": False}}},
    ],
)
def test_good_settings(given):
    check_settings(given, DEFAULTS, LIMITS)


COMMANDS, NAMED = ("pretrain", "extract_embeddings"), ("target_scores", "paper_recipe")


@pytest.mark.parametrize(
    ("line", "setting", "right"),
    [
        (
            "with datamodule.base_dir =my/data/dir/",
            *("datamodule.base_dir", "datamodule.base_dir=my/data/dir/"),
        ),
        (
            "with datamodule.base_dir = my/data/dir/",
            *("datamodule.base_dir", "datamodule.base_dir=my/data/dir/"),
        ),
        (
            "with datamodule.base_dir= my/data/dir/",
            *("datamodule.base_dir", "datamodule.base_dir=my/data/dir/"),
        ),
        ("with target_score", "target_score", "'target_scores'"),
        ("extract_embedings with seed=1", "extract_embedings", "'extract_embeddings'"),
        ("target_scores with seed=1", "target_scores", "'with target_scores seed=1'"),
        ("seed=1", "seed=1", "'with seed=1'"),
        ("target_score with seed=1", "target_score", "'with target_scores seed=1'"),
        ("pretrain target_scores seed=1", "target_scores", "'pretrain with target_scores seed=1'"),
        ("target_scores pretrain", "target_scores", "'pretrain with target_scores'"),
        ("pretrain seed=1 with target_scores", "seed=1", "'pretrain with seed=1 target_scores'"),
        ("pretrain with", "with", "Leave it out"),
        ("with", "with", "Leave it out"),
        ("target_score with seed =1", "target_score", "'with target_scores seed=1'"),
    ],
)
def test_slips_of_the_command_line(line, setting, right):
    error = refused(check_arguments, line.split(), COMMANDS, NAMED)
    assert error.setting == setting
    assert right in error.hint


@pytest.mark.parametrize(
    "line",
    [
        "",
        "help",
        "pretrain",
        "with target_scores seed=1",
        "extract_embeddings with target_scores inference.out_dir=a=b",
        "pretrain with settings.yaml -l DEBUG",
        "with maest.checkpoint=",
        "-u with seed=1",
        "-l DEBUG pretrain with seed=1",
        "-u pretrain with seed=1",
        "pretrain -l DEBUG with seed=1",
    ],
)
def test_good_command_lines(line):
    check_arguments(line.split(), COMMANDS, NAMED)


def test_choice():
    check_choice("pool", "mean", ("mean", "none"))
    error = refused(check_choice, "pool", "men", ("mean", "none"))
    assert (error.kind, error.setting) == ("unknown", "pool")
    assert "Did you mean 'mean'" in error.hint


# ---------------------------------------------------------------- the settings there are


def leaves(section: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def changed(name: str, value: Any) -> dict:
    """The settings that ``name=value`` gives."""
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


EXPERIMENTS = pytest.mark.parametrize(
    ("defaults", "named"),
    [(config.MAEST, config.MAEST_NAMED), (config.TL, config.TL_NAMED)],
    ids=["ex_maest", "ex_tl"],
)


@EXPERIMENTS
def test_named_configs_change_only_what_there_is(defaults, named):
    assert named
    for changes in named.values():
        check_settings(changes, defaults, config.LIMITS)


def test_every_limit_is_of_a_setting_and_every_default_keeps_it():
    names: dict[str, object] = {}
    for defaults in (config.MAEST, config.TL):
        names |= dict(leaves(defaults))
        check_settings(defaults, defaults, config.LIMITS)
    assert set(config.LIMITS) <= set(names)
    assert not {name for name, value in names.items() if value is None} - set(config.LIMITS)


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("[a,b]", ["a", "b"]),
        ("a, b", ["a", "b"]),
        ("""["a,b",c]""", ["a,b", "c"]),
        ("""['a,b', "c d"]""", ["a,b", "c d"]),
        ("[a[1,2],b(c,d)]", ["a[1,2]", "b(c,d)"]),
        ("[a,,b,]", ["a", "b"]),
        ("[]", []),
    ],
)
def test_names_may_have_commas_in_quotes_or_brackets(typed, expected):
    assert listed_names(typed) == expected


@pytest.mark.parametrize("names", [["a/1", "b"], ["a,b", "c d"], ["x[1,2]", "y (z)"], ["it's"]])
def test_a_list_is_read_as_it_is_typed(names):
    (argument,) = shlex.split(typed_list("runs", names))
    assert listed_names(argument.removeprefix("runs=")) == names


_NEGATIVE = {
    *("trainer.max_steps", "trainer.devices", "trainer.num_sanity_val_steps"),  # -1
    "maest.norm_mean",
}


@EXPERIMENTS
def test_nothing_passes_that_no_run_can_use(defaults, named):
    """Each setting with numbers and kinds that it cannot be: refused by its name."""
    for name, default in leaves(defaults):
        example = config.LIMITS.get(name, (None,))[0]
        example = default if example is None else example
        bad: list[Any] = [math.nan, math.inf, {"a": 1}]
        if isinstance(example, bool):
            bad += [[1], "word", 1]
        elif isinstance(example, int | float):
            bad += [[1], "word", True, 1e99, 10**99, *([] if name in _NEGATIVE else [-1])]
        elif isinstance(example, str):
            bad += [[1], True]
        elif isinstance(example, list):
            bad += ["word", [{}], [math.nan], [-2], [True]]
        for value in bad:
            error = refused(check_settings, changed(name, value), defaults, config.LIMITS)
            assert error.setting == name, (name, value)
            assert error.kind in ("invalid", "unknown")


def test_a_setting_of_another_section_is_meant():
    with pytest.raises(InputError) as caught:
        check_settings({"module": {"drop_path_rate": 2}}, config.MAEST, config.LIMITS)
    assert "'maest.drop_path_rate'" in caught.value.hint

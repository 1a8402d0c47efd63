"""A setting, named config or command that does not exist is refused with the nearest one."""

from __future__ import annotations

import shlex

import pytest

import config
from helpers.settings import (
    SettingsError,
    check_arguments,
    check_choice,
    check_settings,
    listed_names,
    typed_list,
)

LIMITS = {"seed": (None, 0), "trainer.precision": ("16-mixed", None)}
DEFAULTS = {"seed": 0, "trainer": {"max_epochs": 10, "precision": None, "deep": {"flag": True}}}


@pytest.mark.parametrize(
    ("given", "found", "nearest"),
    [
        ({"sed": 1}, "'sed'", "'seed'"),
        ({"trainer": {"max_epoch": 1}}, "'trainer.max_epoch'", "'trainer.max_epochs'"),
        ({"trainer": {"deep": {"flags": 1}}}, "'trainer.deep.flags'", "'trainer.deep.flag'"),
    ],
)
def test_unknown_key_at_any_depth(given, found, nearest):
    with pytest.raises(SettingsError, match=f"unknown setting {found}.*Did you mean {nearest}"):
        check_settings(given, DEFAULTS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seed": "abc"}, "seed is 'abc'.*expected a whole number"),
        ({"seed": True}, "expected a whole number"),
        ({"seed": 1.5}, "expected a whole number"),
        ({"seed": None}, "expected a whole number"),
        ({"seed": -1}, "seed is -1: expected at least 0"),
        ({"trainer": 5}, "trainer is a section"),
        ({"trainer": {"deep": {"flag": 1}}}, "expected True or False"),
        ({"trainer": {"max_epochs": [1]}}, "expected a whole number"),
    ],
)
def test_value_of_another_kind(given, message):
    with pytest.raises(SettingsError, match=message):
        check_settings(given, DEFAULTS, LIMITS)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"trainer": {"max_epochs": 5}},
        {"trainer": {"precision": "16-mixed"}},
        {"trainer": {"deep": {"flag": False}}},
    ],
)
def test_good_settings(given):
    check_settings(given, DEFAULTS, LIMITS)


COMMANDS, NAMED = ("pretrain", "extract_embeddings"), ("target_scores", "paper_recipe")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("with datamodule.base_dir =my/data/dir/", "write datamodule.base_dir=my/data/dir/"),
        ("with datamodule.base_dir = my/data/dir/", "write datamodule.base_dir=my/data/dir/"),
        ("with datamodule.base_dir= my/data/dir/", "write datamodule.base_dir=my/data/dir/"),
        ("with target_score", "unknown named config 'target_score'.*'target_scores'"),
        ("extract_embedings with seed=1", "unknown command.*'extract_embeddings'"),
        (
            "target_scores with seed=1",
            "named config, not a command: write 'with target_scores seed=1'",
        ),
        ("seed=1", "setting, not a command: write 'with seed=1'"),
        ("target_score with seed=1", "'target_scores' is a named config, not a command"),
        ("pretrain target_scores seed=1", "write 'pretrain with target_scores seed=1'"),
        ("target_scores pretrain", "write 'pretrain with target_scores'"),
        ("target_score with seed =1", "write 'with target_scores seed=1'"),
    ],
)
def test_slips_of_the_command_line(line, message):
    with pytest.raises(SettingsError, match=message):
        check_arguments(line.split(), COMMANDS, NAMED)


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
    ],
)
def test_good_command_lines(line):
    check_arguments(line.split(), COMMANDS, NAMED)


def test_choice():
    check_choice("pool", "mean", ("mean", "none"))
    with pytest.raises(SettingsError, match=r"one of 'mean', 'none'\..*'mean'"):
        check_choice("pool", "men", ("mean", "none"))


@pytest.mark.parametrize(
    ("defaults", "named"),
    [(config.MAEST, config.MAEST_NAMED), (config.TL, config.TL_NAMED)],
    ids=["ex_maest", "ex_tl"],
)
def test_named_configs_change_only_what_there_is(defaults, named):
    assert named
    for changes in named.values():
        check_settings(changes, defaults, config.LIMITS)


def test_every_limit_is_of_a_setting_and_every_default_keeps_it():
    names: dict[str, object] = {}

    def collect(section: dict, prefix: str = "") -> None:
        for key, value in section.items():
            if isinstance(value, dict):
                collect(value, f"{prefix}{key}.")
            else:
                names[prefix + key] = value

    for defaults in (config.MAEST, config.TL):
        collect(defaults)
        check_settings(defaults, defaults, config.LIMITS)
    assert set(config.LIMITS) <= set(names)
    open_ended = {name for name, value in names.items() if value is None} - set(config.LIMITS)
    assert open_ended == {"trainer.precision"}  # a number or a word


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

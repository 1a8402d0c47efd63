"""A setting, named config or command that does not exist or does not fit is refused in a line."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from maest import config
from maest.config import reference
from maest.config.command_line import check_arguments
from maest.config.schema import Setting, parse, plain, setting, settings_of
from maest.helpers.errors import InputError
from maest.helpers.names import check_choice, listed, typed_list


@dataclass(frozen=True, kw_only=True)
class Deep:
    flag: bool = setting(True, "a flag")


@dataclass(frozen=True, kw_only=True)
class Trainer:
    max_epochs: int = setting(10, "epochs")
    precision: str | None = setting(None, "of numbers; auto: by the device")
    deep: Deep = field(default_factory=Deep)


@dataclass(frozen=True, kw_only=True)
class Example:
    seed: int = setting(0, "of draws", ">= 0")
    rate: float = setting(0.5, "of learning", "> 0, <= 1")
    pair: tuple[float, float] = setting((0.9, 0.99), "of two", ">= 0, < 1")
    task: Literal["tags", "values"] | None = setting(None, "what to do")
    columns: tuple[int, ...] = setting((), "of a table", ">= 0")
    blocks: tuple[int, ...] | Literal["all"] = setting("all", "of a network", ">= -1")
    names: tuple[str, ...] | None = setting(None, "of labels")
    limit: int | float | None = setting(None, "of batches", "> 0")
    trainer: Trainer = field(default_factory=Trainer)


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
    error = refused(parse, Example, given)
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
        ({"trainer": {"precision": True}}, "trainer.precision"),
        ({"trainer": {"max_epochs": 10.0}}, "trainer.max_epochs"),
        ({"blocks": [6, -2]}, "blocks"),
        ({"blocks": [6, 7.5]}, "blocks"),
        ({"names": [True]}, "names"),
        ({"task": 3}, "task"),
        ({"limit": 0}, "limit"),
    ],
)
def test_value_of_another_kind_or_out_of_bounds(given, setting):
    error = refused(parse, Example, given)
    assert (error.kind, error.setting) == ("invalid", setting)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Example()),
        ({"rate": 1, "pair": [0, 0.5]}, Example(rate=1.0, pair=(0.0, 0.5))),
        ({"task": "values", "columns": [0, 3]}, Example(task="values", columns=(0, 3))),
        ({"task": None, "blocks": 7}, Example(blocks=(7,))),
        ({"blocks": "[6, 7]"}, Example(blocks=(6, 7))),
        ({"blocks": "all"}, Example()),
        ({"names": 2024}, Example(names=("2024",))),
        ({"names": "[a,007,7]"}, Example(names=("a", "007", "7"))),
        (
            {"names": """["Folk, World, & Country", Rock]"""},
            Example(names=("Folk, World, & Country", "Rock")),
        ),
        ({"limit": 1}, Example(limit=1)),
        ({"trainer": {"max_epochs": 5}}, Example(trainer=Trainer(max_epochs=5))),
        ({"trainer": {"precision": 16}}, Example(trainer=Trainer(precision="16"))),
        ({"trainer": {"deep": {"flag": False}}}, Example(trainer=Trainer(deep=Deep(flag=False)))),
    ],
)
def test_good_settings(given, expected):
    found = parse(Example, given)
    # 1 == 1.0, and a limit of one batch is not one of all batches.
    assert found == expected
    assert repr(found) == repr(expected)
    assert parse(Example, plain(found)) == found


COMMANDS = ("pretrain", "extract_embeddings")
NAMED = ("target_scores", "paper_recipe", "maest_finetune")


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
        ("with maest_base", "maest_base", "maest.arch=maest_base"),
        ("target_scores with seed=1", "target_scores", "'with target_scores seed=1'"),
        ("seed=1", "seed=1", "'with seed=1'"),
        ("target_score with seed=1", "target_score", "'with target_scores seed=1'"),
        ("pretrain target_scores seed=1", "target_scores", "'pretrain with target_scores seed=1'"),
        ("target_scores pretrain", "target_scores", "'pretrain with target_scores'"),
        ("pretrain seed=1 with target_scores", "seed=1", "'pretrain with seed=1 target_scores'"),
        ("pretrain with", "with", "'pretrain'"),
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


def changed(name: str, value: Any) -> dict:
    """The settings that ``name=value`` gives."""
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


EXPERIMENTS = pytest.mark.parametrize(
    ("section", "named"),
    [(config.Settings, config.MAEST_NAMED), (config.ProbeSettings, config.TL_NAMED)],
    ids=["ex_maest", "ex_tl"],
)


@EXPERIMENTS
def test_named_configs_change_only_what_there_is(section, named):
    assert named
    for changes in named.values():
        parse(section, changes)


@EXPERIMENTS
def test_every_default_is_within_its_bounds(section, named):
    assert parse(section, plain(section())) == section()
    for known in settings_of(section):
        assert known.meaning.rstrip(".") == known.meaning != ""


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
    assert listed(typed) == expected


@pytest.mark.parametrize("names", [["a/1", "b"], ["a,b", "c d"], ["x[1,2]", "y (z)"], ["it's"]])
def test_a_list_is_read_as_it_is_typed(names):
    (argument,) = shlex.split(typed_list("runs", names))
    assert listed(argument.removeprefix("runs=")) == names


def unfit(known: Setting) -> list[Any]:
    """Values that a setting cannot be."""
    kinds = [kind for kind in get_args(known.kind) or (known.kind,) if kind is not type(None)]
    if get_origin(known.kind) in (tuple, Literal):
        kinds = [known.kind]
    bad: list[Any] = [math.nan, math.inf, {"a": 1}, [[{}]]]
    if bool in kinds:
        return [*bad, [1], "word", 1]
    if int in kinds or float in kinds:
        least_is_negative = ">= -" in known.bounds
        bad += [[1], "word", True, 1e99, 10**400, *([] if least_is_negative else [-1])]
    elif str in kinds:
        bad += [[1], True]
    elif any(get_origin(kind) is tuple and get_args(kind)[0] is not str for kind in kinds):
        bad += ["word", [{}], [math.nan], [-2], [True]]
    return bad


@EXPERIMENTS
def test_nothing_passes_that_no_run_can_use(section, named):
    """Each setting with numbers and kinds that it cannot be: refused by its name."""
    for known in settings_of(section):
        for value in unfit(known):
            error = refused(parse, section, changed(known.name, value))
            assert error.setting == known.name, (known.name, value)
            assert error.kind in ("invalid", "unknown")


def test_auto_is_none_where_there_is_a_rule():
    assert parse(Example, {"trainer": {"precision": "auto"}}) == Example()
    assert refused(parse, Example, {"limit": "auto"}).setting == "limit"


def test_the_reference_is_up_to_date():
    path = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
    assert path.read_text("utf-8") == reference.page()


def test_a_setting_of_another_section_is_meant():
    error = refused(parse, config.Settings, {"module": {"drop_path_rate": 2}})
    assert "'maest.drop_path_rate'" in error.hint

"""A setting, named config or command that does not exist or does not fit is refused in a line."""

import json
import math
import shlex
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from made_up import refuses
from sacred.arg_parser import get_config_updates

from maest import config
from maest.config import reference
from maest.config.command_line import check_arguments
from maest.config.schema import Setting, parse, plain, setting, settings_of
from maest.helpers.errors import InputError
from maest.helpers.names import check_choice, parse_list, typed_list


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


def changed(name: str, value: Any) -> dict[str, Any]:
    """The settings that ``name=value`` gives."""
    for key in reversed(name.split(".")):
        value = {key: value}
    return value


@pytest.mark.parametrize(
    ("section", "given", "nearest"),
    [
        (Example, "sed", "seed"),
        (Example, "trainer.max_epoch", "trainer.max_epochs"),
        (Example, "trainer.deep.flags", "trainer.deep.flag"),
        (config.Settings, "module.drop_path_rate", "maest.drop_path_rate"),  # of another section
    ],
)
def test_unknown_key_at_any_depth(section, given, nearest):
    with refuses("unknown", setting=given) as error:
        parse(section, changed(given, 1))
    assert repr(nearest) in error.value.hint


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("seed", ["abc", True, 1.5, None, -1]),
        ("rate", [0, 1.5, math.nan, math.inf]),
        ("pair", [[0.9], [0.9, 1], [0.9, "a"], 0.9]),
        ("columns", [[1.5], [-1]]),
        ("trainer", [5]),
        ("trainer.deep.flag", [1]),
        ("trainer.max_epochs", [[1], 10.0]),
        ("trainer.precision", [math.nan, True]),
        ("blocks", [[6, -2], [6, 7.5]]),
        ("names", [[True]]),
        ("task", [3]),
        ("limit", [0, "auto"]),
    ],
)
def test_value_of_another_kind_or_out_of_bounds(name, values):
    for value in values:
        with refuses("invalid", setting=name):
            parse(Example, changed(name, value))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Example()),
        ({"rate": 1, "pair": [0, 0.5]}, Example(rate=1.0, pair=(0.0, 0.5))),
        ({"task": None, "blocks": 7}, Example(blocks=(7,))),
        ({"blocks": "[6, 7]"}, Example(blocks=(6, 7))),
        ({"names": 2024}, Example(names=("2024",))),
        ({"names": "[a,007,7]"}, Example(names=("a", "007", "7"))),
        ({"names": '["Folk, World", Rock]'}, Example(names=("Folk, World", "Rock"))),
        ({"limit": 1}, Example(limit=1)),
        ({"trainer": {"precision": 16}}, Example(trainer=Trainer(precision="16"))),
        ({"trainer": {"precision": "auto"}}, Example()),
        ({"trainer": {"deep": {"flag": False}}}, Example(trainer=Trainer(deep=Deep(flag=False)))),
    ],
)
def test_good_settings(given, expected):
    found = parse(Example, given)
    # 1 == 1.0, and a limit of one batch is not one of all batches.
    assert (found, repr(found)) == (expected, repr(expected))


@pytest.mark.parametrize(
    ("line", "setting", "right"),
    [
        ("with datamodule.base_dir =a/b/", "datamodule.base_dir", "datamodule.base_dir=a/b/"),
        ("with datamodule.base_dir = a/b/", "datamodule.base_dir", "datamodule.base_dir=a/b/"),
        ("with datamodule.base_dir= a/b/", "datamodule.base_dir", "datamodule.base_dir=a/b/"),
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
        *(
            (line, None, "")
            for line in [
                *("", "help", "pretrain", "with target_scores seed=1", "with maest.checkpoint="),
                "extract_embeddings with target_scores inference.out_dir=a=b",
                "pretrain with settings.yaml -l DEBUG",
                *("-u with seed=1", "-u pretrain with seed=1", "-l DEBUG pretrain with seed=1"),
                "pretrain -l DEBUG with seed=1",
            ]
        ),
    ],
)
def test_slips_of_the_command_line(line, setting, right):
    commands = ("pretrain", "extract_embeddings")
    named = ("target_scores", "paper_recipe", "maest_finetune")
    if setting is None:
        check_arguments(line.split(), commands, named)
        return
    with pytest.raises(InputError) as error:
        check_arguments(line.split(), commands, named)
    assert error.value.setting == setting
    assert right in error.value.hint


def test_choice():
    check_choice("pool", "mean", ("mean", "none"))
    with refuses("unknown", setting="pool") as error:
        check_choice("pool", "men", ("mean", "none"))
    assert "'mean'" in error.value.hint


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
    assert parse_list(typed) == expected


@pytest.mark.parametrize("names", [["a/1", "b"], ["a,b", "c d"], ["x[1,2]", "y (z)"], ["it's"]])
def test_a_list_is_read_as_it_is_typed(names):
    (argument,) = shlex.split(typed_list("runs", names))
    assert parse_list(argument.removeprefix("runs=")) == names


EXPERIMENTS = pytest.mark.parametrize(
    ("section", "named"),
    [(config.Settings, config.MAEST_NAMED), (config.ProbeSettings, config.TL_NAMED)],
    ids=["ex_maest", "ex_tl"],
)


@EXPERIMENTS
def test_defaults_and_named_configs_are_valid(section, named):
    assert parse(section, plain(section())) == section()
    assert named
    for changes in named.values():
        parse(section, changes)
    for known in settings_of(section):
        assert known.meaning.rstrip(".") == known.meaning != ""


def fitting(kind: Any, bounds: str) -> st.SearchStrategy[Any]:
    """Valid values of a setting, as plain data."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return st.one_of(fitting(part, bounds) for part in parts)
    if origin is Literal:
        return st.sampled_from(parts)
    if origin is tuple:
        least, most = (0, 4) if parts[-1] is ... else (len(parts), len(parts))
        return st.lists(fitting(parts[0], bounds), min_size=least, max_size=most)
    limits = dict(bound.split() for bound in bounds.split(", ") if bound)
    sides = [(float(limits[s]) if s in limits else None) for s in (">=", ">", "<=", "<")]
    low, high = (a if b is None else b for a, b in (sides[:2], sides[2:]))
    if kind is float:
        open_ends = {"exclude_min": ">" in limits, "exclude_max": "<" in limits}
        return st.floats(low, high, allow_nan=False, allow_infinity=False, **open_ends)
    if kind is int:
        whole = st.integers(*(None if end is None else int(end) for end in (low, high)))
        return whole.filter(lambda n: n != float(limits.get("!=", limits.get(">", math.nan))))
    text = st.text(max_size=20).filter(lambda text: text != "auto")  # which may be None
    return {bool: st.booleans(), str: text, NoneType: st.none()}[kind]


@EXPERIMENTS
@examples(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_what_print_config_shows_can_be_typed(section, named, data):
    """All settings with any valid values: typed, and written as JSON, they come back the same."""
    known = {one.name: one for one in settings_of(section)}
    values = {name: data.draw(fitting(one.kind, one.bounds), name) for name, one in known.items()}
    for name, one in known.items():
        condition, _, value = one.only.partition("=")
        if condition and str(values[condition]) != value:  # it would have no effect
            values[name] = plain(one.default)
    shown = {n: "auto" if v is None and known[n].auto else v for n, v in values.items()}
    typed, _ = get_config_updates([f"{name}={value!r}" for name, value in shown.items()])
    found = parse(section, typed)
    for name, value in values.items():
        assert repr(plain(attrgetter(name)(found))) == repr(value), name
    assert parse(section, json.loads(json.dumps(plain(found)))) == found


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
            with pytest.raises(InputError) as error:
                parse(section, changed(known.name, value))
            assert error.value.setting == known.name, (known.name, value)
            assert error.value.kind in ("invalid", "unknown")
            assert error.value.hint


def test_the_reference_is_up_to_date():
    path = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
    assert path.read_text("utf-8") == reference.page()

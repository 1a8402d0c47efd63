"""Sizes of a network, and the patches that patchout leaves."""

import math
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_up import refuses

from maest.models.sizes import Patchout, Sizes, grid_size

CLIP = Sizes(n_classes=5, input_t=165)
ROWS, COLUMNS = 9, 15  # patches of a clip, which has positions for one column more


# ---- sizes ---------------------------------------------------------------------------------------


def test_sizes_are_the_papers_if_nothing_else_is_said():
    shape = {"n_classes": 400, "input_t": 1875, "input_f": 96, "embed_dim": 768, "depth": 12}
    shape |= {"num_heads": 12, "mlp_ratio": 4.0, "head_eps": 1e-5, "distilled_type": "mean"}
    values = {"norm_mean": 2.06755686098554, "norm_std": 1.268292820667291, "task": "multi-label"}
    units = {"target_mean": None, "target_std": None}
    assert asdict(Sizes(n_classes=400, input_t=1875)) == shape | values | units


@pytest.mark.parametrize(
    ("frames", "patches", "positions"),
    [(16, 1, 1), (25, 1, 2), (26, 2, 2), (312, 30, 31), (1875, 186, 187)],
)
def test_patches_of_16_frames_every_10(frames, patches, positions):
    assert grid_size(frames) == patches
    assert Sizes(n_classes=1, input_t=frames).positions == positions


LEAST = {"n_classes": 1, "input_t": 16, "input_f": 16, "embed_dim": 1, "depth": 1, "num_heads": 1}


@pytest.mark.parametrize(("name", "least"), LEAST.items())
def test_whole_sizes_have_a_least_value(name, least):
    sizes = Sizes(**LEAST | {name: np.int64(least)})
    assert type(getattr(sizes, name)) is int
    for value in (least - 1, float(least), True, "16", None):
        with refuses("invalid", setting=name):
            Sizes(**LEAST | {name: value})


@pytest.mark.parametrize(
    ("name", "above"),
    [("mlp_ratio", 0), ("head_eps", 0), ("norm_std", 0), ("norm_mean", -math.inf)],
)
def test_other_sizes_are_finite_and_above_a_bound(name, above):
    for value in (math.nextafter(above, math.inf), 1, sys.float_info.max):
        assert getattr(Sizes(**LEAST | {name: value}), name) == value
    for value in (above, -math.inf, math.inf, math.nan, 10**400):
        with refuses("invalid", setting=name):
            Sizes(**LEAST | {name: value})


@pytest.mark.parametrize(
    ("name", "value", "kind"),
    [("task", "x", "unknown"), ("distilled_type", "x", "unknown"), ("num_heads", 5, "conflict")],
)
def test_other_names_and_heads_that_do_not_divide_the_channels(name, value, kind):
    with refuses(kind, setting=name):
        Sizes(n_classes=1, input_t=16, embed_dim=12, **{"num_heads": 4, name: value})


def test_units_of_regression_targets():
    given = {"target_mean": np.array([0, 1]), "target_std": (2, 1e-9)}
    sizes = Sizes(n_classes=2, input_t=16, task="regression", **given)
    assert (sizes.target_mean, sizes.target_std) == ([0.0, 1.0], [2.0, 1e-9])
    assert {type(value) for value in sizes.target_mean + sizes.target_std} == {float}


@pytest.mark.parametrize(
    ("task", "mean", "std"),
    [
        ("multi-label", [0, 0], [1, 1]),
        ("regression", [0, 0], None),
        ("regression", None, [1, 1]),
        ("regression", [0], [1]),
        ("regression", [0], [1, 1]),
        ("regression", [0, 0, 0], [1, 1, 1]),
        ("regression", [0, 0], [1, 0]),
        ("regression", [0, 0], [-1, 1]),
        ("regression", [0, 0], [1, math.nan]),
    ],
)
def test_units_that_do_not_fit(task, mean, std):
    with refuses("conflict", setting="target_mean"):
        Sizes(n_classes=2, input_t=16, task=task, target_mean=mean, target_std=std)


# ---- patchout ------------------------------------------------------------------------------------


def kept(layer: Patchout, columns: int = COLUMNS) -> list[int]:
    """Numbers of the patches that stay, counted along the rows."""
    numbers = torch.arange(ROWS * columns).view(1, 1, ROWS, columns)
    found = layer(numbers + 1000 * torch.arange(6).view(2, 3, 1, 1))
    assert torch.equal(found // 1000, torch.arange(6).view(2, 3, 1).expand_as(found))
    assert (found % 1000 == found[0, 0] % 1000).all(), "the same ones for the whole batch"
    return found[0, 0].tolist()


def test_columns_and_rows_that_are_always_dropped():
    options = {"s_patchout_t_indices": 2, "s_patchout_f_interleaved": 4}
    assert kept(Patchout(CLIP, **options).eval(), 4) == [0, 1, 3, 16, 17, 19, 32, 33, 35]


def described(columns, training, *, t, f, u, t_indices, f_indices, t_interleaved, f_interleaved):
    """Numbers of the patches that stay, from the description: columns, rows, then single ones."""

    def some(values, n):
        order = torch.randperm(len(values)).tolist() if training and n else range(-len(values), 0)
        return [values[i] for i in sorted(order[n if training else 0 :])]

    times = [i for i in range(0, columns, t_interleaved or 1) if i not in t_indices]
    rows = [i for i in range(0, ROWS, f_interleaved or 1) if i not in f_indices]
    share = min(columns, COLUMNS) / COLUMNS  # of a clip: a shorter one loses the same share
    times, rows = some(times, int(t * share)), some(rows, f)
    return some([row * columns + time for row in rows for time in times], u)


OPTIONS = {
    "t": st.integers(0, 5),
    "f": st.integers(0, 4),
    "u": st.integers(0, 30),
    "t_indices": st.lists(st.integers(0, COLUMNS), max_size=4),
    "f_indices": st.lists(st.integers(0, ROWS - 1), max_size=3),
    "t_interleaved": st.integers(0, 3),
    "f_interleaved": st.integers(0, 2),
}


@given(
    st.fixed_dictionaries(OPTIONS), st.integers(1, COLUMNS + 1), st.booleans(), st.integers(0, 9)
)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_seed_gives_the_patches_of_the_description(options, columns, training, seed):
    names = {name: f"s_patchout_{name}" if name != "u" else "u_patchout" for name in options}
    try:
        layer = Patchout(CLIP, **{names[name]: value for name, value in options.items()})
    except ValueError:
        assume(False)
    layer.train(training)
    n_patches = layer.n_patches(10 * columns + 6, training)
    assume(n_patches > 0)
    torch.manual_seed(seed)
    found, state = kept(layer, columns), torch.get_rng_state()
    torch.manual_seed(seed)
    assert found == described(columns, training, **options)
    assert torch.equal(state, torch.get_rng_state()), "and nothing else is drawn"
    assert n_patches == len(found) == layer.n_patches(10 * columns + 15, training)


@pytest.mark.parametrize(
    ("options", "columns", "setting"),
    [
        ({"s_patchout_t": 7, "s_patchout_t_indices": [0, 1]}, 3, "s_patchout_t"),
        ({"s_patchout_t": 8, "s_patchout_f": 5, "u_patchout": 16}, 8, "u_patchout"),
        ({"s_patchout_t": 8, "s_patchout_f": 5, "u_patchout": 17}, 8, "u_patchout"),
    ],
)
def test_an_input_that_is_too_short_to_train_on(options, columns, setting):
    layer = Patchout(CLIP, **options)
    assert layer.n_patches(10 * columns + 6, True) < 1
    with refuses("invalid", setting=setting):
        kept(layer.train(), columns)


def test_an_input_whose_columns_are_always_dropped():
    layer = Patchout(CLIP, s_patchout_t_indices=[0, 1]).eval()
    assert [layer.n_patches(frames, False) for frames in (1, 26, 35, 36)] == [0, 0, 0, 9]
    with refuses("invalid", setting="s_patchout_t"):
        kept(layer, 2)
    assert kept(layer, 3) == [2, 5, 8, 11, 14, 17, 20, 23, 26]


def test_numbers_of_columns_stay_on_the_cpu():
    with torch.device("meta"):
        layer = Patchout(CLIP, s_patchout_t_interleaved=5)
    assert layer.kept_columns.tolist() == [0, 5, 10, 15]
    assert layer(torch.zeros(1, 2, ROWS, COLUMNS, device="meta")).shape == (1, 2, 27)


LARGEST = {
    "s_patchout_t": 19,
    "s_patchout_f": 7,
    "u_patchout": 159,
    "s_patchout_t_indices": 19,
    "s_patchout_f_indices": 7,
    "s_patchout_t_interleaved": None,
    "s_patchout_f_interleaved": None,
}


@pytest.mark.parametrize(("name", "most"), LARGEST.items())
def test_bounds_of_patchout(name, most):
    sizes = Sizes(n_classes=1, input_t=206, input_f=86)  # 8 rows, 20 columns, 20 positions
    for value in (0, np.int64(8 if most is None else most if most < 20 else 152)):
        Patchout(sizes, **{name: value})
    for value in (-1, True, 1.0, *([] if most is None else [most + 1])):
        with refuses("invalid", setting=name) as caught:
            Patchout(sizes, **{name: value})
        assert f"0 {'or more' if most is None else f'to {most}'}" in caught.value.hint
    if "indices" in name:
        with refuses("invalid", setting=name):
            Patchout(sizes, **{name: range(most + 1)})


ALL_T_AND_F = (
    "s_patchout_t",
    "s_patchout_t_interleaved",
    "s_patchout_f",
    "s_patchout_f_interleaved",
)


@pytest.mark.parametrize(
    ("input_t", "options"),
    [
        (165, {"u_patchout": 129}),
        (165, {"s_patchout_t": 12, "s_patchout_f": 7}),
        (165, {"s_patchout_t": 14, "u_patchout": 3}),
        (165, dict(zip(ALL_T_AND_F, (14, 15, 5, 8), strict=True))),  # less than none of either
        (165, {"s_patchout_t": 10, "s_patchout_t_interleaved": 2}),
        (165, {"s_patchout_f": 8, "s_patchout_f_interleaved": 2}),
        (165, {"s_patchout_t_indices": range(15)}),
        (16, {"s_patchout_f": 8, "u_patchout": 1}),
        (312, {"s_patchout_t": 29}),
    ],
)
def test_patchout_that_leaves_less_than_a_twentieth(input_t, options):
    with refuses("invalid", setting="s_patchout_t"):
        Patchout(Sizes(n_classes=1, input_t=input_t), **options)


def test_patchout_that_leaves_a_twentieth():
    assert Patchout(CLIP, u_patchout=128).n_patches(165, True) == 7
    assert Patchout(Sizes(n_classes=1, input_t=16), s_patchout_f=8).n_patches(16, True) == 1
    assert Patchout(Sizes(n_classes=1, input_t=206), s_patchout_t=19).n_patches(206, True) == 9

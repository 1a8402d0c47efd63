"""Pictures: what is in them, and that they are files."""

from __future__ import annotations

import threading
import warnings

import numpy as np
import pytest

from maest.helpers.audio.mel import slaney_filter_bank
from maest.helpers.reports import plots
from maest.helpers.reports.activation_plot import _patch_columns, activation_plot


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved = []
    save = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda f, path: [saved.append(f), save(f, path)][1])
    return saved


def epochs(**figures: list[float]) -> list[dict[str, float]]:
    """A row an epoch, of lists with a value an epoch."""
    columns = {"train_loss": [1.0, 0.9], "val_loss": [1.1, 1.0], **figures}
    return [{"epoch": i + 1, **{name: own[i] for name, own in columns.items()}} for i in range(2)]


@pytest.mark.parametrize(
    ("rows", "loss", "names", "lowest"),
    [
        (
            epochs(val_ap=[0.1, 0.2], val_roc_auc=[0.5, 0.6]),
            *("binary cross-entropy", ["AP", "ROC-AUC", "chance (AP 0.250)"], 0),
        ),
        (
            epochs(val_accuracy=[0.1, 0.2], val_macro_f1=[0.5, 0.6]),
            *("cross-entropy", ["accuracy", "macro F1", "chance (accuracy 0.250)"], 0),
        ),
        (
            epochs(val_r2=[-0.5, 0.2], val_mse=[9.0, 8.0]),
            *("mean squared error", ["R²", "chance (R² 0.250)"], -0.55),
        ),
        (
            epochs(val_r2=[-80, np.nan], val_mse=[9.0, 8.0]),
            *("mean squared error", ["R²", "chance (R² 0.250)"], -1),
        ),
        (epochs(), "binary cross-entropy", ["AP", "ROC-AUC", "chance (AP 0.250)"], 0),
    ],
)
def test_learning_curve_of_each_task(tmp_path, figures, rows, loss, names, lowest):
    path = plots.learning_curve(tmp_path / "curve.png", rows, {"chance": 0.25})
    assert path.read_bytes().startswith(b"\x89PNG")
    left, right = figures[0].axes
    assert left.get_title() == loss
    assert [line.get_label() for line in right.get_lines()] == names
    assert right.get_ylim() == pytest.approx((lowest, 1))


@pytest.mark.parametrize(("least", "lowest"), [(0.2, 0), (-0.3, -0.33), (-7, -1)])
def test_label_bars(tmp_path, figures, least, lowest):
    series = {"model": np.array([0.5, np.nan, least]), "mean": np.array([0.1, 0.9, 0.3])}
    plots.label_bars(tmp_path / "bars.png", ["a", "b", "c"], series, "R²")
    (axes,) = figures[0].axes
    assert axes.get_xlim() == pytest.approx((lowest, 1))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "c", "a"]


def activations(path, patches: int, labels: list[str], hop=30.0, length=30.0, **options):
    """Draw random activations; they and the figure's times."""
    start = hop * np.arange(patches)
    times = np.stack((start, start + length / 2, start + length), axis=1)
    rng = np.random.default_rng(0)
    values = rng.random((patches, len(labels)), np.float32)
    picture = rng.random((96, 50), np.float32)
    title = options.pop("title", "a song")
    activation_plot(path, picture, times, values, labels, times[-1, 2], title, **options)
    return values, times


@pytest.mark.parametrize(
    ("patches", "labels", "length", "first", "last"),
    [
        (1, 1, 30, "0:00", "0:30"),
        (1, 20, 5, "0:00", "0:05"),
        (1200, 20, 30, "0:00", "10:00"),
        (10, 3, 30, "0:00", "5:00"),
        (1, 2, 0.256, None, None),
    ],
)
def test_activations_over_time(tmp_path, figures, patches, labels, length, first, last):
    names = [f"label {i}" for i in range(labels)]
    path = tmp_path / "new" / "a.png"
    values, times = activations(path, patches, names, length, length)
    assert path.read_bytes().startswith(b"\x89PNG")
    upper, lower, *bars = figures[0].axes
    np.testing.assert_array_equal(upper.images[0].get_array(), values.T)
    assert [label.get_text() for label in upper.get_yticklabels()] == names
    assert upper.get_ylim() == (labels - 0.5, -0.5)  # the first label on top
    assert upper.get_xlim() == lower.get_xlim() == (0, times[-1, 2])
    assert upper.images[0].get_clim() == (0, 1)  # the same for each track
    marks = [label.get_text() for label in lower.get_xticklabels()]
    if first:
        assert (marks[0], marks[-1]) == (first, last)
        assert len(marks) <= 13
    else:
        assert lower.get_xlabel() == "time (s)"
    assert [label.get_text() for label in lower.get_yticklabels()][-2:] == ["4k", "8k"]
    assert [bar.get_ylabel() for bar in bars] == ["activation", "log mel power"]


def test_mel_bands_are_marked_where_their_frequency_is(tmp_path, figures):
    activations(tmp_path / "a.png", 1, ["x"])
    ticks = dict(
        zip((125, 500, 1000, 2000, 4000, 8000), figures[0].axes[1].get_yticks(), strict=True)
    )
    bank = slaney_filter_bank().numpy()  # [257, 96]
    for hertz in (500, 1000, 2000, 4000):
        loudest = bank[round(hertz / 31.25)].argmax()
        assert abs(ticks[hertz] - loudest) <= 1


def test_patches_that_overlap_and_gaps_between_them(tmp_path, figures):
    values, times = activations(tmp_path / "a.png", 3, ["x"], hop=10, length=30)
    assert _patch_columns(times, values)[0].tolist() == [0, 20, 30, 50]
    upper = figures[0].axes[0]
    assert [upper.images[0].get_extent()[i] for i in (0, 1)] == [0, 50]
    values, times = activations(tmp_path / "b.png", 3, ["x"], 10, 4, figure_name="value")
    assert _patch_columns(times, values)[0].tolist() == [0, 4, 10, 14, 20, 24]
    assert _patch_columns(times + 1, values)[0].tolist() == [
        0,
        1,
        5,
        11,
        15,
        21,
        25,
    ]
    heat = figures[1].axes[0].images[0]
    drawn = np.ma.filled(heat.get_array(), np.nan).ravel()
    np.testing.assert_array_equal(drawn[::2], values[:, 0])
    assert np.isnan(drawn[1::2]).all()
    assert heat.get_clim() == (values.min(), values.max())


def test_each_patch_is_drawn_around_its_centre():
    starts = np.arange(30.0)
    times = np.stack((starts, starts + 2.5, starts + 5), axis=1)
    values = np.arange(30.0)[:, None]
    edges, columns = _patch_columns(times, values)
    assert (edges[0], edges[-1]) == (0, 34)
    np.testing.assert_array_equal(columns, values)
    np.testing.assert_array_equal(edges[1:-1], times[:-1, 1] + 0.5)


def test_a_short_last_patch_is_not_drawn_where_it_is_not():
    times = np.array([[0, 15, 30], [29, 30, 31], [40, 45, 50]], float)
    edges, columns = _patch_columns(times, np.arange(3.0)[:, None])
    assert edges.tolist() == [0, 29, 31, 40, 50]
    np.testing.assert_array_equal(columns[:, 0], [0, 1, np.nan, 2])


def test_any_title_and_label_from_a_thread(tmp_path, figures):
    title = "x/" * 99 + "$x_ 日本 \\frac{\n\udcff$.mp3"
    names = ["$d_x$", "日本", "\udcff", "l" * 99, "$"]
    error = []

    def draw():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                activations(tmp_path / "a.png", 2, names, title=title)
        except Exception as problem:
            error.append(problem)

    thread = threading.Thread(target=draw)
    thread.start()
    thread.join()
    assert not error
    upper = figures[0].axes[0]
    shown = upper.get_title()
    assert shown.startswith("…/x/x")
    assert shown.endswith("$x_ □□ \\frac{□□$.mp3")
    assert len(shown) == 100
    labels = [label.get_text() for label in upper.get_yticklabels()]
    assert labels == ["$d_x$", "□□", "□", "…" + "l" * 39, "$"]
    assert not any(text.get_parse_math() for text in (upper.title, *upper.get_yticklabels()))


def test_activations_that_are_all_zero(tmp_path, figures):
    times = np.array([[0, 1, 2]])
    activation_plot(tmp_path / "a.png", np.zeros((96, 1)), times, np.zeros((1, 1)), ["x"], 2, "")
    assert figures[0].axes[0].images[0].get_clim() == (0, 1)

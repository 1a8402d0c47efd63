"""Pictures: what is in them, and that they are files."""

import threading
import warnings

import numpy as np
import pytest

from maest.helpers.audio.mel import slaney_filter_bank
from maest.helpers.reports import plots
from maest.helpers.reports.activation_plot import activation_plot, patch_columns
from maest.helpers.results.tracks import TrackResult


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved = []
    save = plots.save_figure
    monkeypatch.setattr(plots, "save_figure", lambda f, path: [saved.append(f), save(f, path)][1])
    return saved


def texts(labels) -> list[str]:
    return [label.get_text() for label in labels]


@pytest.mark.parametrize(
    ("metrics", "loss", "names", "lowest"),
    [
        ({"ap": [0.1, 0.2], "roc_auc": [0.5, 0.6]}, "binary cross-entropy", ["AP", "ROC-AUC"], 0),
        ({"accuracy": [0, 1], "macro_f1": [0, 1]}, "cross-entropy", ["accuracy", "macro F1"], 0),
        ({"r2": [-0.5, 0.2], "mse": [9.0, 8.0]}, "mean squared error", ["R²"], -0.55),
        ({"r2": [-80, np.nan], "mse": [9.0, 8.0]}, "mean squared error", ["R²"], -1),
        ({}, "binary cross-entropy", ["AP", "ROC-AUC"], 0),
    ],
)
def test_learning_curve_of_each_task(tmp_path, figures, metrics, loss, names, lowest):
    rows = [
        {"epoch": i + 1, "train_loss": 1.0, "val_loss": 1.1}
        | {f"val_{name}": values[i] for name, values in metrics.items()}
        for i in range(2)
    ]
    path = plots.learning_curve(tmp_path / "curve.png", rows, {"chance": 0.25})
    assert path.read_bytes().startswith(b"\x89PNG")
    left, right = figures[0].axes
    assert left.get_title() == loss
    level = f"chance ({names[0]} 0.250)"
    assert [line.get_label() for line in right.get_lines()] == [*names, level]
    assert right.get_ylim() == pytest.approx((lowest, 1))


@pytest.mark.parametrize(("least", "lowest"), [(0.2, 0), (-0.3, -0.33), (-7, -1), (np.nan, 0)])
def test_label_bars(tmp_path, figures, least, lowest):
    series = {"model": [0.5, np.nan, least], "mean": [0.1, 0.9, 0.3]}
    errors = {name: [0.1, 0, 0] for name in series}
    path = plots.label_bars(
        tmp_path / "bars.png", ["a", "b", "c"], series, "R²", errors, [1, 0, None]
    )
    assert path.read_bytes().startswith(b"\x89PNG")
    (axes,) = figures[0].axes
    assert axes.get_xlim() == pytest.approx((lowest, 1))
    assert texts(axes.get_yticklabels())[-1] == "a (1)"
    assert set(texts(axes.get_yticklabels())) == {"a (1)", "b (no positives)", "c"}


def track(patches: int, labels: int, hop=30.0, length=30.0, key: str = "a song") -> TrackResult:
    """Random activations."""
    start = hop * np.arange(patches)
    times = np.stack((start, start + length / 2, start + length), axis=1)
    rng = np.random.default_rng(0)
    values, picture = rng.random((patches, labels), np.float32), rng.random((96, 50), np.float32)
    return TrackResult(
        *(key, 0, float(times[-1, 2]), times), patch_activations=values, picture=picture
    )


@pytest.mark.parametrize(
    ("patches", "labels", "length", "first", "last"),
    [
        (1, 1, 30, "0:00", "0:30"),
        (1, 20, 5, "0:00", "0:05"),
        (1200, 20, 30, "0:00", "10:00"),
        (1, 2, 0.256, None, None),
    ],
)
def test_activations_over_time(tmp_path, figures, patches, labels, length, first, last):
    names, one = [f"label {i}" for i in range(labels)], track(patches, labels, length, length)
    path = activation_plot(tmp_path / "new" / "a.png", one, dict(enumerate(names)))
    assert path.read_bytes().startswith(b"\x89PNG")
    upper, lower, *bars = figures[0].axes
    np.testing.assert_array_equal(upper.images[0].get_array(), one.patch_activations.T)
    assert texts(upper.get_yticklabels()) == names
    assert upper.get_ylim() == (labels - 0.5, -0.5)  # the first label on top
    assert upper.get_xlim() == lower.get_xlim() == (0, one.seconds)
    assert upper.images[0].get_clim() == (0, 1)  # the same for each track
    marks = texts(lower.get_xticklabels())
    if first:
        assert (marks[0], marks[-1]) == (first, last)
        assert len(marks) <= 13
    assert [bar.get_ylabel() for bar in bars] == ["activation", "log mel power"]
    bank = slaney_filter_bank().numpy()  # [257, 96]
    for hertz, at in zip((125, 500, 1000, 2000, 4000), lower.get_yticks(), strict=False):
        assert abs(at - bank[round(hertz / 31.25)].argmax()) <= 1


def test_colours_of_a_regression_span_its_values(tmp_path, figures):
    one = track(3, 2, 10, 4)
    for values in (one.patch_activations[:, 1], np.zeros(3)):
        one.patch_activations[:, 1] = values
        activation_plot(tmp_path / "b.png", one, {1: "x"}, "value")
        heat = figures[-1].axes[0].images[0]
        drawn = np.ma.filled(heat.get_array(), np.nan).ravel()
        np.testing.assert_array_equal(drawn[::2], values)
        assert np.isnan(drawn[1::2]).all()  # the gaps
        assert heat.get_clim() == (values.min(), values.max() or 1)


@pytest.mark.parametrize(
    ("times", "edges", "patches"),
    [
        ([(0, 15, 30), (10, 25, 40), (20, 35, 50)], [0, 20, 30, 50], [0, 1, 2]),
        ([(0, 2, 4), (10, 12, 14)], [0, 4, 10, 14], [0, None, 1]),
        ([(1, 3, 5), (11, 13, 15)], [0, 1, 5, 11, 15], [None, 0, None, 1]),
        # Halfway to a short last patch would be outside of it.
        ([(0, 15, 30), (29, 30, 31), (40, 45, 50)], [0, 29, 31, 40, 50], [0, 1, None, 2]),
    ],
)
def test_patches_meet_halfway_between_their_centres(times, edges, patches):
    values = np.arange(3.0)[: len(times), None]
    found, columns = patch_columns(np.array(times, float), values)
    assert found.tolist() == edges
    wanted = [np.nan if patch is None else patch for patch in patches]
    np.testing.assert_array_equal(columns[:, 0], wanted)


def test_any_title_and_label_from_a_thread(tmp_path, figures):
    one = track(2, 5, key="x/" * 99 + "$x_ 日本 \\frac{\n\udcff$.mp3")
    names = ["$d_x$", "日本", "\udcff", "l" * 99, "$"]
    errors = []

    def draw():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                activation_plot(tmp_path / "a.png", one, dict(enumerate(names)))
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=draw)
    thread.start()
    thread.join()
    assert not errors
    upper = figures[0].axes[0]
    title = upper.get_title()
    assert (title[:5], title[-20:], len(title)) == ("…/x/x", "$x_ □□ \\frac{□□$.mp3", 100)
    assert texts(upper.get_yticklabels()) == ["$d_x$", "□□", "□", "…" + "l" * 39, "$"]
    assert not any(text.get_parse_math() for text in (upper.title, *upper.get_yticklabels()))

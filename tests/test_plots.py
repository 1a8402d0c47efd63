"""Pictures: what is in them, and that they are files."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import plots


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
    return [{"epoch": i, **{name: own[i] for name, own in columns.items()}} for i in range(2)]


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

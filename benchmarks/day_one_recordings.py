"""The parts recordings and styles of day_one.py: tags of a teacher, and styles by source."""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from day_one_features import STATISTICS, Model, Tables, outputs_of, side_by_side, statistics_of

from maest.datasets.groundtruth import read_groundtruth, read_labels
from maest.datasets.melspectrograms import read_mel, write_mel
from maest.datasets.recordings.labels import read_vocabulary
from maest.datasets.splitting import SPLITS
from maest.helpers.audio.patches import FRAMES_PER_SECOND
from maest.helpers.reports.metrics import evaluate

POSITIVE = 0.2  # the teacher's mean value in a track from which a label is positive
ALPHAS = tuple(10.0**power for power in range(6))  # penalties of a ridge regression
COSTS = tuple(10.0**power for power in range(-4, 1))  # of a logistic regression


def recordings(args: argparse.Namespace, models: Sequence[Model]) -> Tables:
    """The teacher's tags are the truth. A ridge regression learns them from mel statistics."""
    names, root = read_labels(args.set / "tags/labels.json"), args.set / "melspectrograms"
    taught = {label.name for label in read_vocabulary().labels if label.teacher}
    columns = [i for i, name in enumerate(names) if name in taught]
    names = [names[i] for i in columns]
    keys, values, truths, x = {}, {}, {}, {}
    for split in SPLITS:
        truth = read_groundtruth(args.set / f"tags/groundtruth-{split}.pk")
        keys[split], values[split] = truth.keys, truth.targets[:, columns].astype(np.float64)
        truths[split] = np.where(np.isnan(values[split]), np.nan, values[split] >= POSITIVE)
        x[split] = statistics_of(args.work, root, truth.keys)
    ridge, alpha = _ridge(x, values["train"], truths["validation"])
    outputs = {model.name: outputs_of(args.work, model, root, keys["test"]) for model in models}
    sources = np.array([key.partition("/")[0] for key in keys["test"]])
    held_out = np.isin(sources, held_out_sources(args.set))
    parts = {"held-out sources": held_out, "others": ~held_out}
    tables: Tables = {"tracks": {split: len(own) for split, own in keys.items()}, "alpha": alpha}
    shown: list[int] = []
    rng = np.random.default_rng(0)
    for part, of_part in parts.items():
        rows = np.flatnonzero(of_part & ~np.isin(sources, args.without))
        shown += sorted(rng.permutation(rows)[:5].tolist())
        truth = truths["test"][rows]
        fewest = np.minimum((truth == 1).sum(axis=0), (truth == 0).sum(axis=0))
        enough = [i for i in np.flatnonzero(fewest >= args.least) if len(rows)]
        for model in models:
            at = model.columns(names)
            chosen = [i for i in enough if at[i] is not None]
            title = f"{part}: {len(rows)} tracks, {len(chosen)} labels of {model.name}"
            if not chosen:
                tables[title] = "n/a"
                continue
            found = {"ridge": ridge[rows][:, chosen][None]}
            for other in models:
                own = [other.columns(names)[i] for i in chosen]
                if None not in own:
                    found[other.name] = outputs[other.name]["activations"][rows][:, own][None]
            tables[title] = side_by_side(found, truth[:, chosen], args.resamples, "multi-label")
    tables["strongest"] = [
        {"track": keys["test"][row], "teacher": _strongest(values["test"][row], names),
         "ridge": _strongest(ridge[row], names)}
        | {m.name: _strongest(outputs[m.name]["activations"][row], m.labels) for m in models}
        for row in shown
    ]  # fmt: skip
    return tables


def _ridge(
    x: Mapping[str, np.ndarray], values: np.ndarray, validation: np.ndarray
) -> tuple[np.ndarray, float]:
    """The test's values [N, C], and the penalty that is best on the validation tracks.

    An unknown value of a training track becomes its label's mean.
    """
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = ~np.isnan(values)
    means = np.where(known, values, 0).sum(axis=0) / np.maximum(1, known.sum(axis=0))
    scored = []
    for alpha in ALPHAS:
        linear = make_pipeline(StandardScaler(), Ridge(alpha=alpha))
        linear.fit(x["train"], np.where(known, values, means))
        found = linear.predict(x["validation"]).reshape(validation.shape)
        roc_auc = evaluate("multi-label", validation, found).figures["roc_auc"]
        scored.append((np.nan_to_num(roc_auc), alpha, linear))
    _, alpha, linear = max(scored, key=lambda one: one[0])
    return linear.predict(x["test"]).reshape(-1, values.shape[1]), alpha


def held_out_sources(folder: Path) -> list[str]:
    return json.loads((folder / "report.json").read_text("utf-8"))["held_out"]


def _strongest(values: np.ndarray, names: Sequence[str]) -> list[str]:
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")[:5]
    return [f"{names[i]} {values[i]:.2f}" for i in order]


# ---- styles --------------------------------------------------------------------------------------


def styles(args: argparse.Namespace, models: Sequence[Model]) -> Tables:
    """Learn each style from one of its sources, test on the other, and the reverse.

    The figures are of tracks: the mean of the probabilities of their pieces of 30 s.
    """
    of_style: dict[str, list[str]] = defaultdict(list)
    for row in _csv(args.styles):
        of_style[row["style"]].append(row["source"])
    if uneven := [style for style, sources in of_style.items() if len(sources) != 2]:
        raise SystemExit(f"styles: two sources each are needed, unlike {', '.join(uneven)}")
    names = sorted(of_style)
    place = {s: (names.index(n), i) for n, own in of_style.items() for i, s in enumerate(own)}
    rows = [row for row in _csv(args.set / "tracks.csv") if row["source"] in place]
    if absent := sorted(place.keys() - {row["source"] for row in rows}):
        raise SystemExit(f"styles: the set has no track of {', '.join(absent)}")
    root, length = args.work / "styles", round(30 * FRAMES_PER_SECOND)
    keys, track = [], []
    for number, row in enumerate(rows):
        mel = np.asarray(read_mel(args.set / "melspectrograms" / row["key"]))
        for start in range(0, len(mel), length):
            piece = mel[start : start + length]
            if start and len(piece) < length // 2:
                continue  # what is left of a track
            keys.append(f"{row['key']}/{start // length}.mmap")
            track.append(number)
            if not (root / keys[-1]).is_file():
                write_mel(root / keys[-1], piece)
    features = {STATISTICS: statistics_of(args.work, root, keys)}
    features |= {m.name: outputs_of(args.work, m, root, keys)["features"] for m in models}
    kind, side = np.array([place[row["source"]] for row in rows]).T
    targets = np.eye(len(names), dtype=np.uint8)[kind]
    outputs = {f: _other_side(x, kind, side, np.array(track))[None] for f, x in features.items()}
    figures = side_by_side(outputs, targets, args.resamples, "multi-label")
    for name, row in side_by_side(outputs, targets, args.resamples, "single-label").items():
        figures[name] |= row
    counts = Counter(row["source"] for row in rows)
    return {"styles": of_style, "tracks": counts, "pieces": len(keys), "the other source": figures}


def _other_side(x: np.ndarray, kind: np.ndarray, side: np.ndarray, track: np.ndarray) -> np.ndarray:
    """Probabilities [tracks, styles], of a logistic regression on the pieces of the other side."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = np.zeros((len(kind), kind.max() + 1))
    for tested in (0, 1):
        train, test = side[track] != tested, side[track] == tested
        linear = LogisticRegression(class_weight="balanced", max_iter=2000)
        search = GridSearchCV(
            make_pipeline(StandardScaler(), linear),
            {"logisticregression__C": COSTS},
            scoring="balanced_accuracy",
            cv=StratifiedGroupKFold(3),
        )
        search.fit(x[train], kind[track[train]], groups=track[train])
        np.add.at(found, track[test], search.predict_proba(x[test]))
    return found / np.bincount(track)[:, None]


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))

"""The parts recordings and styles of day_one.py: tags of a teacher, and styles by source."""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from day_one_features import (
    STATISTICS,
    Model,
    Tables,
    digest,
    keep_mel,
    outputs_of,
    side_by_side,
    statistics_of,
)

from maest.datasets.groundtruth import read_groundtruth, read_labels
from maest.datasets.melspectrograms import read_mel
from maest.datasets.recordings.labels import read_vocabulary
from maest.datasets.splitting import SPLITS
from maest.helpers.audio.patches import FRAMES_PER_SECOND
from maest.helpers.reports.metrics import evaluate
from maest.helpers.soft_labels import known, positive

ALPHAS = tuple(10.0**power for power in range(6))  # penalties of a ridge regression
COSTS = tuple(10.0**power for power in range(-4, 1))  # of a logistic regression


def recordings(args: argparse.Namespace, models: Sequence[Model]) -> Tables:
    """The teacher's tags are the truth. A ridge regression learns them from mel statistics."""
    names, root = read_labels(args.set / "tags/labels.json"), args.set / "melspectrograms"
    columns = [i for i, name in enumerate(names) if name in _labels_of_teacher(args.set)]
    names = [names[i] for i in columns]
    keys, values, truths, x = {}, {}, {}, {}
    for split in SPLITS:
        truth = read_groundtruth(args.set / f"tags/groundtruth-{split}.pk")
        keys[split], values[split] = truth.keys, truth.targets[:, columns].astype(np.float64)
        truths[split] = np.where(known(values[split]), positive(values[split]), np.nan)
        x[split] = statistics_of(args.work, root, truth.keys)
    often = on_validation(truths["validation"], keys["validation"], args.least_validation)
    ridge, alpha = _ridge(x, values["train"], truths["validation"])
    outputs = {model.name: outputs_of(args.work, model, root, keys["test"]) for model in models}
    sources = np.array([key.partition("/")[0] for key in keys["test"]])
    held_out = np.isin(sources, held_out_sources(args.set))
    parts = {"held-out sources": held_out, "others": ~held_out}
    tables: Tables = {
        "tracks": {split: len(tracks) for split, tracks in keys.items()},
        "positive": "a target of the set of 0.5 or more, as in training",
        "alpha": alpha,
    }
    shown: list[int] = []
    rng = np.random.default_rng(0)
    for part, of_part in parts.items():
        rows = np.flatnonzero(of_part & ~np.isin(sources, args.without))
        shown += sorted(rng.permutation(rows)[:5].tolist())
        truth = truths["test"][rows]
        positives = (truth == 1).sum(axis=0)
        fewest = np.minimum(positives, (truth == 0).sum(axis=0))
        enough = np.flatnonzero(often & (fewest >= args.least)) if len(rows) else []
        tables[f"{part}: positives"] = {names[i]: int(positives[i]) for i in enough}
        for model in models:
            chosen = [i for i in enough if model.columns(names)[i] is not None]
            title = f"{part}: {len(rows)} tracks, {len(chosen)} labels of {model.name}"
            if not chosen:
                tables[title] = "n/a"
                continue
            compared = {"ridge": ridge[rows][:, chosen][None]}
            for other in models:
                at = [other.columns(names)[i] for i in chosen]
                if None not in at:
                    compared[other.name] = outputs[other.name]["activations"][rows][:, at][None]
            tables[title] = side_by_side(compared, truth[:, chosen], args.resamples, "multi-label")
    tables["strongest"] = [
        {"track": keys["test"][row], "teacher": _strongest(values["test"][row], names),
         "ridge": _strongest(ridge[row], names)}
        | {m.name: _strongest(outputs[m.name]["activations"][row], m.labels) for m in models}
        for row in shown
    ]  # fmt: skip
    return tables


def on_validation(truth: np.ndarray, keys: Sequence[str], least: int) -> np.ndarray:
    """Bool [C]: labels with so many positive validation tracks [N, C], which two sources share."""
    sources = np.array([key.partition("/")[0] for key in keys])
    of_source = np.array([(truth[sources == s] == 1).sum(axis=0) for s in np.unique(sources)])
    return (of_source.sum(axis=0) >= least) & ((of_source > 0).sum(axis=0) >= min(2, least))


def _labels_of_teacher(folder: Path) -> list[str]:
    """Labels that the teacher's tags make; sets of older versions do not list them."""
    usual = [label.name for label in read_vocabulary().labels if label.teacher]
    return _report(folder).get("labels_of_teacher", usual)


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
        predicted = linear.predict(x["validation"]).reshape(validation.shape)
        roc_auc = evaluate("multi-label", validation, predicted).figures["roc_auc"]
        scored.append((np.nan_to_num(roc_auc), alpha, linear))
    _, alpha, linear = max(scored, key=lambda one: one[0])
    return linear.predict(x["test"]).reshape(-1, values.shape[1]), alpha


def held_out_sources(folder: Path) -> list[str]:
    return _report(folder)["held_out"]


def set_facts(folder: Path) -> dict[str, Any]:
    """Which set it is: its teacher, its tracks, and a hash of its tags."""
    tags = [folder / "tags/labels.json"]
    tags += [folder / f"tags/groundtruth-{split}.pk" for split in SPLITS]
    report = _report(folder)
    facts = {name: report[name] for name in ("teacher", "held_out", "tracks")}
    return facts | {"tags_sha256": digest(*tags)}


def _report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text("utf-8"))


def _strongest(values: np.ndarray, names: Sequence[str]) -> list[str]:
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")[:5]
    return [f"{names[i]} {values[i]:.2f}" for i in order]


# ---- styles --------------------------------------------------------------------------------------


def sources_of_styles(args: argparse.Namespace) -> dict[str, list[str]]:
    """Style → its two sources. Exits unless the models have heard neither."""
    of_style: dict[str, list[str]] = defaultdict(list)
    for row in _csv(args.styles):
        of_style[row["style"]].append(row["source"])
    if uneven := [style for style, sources in of_style.items() if len(set(sources)) != 2]:
        raise SystemExit(f"styles: two sources each are needed, unlike {', '.join(uneven)}")
    named = {source for sources in of_style.values() for source in sources}
    if absent := sorted(named - {row["source"] for row in _csv(args.set / "tracks.csv")}):
        raise SystemExit(f"styles: the set has no track of {', '.join(absent)}")
    if trained_on := sorted(named - set(held_out_sources(args.set))):
        raise SystemExit(f"styles: {', '.join(trained_on)}: not held out of the set's training")
    return dict(of_style)


def styles(args: argparse.Namespace, models: Sequence[Model]) -> Tables:
    """Learn each style from one of its sources, test on the other, and the reverse.

    The figures are of tracks: the mean of the probabilities of their pieces of 30 s.
    """
    of_style = sources_of_styles(args)
    names = sorted(of_style)
    place = {s: (names.index(name), i) for name in names for i, s in enumerate(of_style[name])}
    rows = [row for row in _csv(args.set / "tracks.csv") if row["source"] in place]
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
            keep_mel(root / keys[-1], piece)
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

    probabilities = np.zeros((len(kind), kind.max() + 1))
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
        np.add.at(probabilities, track[test], search.predict_proba(x[test]))
    return probabilities / np.bincount(track)[:, None]


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))

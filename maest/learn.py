"""Learn labels of one's own from a table, on the embeddings of a library.

>>> with maest.Library() as library:
...     report = learn(library, "labels.csv", "my-model")
>>> list(maest.tag("music", "my-model"))

What is learned is a linear layer (`models.learned`). How good it is, cross-validation says: each
track is judged by a layer that has learned without its album, or what is next known of it.

Why a logistic regression: on 657 tracks of 47 games, with 17 of musicnn's tags as labels and
block 7 of maest-tiny-scores, its AP was 0.52, of 120 of these 0.45; ridge regression's 0.51 and
0.39, and that of `models.probe`, which gives a part of the tracks to choose an epoch by, 0.46 and
0.34.
"""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from maest.datasets.tables import LabelledPaths, read_labels
from maest.helpers.errors import InputError
from maest.helpers.names import first_few, short_repr
from maest.helpers.reports.bootstrap import interval, resampled_figures
from maest.helpers.reports.metrics import BOUNDS, baseline
from maest.helpers.reports.thresholds import best_thresholds
from maest.library import Library
from maest.library_types import Model, Track
from maest.nearness import Vectors
from maest.nearness import groups as joined

if TYPE_CHECKING:
    import torch

Group = Literal["genre", "style", "mood"]
FEW = 10  # examples of a label, below which its figures mean little
_FEWEST = 4  # tracks
_FOLDS, _RESAMPLES, _CONFIDENCE = 5, 500, 0.95
_PENALTY = 3.0  # inverse strength of the L2 penalty, for features of length 1 on average
_COPY, _SAME_LENGTH = 0.98, 3.0  # cosine and seconds of near copies, as `Library.duplicates`
# How tracks are kept together, the best known first
_ALBUM, _ARTIST, _FOLDER = "album and artist tags", "artist tag", "folder"
_FIRST = "Index their folder first, by the model that you want to learn on: maest index FOLDER."


@dataclass(frozen=True)
class LabelReport:
    """How well a label was recognised in tracks that were not learned from."""

    label: str
    examples: int  #: tracks that have it
    groups: int  #: of which they are
    threshold: float  #: from which a track has it
    #: "value", the "low" and "high" of its 95 % interval, and "chance", what guessing gets. None:
    #: all examples are of one group, so that it could not be tested
    ap: dict[str, float] | None = None
    roc_auc: dict[str, float] | None = None


@dataclass(frozen=True)
class Report:
    """What was learned, from what, and how good it is."""

    folder: Path
    task: str  #: "single-label" if each track has exactly one of several labels
    tracks: int
    groups: int  #: kept together in cross-validation
    folds: int
    split_by: dict[str, int]  #: what kept them together → tracks
    labels: list[LabelReport]
    #: As of a label: the means over those that were tested; none without such a label. Accuracy and
    #: macro F1 are of their tracks.
    figures: dict[str, dict[str, float]]
    not_in_library: list[str] = field(default_factory=list)  #: rows of the table
    warnings: list[str] = field(default_factory=list)


def learn(
    library: Library,
    table: str | Path,
    out: str | Path,
    *,
    model: Model | None = None,
    group: Group | None = None,
) -> Report:
    """Learn the labels of a table ``path,label[,label…]`` and write a model folder ``out``.

    Paths are relative to the table, or to where this runs. A cell may hold several labels, with
    ``;`` between them. A track without a label is an example of none. ``model`` is one of the
    library's, by default the one of most results.

    ``group`` says what labels without one are: of "mood", "calm" becomes "Mood---calm". Only such
    labels are written into files, but for their comments.

    Near copies (as of `Library.duplicates`), and tracks of one album (by album and artist tags),
    stay together in cross-validation; where there is no album tag, an artist's, and else a
    folder's. Intervals resample these groups.

    InputError: the table cannot be read, too few of its tracks are in the library, there is no
    label that some of them have and others lack, or ``out`` cannot be written.
    """
    rows = read_labels(Path(table))
    model = model or _most_used(library)
    everything = library.embeddings(model)
    tracks, targets, chosen, unknown = _examples(library, Path(table), rows, everything[0])
    values = everything[1][chosen]
    told = list(rows.warnings)
    useful = targets.any(axis=0) & ~targets.all(axis=0)
    if len(tracks) < _FEWEST or not useful.any():
        few = len(tracks) < _FEWEST
        what = f"{len(tracks)} of its {len(rows.paths)} tracks are in the library"
        what = what if few else "no label that some tracks have and others lack"
        hint = _FIRST if few else "Add tracks without the label: with an empty cell, or another."
        raise InputError(what, kind="empty", path=table, hint=hint)
    if not useful.all():
        names = first_few(short_repr(rows.labels[i]) for i in np.flatnonzero(~useful))
        told.append(f"labels that all tracks have, or none, are left out: {names}")
    labels, targets = [rows.labels[i] for i in np.flatnonzero(useful)], targets[:, useful]
    single = len(labels) > 1 and bool((targets.sum(axis=1) == 1).all())
    task = "single-label" if single else "multi-label"
    if group is not None:
        labels = [x if "---" in x else f"{group.capitalize()}---{x}" for x in labels]
    groups, split_by = _groups(tracks, Vectors(values, everything[1]))
    told += _warnings(labels, targets, groups, rows.paths, unknown)
    if groups.max() == 0:  # nothing to split by but the tracks
        groups, split_by = np.arange(len(tracks)), {"track": len(tracks)}

    embeddings = values.astype(np.float32)
    logits, folds = _cross_validated(embeddings, targets, groups)
    from maest.models.learned import Learned, is_learned, load_learned, save_learned

    weight, bias = _fitted(embeddings, targets)
    base = load_learned(model.name).base if is_learned(model.name) else model.name
    layer = _tensor(weight), _tensor(bias)
    learned = Learned(labels, task, None, *layer, _block(model), base, model.hash)
    scores = learned.activations(_tensor(logits)).numpy()
    n_groups = [len(set(groups[own])) for own in targets.T]
    tested = np.array(n_groups) > 1
    # None: fewer than 10 examples. Classes counted alike, so a half is in the middle.
    best = best_thresholds(np.where(tested, targets, np.nan), scores) or [None] * len(labels)
    thresholds = [0.5 if threshold is None else threshold for threshold in best]
    reports: list[LabelReport] = []
    figures: dict[str, dict[str, float]] = {}
    for i, label in enumerate(labels):
        own = _judged("multi-label", targets[:, [i]], scores[:, [i]], groups) if tested[i] else {}
        examples = int(targets[:, i].sum())
        reports.append(LabelReport(label, examples, n_groups[i], thresholds[i], **own))
    if tested.any():
        figures = _judged("multi-label", targets[:, tested], scores[:, tested], groups)
        if single:
            of_them = targets[:, tested].any(axis=1)
            figures |= _judged(task, targets[of_them], scores[of_them], groups[of_them])
    report = Report(
        Path(out),
        task,
        len(tracks),
        int(groups.max()) + 1,
        folds,
        split_by,
        reports,
        figures,
        unknown,
        told,
    )
    about = {name: value for name, value in asdict(report).items() if name != "folder"}
    save_learned(out, replace(learned, thresholds=list(thresholds)), about)
    return report


# ---- examples ------------------------------------------------------------------------------------


def _most_used(library: Library) -> Model:
    models = library.models()
    if not models:
        raise InputError("no results in it", kind="missing", path=library.path, hint=_FIRST)
    return models[0][0]


def _block(model: Model) -> int:
    block = model.settings.get("block")
    if not isinstance(block, int):
        what = f"the library does not say of which block the embeddings of {model.name} are"
        raise InputError(what, kind="unsupported", hint=_FIRST)
    return block


def _examples(
    library: Library, table: Path, rows: LabelledPaths, embedded: Sequence[Track]
) -> tuple[list[Track], np.ndarray, list[int], list[str]]:
    """Return N sounds of the table, targets bool [N, C], the sounds' places among ``embedded``, and
    the rows that have none. Copies of a sound are one, which has the labels of all.
    """
    places = {track.sound: place for place, track in enumerate(embedded)}
    known = {_name(track.path): track for track in library.tracks() if track.sound in places}
    tracks: dict[int, Track] = {}
    targets: dict[int, np.ndarray] = {}
    missing = []
    for path, own in zip(rows.paths, rows.targets, strict=True):
        track = next((known[name] for name in _places(table, path) if name in known), None)
        if track is None:
            missing.append(path)
            continue
        tracks.setdefault(track.sound, track)
        targets[track.sound] = targets.get(track.sound, False) | own
    joined = np.array(list(targets.values()), bool).reshape(-1, len(rows.labels))
    return list(tracks.values()), joined, [places[sound] for sound in tracks], missing


def _name(path: str | Path) -> str:
    # macOS writes accents as two characters, other systems as one.
    return unicodedata.normalize("NFC", str(path))


def _places(table: Path, path: str) -> list[str]:
    """Return where a path of the table may lead: from the table's folder, or from here."""
    path = os.path.expanduser(path if "/" in path else path.replace("\\", "/"))
    full = [os.path.abspath(os.path.join(folder, path)) for folder in (table.parent, ".")]
    return [_name(name) for one in full for name in (one, os.path.realpath(one))]


def _groups(tracks: Sequence[Track], vectors: Vectors) -> tuple[np.ndarray, dict[str, int]]:
    """Return the number of each track's group, from 0, and what made the groups → tracks."""
    members, kinds = defaultdict[tuple, list[int]](list), Counter[str]()
    artists = [_name(track.album_artist or track.artist).casefold() for track in tracks]
    for i, (track, artist) in enumerate(zip(tracks, artists, strict=True)):
        album, folder = _name(track.album).casefold(), track.path.parent
        kind = (_ALBUM if album else _ARTIST) if artist else _FOLDER
        kinds[kind] += 1
        if kind == _ALBUM:
            members[_ALBUM, album, artist].append(i)
            members[_ALBUM, album, folder].append(i)  # with other artists on it
        else:
            members[kind, artist or folder].append(i)
    for i, artist in enumerate(artists):  # a track without album may be of any of the artist's
        if (_ARTIST, artist) in members:
            members[_ARTIST, artist].append(i)
    pairs = [pair for own in members.values() for pair in pairwise(own)]
    seconds = np.array([track.seconds for track in tracks])
    near = vectors.near_pairs(seconds, _COPY, _SAME_LENGTH)
    pairs += [(i, i) for i in range(len(tracks))] + [(i, j) for i, j, _ in near]
    numbers = np.zeros(len(tracks), int)
    for number, group in enumerate(joined(pairs)):
        numbers[group] = number
    return numbers, {kind: kinds[kind] for kind in (_ALBUM, _ARTIST, _FOLDER) if kinds[kind]}


def _warnings(
    labels: Sequence[str],
    targets: np.ndarray,
    groups: np.ndarray,
    paths: Sequence[str],
    unknown: Sequence[str],
) -> list[str]:
    found = []
    if unknown:
        names = first_few(map(short_repr, unknown))
        found.append(f"{len(unknown)} of {len(paths)} rows have no result in the library: {names}")
    few = [f"{labels[i]} {n}" for i, n in enumerate(targets.sum(axis=0)) if n < FEW]
    if few:
        found.append(f"fewer than {FEW} examples, so figures mean little: {first_few(few)}")
    if groups.max() == 0:
        found.append(
            "all tracks are of one album, artist or folder: tracks that were learned from are like "
            "those that were judged, and the figures are better than on other music"
        )
        return found
    alone = [labels[i] for i, own in enumerate(targets.T) if len(set(groups[own])) < 2]
    if alone:
        text = "all examples are of one album, artist or folder, so nothing tells how good it is"
        found.append(f"{text}: {first_few(map(short_repr, alone))}")
    return found


# ---- learning ------------------------------------------------------------------------------------


def _fitted(features: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit a logistic regression to each label: features [N, D] → weights [C, D], biases [C].

    Classes count alike, however rare: a new collection may have another share of them.
    """
    from sklearn.linear_model import LogisticRegression  # takes a second to import

    mean, deviation = features.mean(axis=0, dtype=np.float64), features.std(axis=0)
    scale = 1 / (np.where(deviation > 1e-6, deviation, np.inf) * features.shape[1] ** 0.5)
    x = (features - mean) * scale
    weight, bias = np.zeros((targets.shape[1], x.shape[1])), np.zeros(targets.shape[1])
    for i, own in enumerate(targets.T):
        if own.any() and not own.all():
            fit = LogisticRegression(C=_PENALTY, class_weight="balanced", max_iter=1000)
            fit.fit(x, own)
            weight[i], bias[i] = fit.coef_[0] * scale, fit.intercept_[0]
    return weight, bias - weight @ mean


def _cross_validated(
    features: np.ndarray, targets: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, int]:
    """Return the logits [N, C] of tracks by layers that did not see their group; and the folds."""
    from sklearn.model_selection import StratifiedGroupKFold

    # Each track stands for its rarest label; those without one are a class, too.
    counts = np.where(targets, targets.sum(axis=0), len(targets) + 1)
    rarest = np.where(targets.any(axis=1), counts.argmin(axis=1), targets.shape[1])
    folds = int(min(_FOLDS, groups.max() + 1, np.bincount(rarest).max()))
    splitter = StratifiedGroupKFold(max(2, folds), shuffle=True, random_state=0)
    logits = np.zeros(targets.shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of labels with fewer tracks than folds
        for train, test in splitter.split(features, rarest, groups):
            weight, bias = _fitted(features[train], targets[train])
            logits[test] = features[test] @ weight.T + bias
    return logits, max(2, folds)


def _tensor(array: np.ndarray) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


def _judged(
    task: str, targets: np.ndarray, scores: np.ndarray, groups: np.ndarray
) -> dict[str, dict[str, float]]:
    """Return a task's figures, with the intervals of resampled groups, and those of chance."""
    groups = np.unique(groups, return_inverse=True)[1]
    samples = resampled_figures(task, targets, scores[None], _RESAMPLES, 0, groups)
    guessed = baseline(task, targets, targets).figures
    return {
        name: {**interval(values, _CONFIDENCE, BOUNDS[name]), "chance": guessed[name]}
        for name, values in samples.items()
    }

"""The part timbres of day_one.py: instruments of performed scores, by several SoundFonts."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from day_one_features import STATISTICS, Model, Tables, outputs_of, side_by_side, statistics_of

from maest.config.probe import ProbeTraining
from maest.datasets.groundtruth import GroundTruth, read_any_groundtruth
from maest.datasets.scores import labels as score_labels
from maest.datasets.scores import stages
from maest.datasets.scores.cache import open_cache
from maest.datasets.scores.corpus import corpus_folder, list_works
from maest.datasets.scores.reading import Score
from maest.datasets.scores.soundfonts import read_soundfonts
from maest.datasets.splitting import SPLITS, split_by_group
from maest.experiments.probe import train_probes
from maest.experiments.probe_data import ProbeTask
from maest.helpers.work.parallel import run_parallel

# Its masses take a second each to read, 40 % of the time that all works would; voices sing in other
# collections too.
LEFT_OUT = "palestrina"
# The SoundFont that pip brings, as symusic plays it: the embedded set's clips. Another renderer of
# the same file sounds otherwise.
HOME = "the default"


@dataclass
class Clips:
    """Works that no model was trained on, each performed alike by all SoundFonts."""

    keys: list[str]
    splits: np.ndarray  # [N] of `SPLITS`
    labels: list[str]  # [C] instruments
    roots: dict[str, Path]  # HOME and SoundFonts → their log-mels
    targets: dict[str, np.ndarray]  # SoundFont → uint8 [N, C]


def perform(args: argparse.Namespace) -> Clips:
    """Read works, and perform those of the validation and test splits as a build would."""
    fonts = {HOME: ()} | {path.stem: read_soundfonts([path]) for path in (*args.known, args.unseen)}
    run, folder = partial(run_parallel, num_workers=args.num_workers, unit="work"), args.work
    (folder / "timbres").mkdir(parents=True, exist_ok=True)
    works = [one for one in list_works(corpus_folder()) if one.collection != LEFT_OUT]
    works = works[: args.works]
    with open_cache(folder / "timbres/works.sqlite") as cache:
        read = stages.read_works(works, corpus_folder(), cache, run)
    first: dict[bytes, tuple[Any, Score]] = {}  # of works with the same notes
    for one in works:
        if isinstance(score := read[one.id], Score):
            first.setdefault(score.notes.tobytes(), (one, score))
    kept = {one.id: (one, score) for one, score in first.values()}
    scores = {name: score for name, (_, score) in kept.items()}
    leaders = score_labels.group_works([one for one, _ in kept.values()], scores, seed=0)
    clips = (key for path in args.trained_on for key in read_any_groundtruth(path).keys)
    trained = {re.sub(r"-r\d+\.[^/]*$", "", key) for key in clips}
    trained |= {name.partition("/")[2] for name in trained}  # of a source's folder
    groups = {leaders[name].id for name in trained & leaders.keys()}
    tasks = {
        stages.clip_key(kept[name][0], 0): (*kept[name], 0)
        for name, leader in leaders.items()
        if score_labels.split_of(leader, 0) != "train" and leader.id not in groups
    }
    rows, roots = {}, {}
    for name, font in fonts.items():
        roots[name] = root = folder / "timbres" / name
        root.mkdir(exist_ok=True)
        settings = stages.Settings(clip_seconds=args.clip_seconds, soundfonts=font)
        with open_cache(root / "notes.sqlite") as cache:
            rows[name], _ = stages.perform(tasks, root, settings, cache, run)
    failed = {key for by_key in rows.values() for key in tasks if "error" in by_key[key]}
    keys = sorted(tasks.keys() - failed)
    played = {font: [by_key[key]["instrument"] for key in keys] for font, by_key in rows.items()}
    names = sorted({name for row in played[HOME] for name in row})
    targets = np.array([[name in row for name in names] for row in played[HOME]])
    of_group = [leaders[tasks[key][0].id].id for key in keys]
    splits = split_by_group(of_group, targets, fractions(len(keys), args.test), seed=0)
    limits = score_labels.MAX_SHARE["instrument"], score_labels.MIN_POSITIVES["instrument"]
    for of_clips in played.values():
        pairs = list(zip(splits, of_clips, strict=True))
        chosen, _ = score_labels.choose_labels(pairs, *limits)
        names = [name for name in names if name in chosen]
    if not names:
        raise SystemExit("timbres: no instrument has enough clips; give more --works")
    truths = {font: np.array([[n in row for n in names] for row in of_clips], np.uint8)
              for font, of_clips in played.items()}  # fmt: skip
    paths = {name: root / "melspectrograms" for name, root in roots.items()}
    return Clips(keys, np.array(splits), names, paths, truths)


def fractions(clips: int, test: int) -> list[float]:
    """Shares of the splits: ``test`` clips are tested, where a quarter is left for training."""
    share = float(np.clip(test / clips, 0.2, 0.6875))
    return [0.8 * (1 - share), 0.2 * (1 - share), share]


def probe(
    args: argparse.Namespace, clips: Clips, x: Mapping[str, np.ndarray], on: list[str], to: str
) -> np.ndarray:
    """Logits [S, N, C] of the test clips of SoundFont ``to``, of probes that learn from ``on``."""
    features, truths = {"test": x[to][clips.splits == "test"][:, None]}, {}
    for split, name in (("train", "train"), ("val", "validation")):
        rows = clips.splits == name
        features[split] = np.concatenate([x[font][rows] for font in on])[:, None]
        targets = np.concatenate([clips.targets[font][rows] for font in on])
        truths[split] = GroundTruth(Path(split), [str(i) for i in range(len(targets))], targets)
    task = ProbeTask("multi-label", clips.labels, truths)
    # lr and batch size of target_scores_tl: the defaults are for sets a hundred times as large
    recipe = ProbeTraining(max_epochs=args.epochs, lr=3e-3, batch_size=32, accelerator="cpu")
    return train_probes(recipe, task, features, range(args.seeds)).predict(features["test"])


def timbres(args: argparse.Namespace, models: Sequence[Model]) -> Tables:
    clips = perform(args)
    home, *known, unseen = clips.roots
    outputs_by = {(model.name, font): outputs_of(args.work, model, root, clips.keys)
                for model in models for font, root in clips.roots.items()}  # fmt: skip
    features = {STATISTICS: {font: statistics_of(args.work, root, clips.keys)
                             for font, root in clips.roots.items()}}  # fmt: skip
    for model in models:
        features[model.name] = {
            font: outputs_by[model.name, font]["features"] for font in clips.roots
        }
    test = clips.splits == "test"
    sizes = {name: int((clips.splits == name).sum()) for name in SPLITS}
    tables: Tables = {"works": sizes, "left_out": LEFT_OUT, "labels": clips.labels}
    cases = {"across": (known, unseen), "within": ([unseen], unseen), "home": ([home], home)}
    for name, (on, to) in cases.items():
        outputs = {f: probe(args, clips, x, on, to) for f, x in features.items()}
        title = f"{name}: probes on {' and '.join(on)}, tested on {to}"
        targets = clips.targets[to][test]
        tables[title] = side_by_side(outputs, targets, args.resamples, "multi-label")
    instruments = [f"Instrument---{name}" for name in clips.labels]
    columns = {model.name: model.columns(instruments) for model in models}
    # A collection is a kind of music: what a model has heard no work of, it knows less well.
    heard = {parts[-2] for path in args.trained_on for key in read_any_groundtruth(path).keys
             if len(parts := key.split("/")) > 1}  # fmt: skip
    known_kind = np.array([key.split("/")[0] in heard for key in clips.keys])[test]
    both = [
        i for i in range(len(clips.labels)) if all(at[i] is not None for at in columns.values())
    ]
    for font in (unseen, *known, home) if both else ():
        outputs = {
            name: outputs_by[name, font]["activations"][test][:, [at[i] for i in both]][None]
            for name, at in columns.items()
        }
        targets = clips.targets[font][test][:, both]
        title = f"the models' own tags for {len(both)} instruments, on {font}"
        tables[title] = side_by_side(outputs, targets, args.resamples, "multi-label")
        for what, rows in (("trained on", known_kind), ("of no training work", ~known_kind)):
            if font == home and rows.any() and not rows.all():
                some = {name: values[:, rows] for name, values in outputs.items()}
                title_of_kind = f"{title}: {int(rows.sum())} works of collections {what}"
                tables[title_of_kind] = side_by_side(
                    some, targets[rows], args.resamples, "multi-label"
                )
    return tables

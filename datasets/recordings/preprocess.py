"""Make a training set of folders of music, with a teacher's tags.

    python datasets/recordings/preprocess.py AUDIO_DIR... --teacher musicnn

Each AUDIO_DIR is a source, named as its folder. A second call skips what is done; README.md in this
folder says what is written, and how the labels and the splits are made.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a script: import from the repository root, not from this folder
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parents[1]), *(p for p in sys.path if Path(p).resolve() != _FOLDER)]

import numpy as np

from maest.datasets import commands
from maest.datasets import preprocess as mels
from maest.datasets.build import write_splits
from maest.datasets.melspectrograms import MelFile
from maest.datasets.recordings import DATA_DIR, teaching
from maest.datasets.recordings.copies import find_copies
from maest.datasets.recordings.facts import find_tracks, gather
from maest.datasets.recordings.known import Known, match, of_track, read_known
from maest.datasets.recordings.labels import (
    LABELS_FILE,
    Label,
    Translation,
    Vocabulary,
    read_vocabulary,
    track_labels,
)
from maest.datasets.recordings.recipe import RECIPE_FILE, open_recipe, read_recipe
from maest.datasets.recordings.splits import list_recordings, split_recordings
from maest.datasets.splitting import SPLITS
from maest.datasets.windows import window_file
from maest.helpers import soft_labels
from maest.helpers.audio.codecs import check_codec_share
from maest.helpers.audio.constants import HOP_LENGTH, SAMPLE_RATE
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import write_failures, write_json, write_rows
from maest.helpers.names import check_choice, first_few

_COLUMNS = ("key", "source", "album", "split", "seconds", "sha256", "strongest")
_STRONGEST = 5  # tags of a track in tracks.csv


def build(
    audio_dirs: Sequence[str | Path],
    *,
    teacher: str = "musicnn",
    out_dir: str | Path = DATA_DIR,
    known: Sequence[str | Path] = (),
    hold_out: Sequence[str] = (),
    no_music: Sequence[str] = (),
    labels: str | Path = LABELS_FILE,
    min_positives: int = 10,
    labels_only: bool = False,
    seconds: float | None = None,
    codec_share: float = 0.0,
    seed: int = 0,
    num_workers: int | None = None,
    progress: bool = True,
    load: Callable[[str], Any] = teaching.load_teacher,
) -> commands.Outcome:
    """Make the set; what is done is skipped. README.md says what is written.

    ``known`` are folders of ground truths, ``hold_out`` names of sources that are test only,
    ``no_music`` names of sources without any label. A label on fewer training tracks than
    ``min_positives`` is left out. ``labels_only`` makes the labels again from
    what the teacher heard, without audio and teacher.
    ``load`` is importable: a teacher's name → the teacher.

    Raises InputError for settings that do not fit each other or what is in ``out_dir``, a split
    without tracks, or as `datasets.preprocess.preprocess`.
    """
    check_codec_share(codec_share)
    vocabulary = read_vocabulary(labels)
    sources = _name_sources(audio_dirs, hold_out, no_music)
    sets = [read_known(folder) for folder in known]
    out_dir = Path(out_dir).expanduser().resolve()
    store, heard_dir = out_dir / "melspectrograms", out_dir / "teacher"
    done = skipped = 0
    failed, notes = dict[str, str](), list[str]()
    if labels_only:
        recipe = read_recipe(heard_dir)
    else:
        recipe = open_recipe(heard_dir, load, teacher, codec_share, seed, num_workers)
        for source, folder in sources.items():
            n_classes = len(recipe["labels"])
            beside = teaching.Teaching(
                teacher, load, heard_dir / source, n_classes, codec_share, seed
            )
            outcome = mels.preprocess(
                folder,
                store,
                subfolder=source,
                seconds=seconds,
                num_workers=num_workers,
                progress=progress,
                beside=beside,
            )
            done, skipped = done + outcome.done, skipped + outcome.skipped
            failed |= {f"{source}/{name}": reason for name, reason in outcome.failed.items()}
            notes += outcome.notes

    tracks = {
        track.key: track
        for source, folder in sources.items()
        for track in find_tracks(store, source, None if labels_only else folder)
        if f"{source}/{track.name}" not in failed
    }
    facts, lost = gather(
        list(tracks.values()), out_dir / "facts.json", store, sources, num_workers, progress
    )
    failed |= lost
    tracks = {key: track for key, track in tracks.items() if key in facts}
    if not tracks:
        hint = "Run it without --labels-only first." if labels_only else "See failed.csv."
        raise InputError("no track in it", kind="empty", path=out_dir, hint=hint)
    known_of = match(sets, {s: [k for k in tracks if tracks[k].source == s] for s in sources})
    left_out = {key: ", ".join(track.warnings) for key, track in tracks.items() if track.warnings}
    recordings = list_recordings(tracks, facts, known_of, hold_out, left_out)
    duplicates, copies = find_copies(recordings, facts, store, num_workers, progress)
    recordings = [one for one in recordings if one.key not in duplicates]
    splits, torn = split_recordings(recordings, [pair[:2] for pair in copies], seed)
    left_out |= torn
    if empty := [split for split in SPLITS if split not in splits.values()]:
        albums = len({recording.album for recording in recordings})
        what = f"{len(splits)} tracks of {albums} albums leave none for {' and '.join(empty)}"
        hint = "Give more music, or another --seed."
        raise InputError(what, kind="empty", setting="--seed", hint=hint)

    tags, known_names = recipe["labels"], {name for one in sets for name in one.labels}
    kept, unmade = vocabulary.kept(tags, known_names)
    names = [label.name for label in kept]
    windows = _translate(out_dir / "teacher", splits, known_of, no_music, vocabulary, kept, tags)
    targets = {key: track_labels(values) for key, values in windows.items()}
    positives = sum(
        soft_labels.positive(targets[key][None])[0] for key in splits if splits[key] == "train"
    )
    rare = dict(zip(names, positives.tolist(), strict=True))
    rare = {name: count for name, count in rare.items() if count < min_positives}
    columns = [i for i, name in enumerate(names) if name not in rare]
    if not columns:
        what = f"no label is on {min_positives} training tracks"
        hint = "Give more music, or a lower number."
        raise InputError(what, kind="empty", setting="--min-positives", hint=hint)
    names = [names[i] for i in columns]
    targets = {key: target[columns] for key, target in targets.items()}
    for key, values in windows.items():
        teaching.write_windows(window_file(out_dir / "windows", key), values[:, columns])
    write_json(out_dir / "windows" / RECIPE_FILE, {
        "window_seconds": recipe["window_seconds"],
        "labels": names,
        "teacher": {name: recipe[name] for name in ("teacher", "version")},
    })  # fmt: skip
    members = {split: sorted(key for key in splits if splits[key] == split) for split in SPLITS}
    content = {split: {key: targets[key] for key in keys} for split, keys in members.items()}
    write_splits(out_dir / "tags", content, names)
    album = {recording.key: recording.album for recording in recordings}
    seconds_of = {key: _seconds(store / key) for key in splits}
    write_rows(out_dir / "tracks.csv", _COLUMNS, (
        (key, tracks[key].source, album[key], splits[key], round(seconds_of[key], 2),
         facts[key].sha256, _strongest(targets[key], names))
        for key in sorted(splits)
    ))  # fmt: skip
    failed_csv = None
    if failed or not labels_only:  # which reads no audio again
        failed_csv = write_failures(out_dir / "failed.csv", failed, column="path")
    unused = vocabulary.unused(tags)
    counts = {
        source: dict(Counter(splits[key] for key in sorted(splits) if tracks[key].source == source))
        for source in sources
    }
    write_json(out_dir / "report.json", {
        "teacher": {name: recipe[name] for name in recipe if name != "labels"},
        "seed": seed,
        "held_out": sorted(hold_out),
        "no_music": sorted(no_music),
        "done": done,
        "skipped": skipped,
        "failed": len(failed),
        "tracks": {split: len(keys) for split, keys in members.items()},
        "hours": {
            split: round(sum(seconds_of[key] for key in keys) / 3600, 3)
            for split, keys in members.items()
        },
        "sources": counts,
        "labels": _count_labels(content, names),
        "labels_not_made": unmade,
        "labels_too_rare": rare,
        "teacher_tags_unused": unused,
        "teacher_tags_left_out": vocabulary.left_out,
        "left_out": dict(sorted(left_out.items())),
        "duplicates": dict(sorted(duplicates.items())),
        "copies": [[one, other, score] for one, other, score in copies],
    })  # fmt: skip
    if unused:
        notes.append(
            f"{len(unused)} of the teacher's tags are not in {labels}: {first_few(unused)}"
        )
    summary = f"{done} done, {skipped} skipped, {len(failed)} failed"
    summary += f" (listed with reasons in {failed_csv}); " if failed_csv else "; "
    summary += f"{len(duplicates)} duplicates and {len(left_out)} others left out; "
    summary += f"train / validation / test {' / '.join(str(len(k)) for k in members.values())}, "
    summary += f"{len(names)} labels; {out_dir}"
    return commands.Outcome(done, skipped, failed, notes=notes, summary=summary)


def _name_sources(
    audio_dirs: Sequence[str | Path], hold_out: Sequence[str], no_music: Sequence[str]
) -> dict[str, Path]:
    """Source → its folder. Raises InputError for no folder, equal names or unknown ones."""
    sources: dict[str, Path] = {}
    for folder in audio_dirs:
        path = Path(os.path.abspath(Path(folder).expanduser()))  # a link has a name of its own
        if (before := sources.setdefault(path.name, path)) != path:
            what = f"{before} has the same name, which is that of its source"
            hint = "Give a link of another name to one of the folders."
            raise InputError(what, kind="conflict", path=path, setting="AUDIO_DIR", hint=hint)
    if not sources:
        hint = "Give a folder of music or more."
        raise InputError("none is given", kind="missing", setting="AUDIO_DIR", hint=hint)
    for option, names in {"--hold-out": hold_out, "--no-music": no_music}.items():
        for name in names:
            check_choice(option, name, sources)
    return sources


# ---- splits and labels ---------------------------------------------------------------------------


def _translate(
    heard_dir: Path,
    keys: Iterable[str],
    known_of: Mapping[str, Known],
    no_music: Sequence[str],
    vocabulary: Vocabulary,
    labels: Sequence[Label],
    tags: Sequence[str],
) -> dict[str, np.ndarray]:
    """Return our labels in each track's windows, float16 [N, C]."""
    without = Translation(labels, tags)
    translations = {source: Translation(labels, tags, k.labels) for source, k in known_of.items()}
    translated = {}
    for key in keys:
        source = key.partition("/")[0]
        path = window_file(heard_dir, key)
        heard = teaching.read_windows(path, len(tags))
        if heard is None:
            what, hint = "is missing or damaged", "Run it again, without --labels-only."
            raise InputError(what, kind="corrupt", path=path, hint=hint)
        row = of_track(known_of[source], key) if source in known_of else None
        translation = translations.get(source, without)
        levelled = vocabulary.levelled(heard.astype(np.float32), tags)
        translated[key] = translation.windows(levelled, None if row is None else row[1])
        if source in no_music:
            translated[key][:] = 0
    return translated


def _seconds(path: Path) -> float:
    with MelFile(path) as mel:
        return (len(mel) - 1) * HOP_LENGTH / SAMPLE_RATE


def _strongest(target: np.ndarray, names: Sequence[str]) -> str:
    order = np.argsort(-np.nan_to_num(target, nan=-1), kind="stable")[:_STRONGEST]
    return "; ".join(f"{names[i]} {target[i]:.2f}" for i in order if target[i] > 0)


def _count_labels(
    content: Mapping[str, Mapping[str, np.ndarray]], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """For each label and split: the tracks where it is known, those with it, and its mean."""
    counts: dict[str, dict[str, Any]] = {name: {} for name in names}
    for split, rows in content.items():
        targets = np.stack(list(rows.values()))
        mean, are_known, with_it = (
            soft_labels.means(targets),
            soft_labels.known(targets).sum(0),
            soft_labels.positive(targets).sum(0),
        )
        for i, name in enumerate(names):
            counts[name][split] = {
                "known": int(are_known[i]),
                "positive": int(with_it[i]),
                "mean": round(float(mean[i]), 4),
            }
    return counts


# ---- command line --------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    style = argparse.ArgumentDefaultsHelpFormatter
    what = "Make a training set of folders of music, with a teacher's tags."
    parser = argparse.ArgumentParser(description=what, formatter_class=style)
    add = parser.add_argument
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    add("audio_dirs", nargs="+", type=Path, metavar="AUDIO_DIR", help="a source of music")
    add("--teacher", default="musicnn", help="musicnn, or a model of ours: a name or a folder")
    add("--out-dir", type=Path, default=DATA_DIR)
    what = "ground truths (a folder) of a source: their labels win, their splits stay"
    add("--known", **several, type=Path, metavar="GROUNDTRUTH_DIR", help=what)
    add("--hold-out", **several, metavar="NAME", help="sources that are for the test only")
    what = "sources without music (speech, noises): no label is in them, whatever the teacher says"
    add("--no-music", **several, metavar="NAME", help=what)
    add("--labels", type=Path, default=LABELS_FILE, help="how labels are made, as TOML")
    what = "leave out labels of fewer training tracks"
    add("--min-positives", type=int, default=10, help=what)
    add("--labels-only", action="store_true", help="without audio and teacher: labels and splits")
    kept = "seconds to keep from the centre of each track, or all"
    add("--seconds", type=mels.seconds_or_all, default="all", help=kept)
    what = "share of the tracks whose log-mel is made after an MP3, AAC or Opus codec"
    add("--codec-share", type=float, default=0.0, help=what)
    add("--seed", type=int, default=0, help="of splits and codecs")
    add("--num-workers", type=int, help="processes; by default one a core")
    add("--no-progress", dest="progress", action="store_false")
    options = parser.parse_args(arguments)
    return commands.run(lambda: build(**vars(options)), parser.prog)


if __name__ == "__main__":
    commands.start("maest.datasets.recordings.preprocess")

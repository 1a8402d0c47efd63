"""Make a training set of folders of music, with a teacher's tags.

    python datasets/recordings/preprocess.py AUDIO_DIR... --teacher musicnn

Each AUDIO_DIR is a source, named as its folder. A second call skips what is done; README.md in this
folder says what is written, and how the labels and the splits are made.
"""

import argparse
import os
import pkgutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if not __package__:  # started as a script: import from the repository root, not from this folder
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parents[1]), *(p for p in sys.path if Path(p).resolve() != _FOLDER)]

import numpy as np

from maest.datasets import commands, mel_store
from maest.datasets import preprocess as mels
from maest.datasets.build import write_splits
from maest.datasets.recordings import DATA_DIR, report, teaching
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
from maest.datasets.recordings.splits import Recording, list_recordings, split_recordings
from maest.datasets.splitting import SPLITS
from maest.datasets.windows import window_file
from maest.helpers import soft_labels
from maest.helpers.audio.codecs import check_codec_share
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import write_failures, write_json
from maest.helpers.names import check_choice, first_few
from maest.helpers.teacher import Teacher


def build(
    audio_dirs: Sequence[str | Path],
    *,
    load: teaching.Load,
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
) -> commands.Outcome:
    """Make the set; what is done is skipped. README.md says what is written.

    ``load``: the name ``teacher`` → the teacher, such as `maest.models.teacher.load_teacher`.
    ``known`` are folders of ground truths, ``hold_out`` names of sources that are test only,
    ``no_music`` names of sources without any label. A label on fewer training tracks than
    ``min_positives`` is left out. ``labels_only`` makes the labels again from
    what the teacher heard, without audio and teacher.

    Raises InputError for settings that do not fit each other or what is in ``out_dir``, a split
    without tracks, or as `datasets.preprocess.preprocess`.
    """
    check_codec_share(codec_share)
    vocabulary = read_vocabulary(labels)
    sources = _name_sources(audio_dirs, hold_out, no_music)
    truths = [read_known(folder) for folder in known]
    out_dir = Path(out_dir).expanduser().resolve()
    store, teacher_dir = out_dir / "melspectrograms", out_dir / "teacher"
    _check_all_named(store, sources)
    if labels_only:
        recipe, outcome = teaching.read_recipe(teacher_dir), commands.Outcome(0, 0, {})
    else:
        recipe = teaching.open_recipe(teacher_dir, load, teacher, codec_share, seed, num_workers)
        n_classes = len(recipe["labels"])
        taught = teaching.Teaching(teacher, load, teacher_dir, n_classes, codec_share, seed)
        outcome = _listen(sources, store, taught, seconds, num_workers, progress)

    failed = dict(outcome.failed)
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

    known_of = match(truths, {s: [k for k in tracks if tracks[k].source == s] for s in sources})
    left_out = {key: ", ".join(track.warnings) for key, track in tracks.items() if track.warnings}
    recordings = list_recordings(tracks, facts, known_of, hold_out, left_out)
    duplicates, copies = find_copies(recordings, facts, store, no_music, num_workers, progress)
    recordings = [one for one in recordings if one.key not in duplicates]
    splits, torn = split_recordings(recordings, [pair[:2] for pair in copies], seed)
    left_out |= torn
    _check_none_empty(recordings, splits)

    known_names = {name for truth in truths for name in truth.labels}
    kept, unmade = vocabulary.kept(recipe["labels"], known_names)
    windows = _translate(teacher_dir, splits, known_of, no_music, vocabulary, kept, recipe)
    names, rare = _drop_rare(windows, kept, splits, min_positives)
    content = _write_labels(out_dir, windows, splits, names, recipe)
    unused = vocabulary.unused(recipe["labels"])
    of_teacher = vocabulary.of_teacher(recipe["labels"])

    report.write_tracks(out_dir / "tracks.csv", tracks, facts, recordings, content, names, store)
    failed_csv = None
    if failed or not labels_only:  # which reads no audio again
        failed_csv = write_failures(out_dir / "failed.csv", failed, column="path")
    write_json(out_dir / "report.json", {
        "teacher": {name: recipe[name] for name in recipe if name != "labels"},
        "seed": seed,
        "held_out": sorted(hold_out),
        "no_music": sorted(no_music),
        "done": outcome.done,
        "skipped": outcome.skipped,
        "failed": len(failed),
        **report.count_tracks(content, sources, store),
        "labels": report.count_labels(content, names),
        "labels_of_teacher": [name for name in names if name in of_teacher],
        "labels_not_made": unmade,
        "labels_too_rare": rare,
        "teacher_tags_unused": unused,
        "teacher_tags_left_out": vocabulary.left_out,
        "left_out": dict(sorted(left_out.items())),
        "duplicates": dict(sorted(duplicates.items())),
        "copies": [[one, other, score] for one, other, score in copies],
    })  # fmt: skip
    notes = list(outcome.notes)
    if unused:
        notes.append(
            f"{len(unused)} of the teacher's tags are not in {labels}: {first_few(unused)}"
        )
    summary = f"{outcome.done} done, {outcome.skipped} skipped, {len(failed)} failed"
    summary += f" (listed with reasons in {failed_csv}); " if failed_csv else "; "
    summary += f"{len(duplicates)} duplicates and {len(left_out)} others left out; "
    sizes = " / ".join(str(len(rows)) for rows in content.values())
    summary += f"train / validation / test {sizes}, {len(names)} labels; {out_dir}"
    return commands.Outcome(outcome.done, outcome.skipped, failed, notes=notes, summary=summary)


# ---- sources and splits --------------------------------------------------------------------------


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


def _check_all_named(store: Path, sources: Mapping[str, Path]) -> None:
    """Raise InputError if the set has other sources, too, which this call would drop."""
    folders = (path.parent.name for path in store.glob(f"*/{mel_store.RECIPE_FILE}"))
    if others := sorted({*folders} - sources.keys()):
        what = f"the set has the sources {first_few(others)}, too"
        hint = "Name their folders as well, remove theirs here, or give another --out-dir."
        raise InputError(what, kind="conflict", path=store, setting="AUDIO_DIR", hint=hint)


def _listen(
    sources: Mapping[str, Path],
    store: Path,
    taught: teaching.Teaching,
    seconds: float | None,
    num_workers: int | None,
    progress: bool,
) -> commands.Outcome:
    """Make the log-mels and the teacher's files of each source. Failures begin with its name."""
    done = skipped = 0
    failed, notes = dict[str, str](), list[str]()
    for source, folder in sources.items():
        outcome = mels.preprocess(
            folder,
            store,
            subfolder=source,
            seconds=seconds,
            num_workers=num_workers,
            progress=progress,
            companion=replace(taught, folder=taught.folder / source),
        )
        done, skipped = done + outcome.done, skipped + outcome.skipped
        failed |= {f"{source}/{name}": reason for name, reason in outcome.failed.items()}
        notes += outcome.notes
    return commands.Outcome(done, skipped, failed, notes=notes)


def _check_none_empty(recordings: Sequence[Recording], splits: Mapping[str, str]) -> None:
    """Raise InputError unless each split has a track."""
    if empty := [split for split in SPLITS if split not in splits.values()]:
        albums = len({recording.album for recording in recordings})
        what = f"{len(splits)} tracks of {albums} albums leave none for {' and '.join(empty)}"
        hint = "Give more music, or another --seed. A folder below a source is one album."
        raise InputError(what, kind="empty", setting="--seed", hint=hint)


# ---- labels --------------------------------------------------------------------------------------


def _translate(
    teacher_dir: Path,
    keys: Iterable[str],
    known_of: Mapping[str, Known],
    no_music: Sequence[str],
    vocabulary: Vocabulary,
    labels: Sequence[Label],
    recipe: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Return our labels in each track's windows, float16 [N, C]."""
    tags = recipe["labels"]
    without = Translation(labels, tags)
    translations = {source: Translation(labels, tags, k.labels) for source, k in known_of.items()}
    translated = {}
    for key in keys:
        source = key.partition("/")[0]
        path = window_file(teacher_dir, key)
        windows = teaching.read_windows(path, len(tags))
        if windows is None:
            what, hint = "is missing or damaged", "Run it again, without --labels-only."
            raise InputError(what, kind="corrupt", path=path, hint=hint)
        row = of_track(known_of[source], key) if source in known_of else None
        translation = translations.get(source, without)
        levelled = vocabulary.levelled(windows.astype(np.float32), tags)
        translated[key] = translation.windows(levelled, None if row is None else row[1])
        if source in no_music:
            translated[key][:] = 0
    return translated


def _drop_rare(
    windows: dict[str, np.ndarray],
    labels: Sequence[Label],
    splits: Mapping[str, str],
    min_positives: int,
) -> tuple[list[str], dict[str, int]]:
    """Drop columns of ``windows`` with few training tracks. Returns names, and dropped counts."""
    positives = sum(
        soft_labels.positive(track_labels(windows[key])[None])[0]
        for key in splits
        if splits[key] == "train"
    )
    counts = dict(zip((label.name for label in labels), positives.tolist(), strict=True))
    names = [name for name, count in counts.items() if count >= min_positives]
    if not names:
        what = f"no label is on {min_positives} training tracks"
        hint = "Give more music, or a lower number."
        raise InputError(what, kind="empty", setting="--min-positives", hint=hint)
    columns = [i for i, label in enumerate(labels) if label.name in names]
    for key, values in windows.items():
        windows[key] = values[:, columns]
    return names, {name: count for name, count in counts.items() if count < min_positives}


def _write_labels(
    out_dir: Path,
    windows: Mapping[str, np.ndarray],
    splits: Mapping[str, str],
    names: list[str],
    recipe: Mapping[str, Any],
) -> dict[str, dict[str, np.ndarray]]:
    """Write windows/ and tags/. Returns split → key → targets, float32 [C]."""
    for key, values in windows.items():
        teaching.write_windows(window_file(out_dir / "windows", key), values)
    write_json(out_dir / "windows" / teaching.RECIPE_FILE, {
        "window_seconds": recipe["window_seconds"],
        "labels": names,
        "teacher": {name: recipe[name] for name in ("teacher", "version")},
    })  # fmt: skip
    members = {split: sorted(key for key in splits if splits[key] == split) for split in SPLITS}
    content = {s: {key: track_labels(windows[key]) for key in keys} for s, keys in members.items()}
    write_splits(out_dir / "tags", content, names)
    return content


def load_teacher(name: str) -> Teacher:
    """Load a teacher of `models/`. Data sets do not import it: this script hands it to them."""
    return pkgutil.resolve_name("maest.models.teacher:load_teacher")(name)


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
    return commands.run(lambda: build(load=load_teacher, **vars(options)), parser.prog)


if __name__ == "__main__":
    commands.start("maest.datasets.recordings.preprocess")

"""Build the embedded data set: read scores, perform them, and write mel files and ground truths.

    python datasets/scores/preprocess.py --works 700 --renditions 1

Deterministic for a seed. A second call skips complete clips. See README.md in this folder.
"""

import argparse
import hashlib
import json
import logging
import sqlite3
import sys
from collections import Counter
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

if not __package__:  # started as a script: import from the repository root, not from this folder
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parents[1]), *(p for p in sys.path if Path(p).resolve() != _FOLDER)]

import numpy as np
from filelock import FileLock, Timeout

from maest.datasets import commands
from maest.datasets.groundtruth import write_groundtruth, write_labels
from maest.datasets.scores import DATA_DIR, labels, stages
from maest.datasets.scores.cache import READER_VERSION, Cache, open_cache
from maest.datasets.scores.corpus import corpus_folder, list_works
from maest.datasets.scores.performance import soundfont
from maest.datasets.scores.reading import Score
from maest.datasets.scores.soundfonts import read_soundfonts
from maest.datasets.scores.tables import COLLECTIONS
from maest.datasets.splitting import SPLITS
from maest.helpers.audio.constants import FRONT_END_VERSION
from maest.helpers.differences import differences
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import write_json, write_rows
from maest.helpers.work.parallel import run_parallel

log = logging.getLogger(__name__)

# Versions that version 0.1 wrote into report.json
_IN_REPORT = ("music21", "symusic", "pretty_midi", "reader", "performer")
_CLIP_COLUMNS = (
    "key", "work", "title", "collection", "group", "split", "seconds", "start_seconds",
    "quarter_bpm", "transposition", "programs", "instrument", "style",
)  # fmt: skip


def build(
    out_dir: str | Path = DATA_DIR,
    *,
    num_workers: int | None = None,
    progress: bool = True,
    soundfonts: Sequence[str | Path] = (),
    **settings: Any,
) -> dict[str, Any]:
    """Build the data set with ``settings`` (see `stages.Settings`); skip complete clips.

    Each clip draws one of ``soundfonts`` (.sf2, .sf3 files); by default pretty_midi's plays all.
    Waits for another build of the same folder. Returns the content of ``report.json``, among others
    the numbers of clips ``done``, ``skipped`` and ``failed``.

    Raises InputError if a setting is out of range, a SoundFont cannot be used, works are too few
    for a split or a label set, other versions or SoundFonts began the build, or the folder cannot
    be written to.
    """
    chosen = stages.Settings(**settings, soundfonts=read_soundfonts(soundfonts))
    out_dir = Path(out_dir).resolve()
    run = partial(run_parallel, num_workers=num_workers, progress=progress, unit="work")
    lock = FileLock(out_dir / ".lock")
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("%s: another build is running, waiting for its end", out_dir)
        with lock, open_cache(out_dir / "notes.sqlite") as cache:
            _check_versions(cache, out_dir, versions() | chosen.soundfont_versions)
            return _build(out_dir, chosen, cache, run)
    except (OSError, sqlite3.OperationalError) as error:
        what = f"cannot be written to ({error})"
        hint = "What is done is kept: make room, or give another --out-dir, and run the same again."
        raise InputError(what, kind="access", hint=hint, path=out_dir) from error
    finally:
        lock.release(force=True)


def versions() -> dict[str, str]:
    """Versions that notes and clips depend on."""
    return {
        "music21": version("music21"),
        "symusic": version("symusic"),
        "SoundFont": hashlib.sha256(soundfont().read_bytes()).hexdigest()[:16],
        "reader": str(READER_VERSION),
        "performer": str(stages.PERFORMER_VERSION),
        "front end": str(FRONT_END_VERSION),
    }


def _check_versions(cache: Cache, out_dir: Path, present: dict[str, str]) -> None:
    """Raise InputError if other versions made the content of the cache."""
    before = cache.versions()
    is_of_0_1 = before == {}
    if is_of_0_1:  # it kept versions only in its report
        path = out_dir / "report.json"
        kept = json.loads(path.read_text("utf-8"))["versions"] if path.exists() else {}
        before = {name: str(kept.get(name, "unknown")) for name in _IN_REPORT}
        before["SoundFont"] = versions()["SoundFont"]  # the default was its only one
    now = present | {"pretty_midi": version("pretty_midi")}  # which brings the SoundFont
    expected = {name: now.get(name) for name in before or {}}
    if differ := differences(before or {}, expected):
        what = f"was built with other versions, which must not mix: {'; '.join(differ)}"
        hint = (
            "Give another --out-dir, or delete this folder, or use those versions and SoundFonts."
        )
        raise InputError(what, kind="mismatch", hint=hint, path=out_dir)
    if is_of_0_1:
        log.warning("%s: built by version 0.1 with the same libraries; it is kept", out_dir)
    if is_of_0_1 or before is None:
        cache.set_versions(present)


def _build(out_dir: Path, settings: stages.Settings, cache: Cache, run: partial) -> dict[str, Any]:
    folder = corpus_folder()
    works = [work for work in list_works(folder) if work.collection not in settings.leave_out]
    works = works[: settings.works]
    results = stages.read_works(works, folder, cache, run)
    scores = {identity: r for identity, r in results.items() if isinstance(r, Score)}
    first: dict[bytes, str] = {}  # notes → the first work that has them
    kept, duplicates = [], {}
    for work in works:
        if work.id in scores:
            original = first.setdefault(scores[work.id].notes.tobytes(), work.id)
            if original == work.id:
                kept.append(work)
            else:
                duplicates[work.id] = original
    leaders = labels.group_works(kept, scores, settings.seed)
    tasks = {
        stages.clip_key(work, rendition): (work, scores[work.id], rendition)
        for work in kept
        if work.id in leaders
        for rendition in range(settings.renditions)
    }
    rows, performed = stages.perform(tasks, out_dir, settings, cache, run)
    failed = {key: rows[key]["error"] for key in tasks if "error" in rows[key]}
    clips = []
    for key in sorted(tasks.keys() - failed.keys()):
        work, score, _ = tasks[key]
        leader, style = leaders[work.id], labels.style_labels(work, score)
        clips.append(
            {
                "key": key,
                "work": work.id,
                "title": next(iter(score.metadata.titles), ""),
                "collection": work.collection,
                "group": leader.id,
                "split": labels.split_of(leader, settings.seed),
                **rows[key],
                "style": style,
                "tags": style + [f"Instrument---{name}" for name in rows[key]["instrument"]],
            }
        )
    sizes = Counter(clip["split"] for clip in clips)
    if empty := [split for split in SPLITS if not sizes[split]]:
        raise _too_few(f"{len(works)} works leave no clip for {' and '.join(empty)}")
    label_sets = {name: _write_label_set(out_dir, name, clips) for name in labels.MAX_SHARE}
    drawn = {"soundfont": settings.soundfonts, "codec": settings.codec_share}
    columns = (*_CLIP_COLUMNS, *(name for name, is_drawn in drawn.items() if is_drawn))
    cells = ([clip[column] for column in columns] for clip in clips)
    joined = (["; ".join(map(str, c)) if isinstance(c, list) else c for c in row] for row in cells)
    write_rows(out_dir / "clips.csv", columns, joined)
    unreadable = {w.id: results[w.id] for w in works if w.id not in scores}
    report = {
        "settings": {
            **vars(settings),
            "works": settings.works or "all",
            "soundfonts": [font.facts for font in settings.soundfonts],
        },
        "versions": versions()
        | settings.soundfont_versions
        | {name: version(name) for name in ("pretty_midi", "torch")},
        "done": len(performed - failed.keys()),
        "skipped": len(tasks.keys() - performed - failed.keys()),
        "failed": len(failed) + len(unreadable) * settings.renditions,
        "works": len(works),
        "clips": {split: sizes[split] for split in SPLITS},
        "hours": round(sum(clip["seconds"] for clip in clips) / 3600, 3),
        "collections": dict(sorted(Counter(clip["collection"] for clip in clips).items())),
        "clips_without_label": {
            name: sum(not counts.keys() & clip[name] for clip in clips)
            for name, (counts, _) in label_sets.items()
        },
        "labels": {name: counts for name, (counts, _) in label_sets.items()},
        "labels_left_out": {name: dropped for name, (_, dropped) in label_sets.items()},
        "unreadable": unreadable,
        "duplicates": duplicates,
        "between_splits": [work.id for work in kept if work.id not in leaders],
        "failed_clips": failed,
    }
    write_json(out_dir / "report.json", report)
    return report


def _too_few(what: str) -> InputError:
    return InputError(what, kind="empty", hint="Give more works.", setting="--works")


def _write_label_set(
    out_dir: Path, name: str, clips: list[stages.Row]
) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    pairs = [(clip["split"], clip[name]) for clip in clips]
    counts, dropped = labels.choose_labels(
        pairs, labels.MAX_SHARE[name], labels.MIN_POSITIVES[name]
    )
    if not counts:
        raise _too_few(f"no {name} label has enough positives in each split")
    for split in (*SPLITS, "all"):
        rows = {
            clip["key"]: np.array([label in clip[name] for label in counts])
            for clip in clips
            if split in (clip["split"], "all")
        }
        write_groundtruth(out_dir / name / f"groundtruth-{split}.pk", rows)
    write_labels(out_dir / name / "labels.json", list(counts))
    return counts, dropped


def number_or_all(text: str) -> int | None:
    return None if text == "all" else int(text)


def _main(arguments: list[str] | None) -> None:
    what = "Build the embedded data set from the music21 corpus."
    style = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(description=what, formatter_class=style)
    add, default = parser.add_argument, stages.Settings()
    add("--works", type=number_or_all, default=default.works, help="works to take, or all")
    what = "a collection (see README.md) to leave out, for its licence say; may be repeated"
    add("--leave-out", action="append", choices=COLLECTIONS, default=argparse.SUPPRESS, help=what)
    add("--renditions", type=int, default=default.renditions, help="performances of each work")
    add("--seed", type=int, default=default.seed)
    add("--clip-seconds", type=float, default=default.clip_seconds)
    what = "an .sf2 or .sf3 file; with several, each clip draws one (default: pretty_midi's)"
    add("--soundfont", action="append", dest="soundfonts", default=argparse.SUPPRESS, help=what)
    what = "share of clips that MP3, AAC or Opus has encoded and decoded"
    add("--codec-share", type=float, default=default.codec_share, help=what)
    add("--keep-audio", action="store_true", help="keep the audio too, as FLAC")
    add("--num-workers", type=int, help="processes; by default one a core")
    add("--out-dir", type=Path, default=DATA_DIR)
    options = parser.parse_args(arguments)
    report = build(**vars(options))
    splits = " / ".join(str(report["clips"][split]) for split in SPLITS)
    sets = ", ".join(f"{len(counts)} {name} labels" for name, counts in report["labels"].items())
    print(
        f"scores: {report['done']} clips done, {report['skipped']} skipped, {report['failed']} "
        f"failed; {report['works']} works, {len(report['unreadable'])} of them unreadable, "
        f"{len(report['duplicates'])} duplicates; train / validation / test {splits}; {sets}; "
        f"{options.out_dir.resolve()}"
    )


def main(arguments: list[str] | None = None) -> int:
    return commands.run(lambda: _main(arguments), "preprocess.py")


if __name__ == "__main__":
    commands.start("maest.datasets.scores.preprocess")

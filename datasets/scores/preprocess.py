"""Build the embedded data set: read scores, perform them, and write mel files and ground truths.

    python datasets/scores/preprocess.py --works 700 --renditions 1

Two stages, each parallel, resumable and deterministic by seed: *read* (scores to note events,
cached) and *perform* (note events to log-mel clips). What is whole is not made again, so a second
call returns at once and one for more works makes what is missing. See README.md in this folder.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib
import json
import logging
import sqlite3
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from maest.datasets.scores import DATA_DIR
from maest.datasets.scores.cache import READER_VERSION, Cache, open_cache
from maest.datasets.scores.corpus import Score, Unreadable, Work, corpus_folder, list_works, read
from maest.datasets.scores.labels import (
    MAX_SHARE,
    MIN_POSITIVES,
    SPLITS,
    LabelSet,
    choose_labels,
    group_works,
    split_of,
    style_labels,
)
from maest.datasets.scores.performance import (
    SAMPLE_RATE,
    TooShort,
    arrange,
    generator,
    render_clip,
    soundfont,
)
from maest.helpers.errors import InputError
from maest.helpers.files import atomic_path, write_json
from maest.helpers.mel_constants import FRONT_END_VERSION
from maest.helpers.parallel import one_torch_thread, run_parallel

log = logging.getLogger(__name__)

DEFAULT_WORKS = 700
DEFAULT_CLIP_SECONDS = 30.0
# Raise it when arranging or rendering changes: clips of another version do not mix with this one's.
_PERFORMER_VERSION = 4

# Versions that version 0.1 wrote into report.json
_IN_REPORT = frozenset({"music21", "symusic", "pretty_midi", "reader", "performer"})

_CLIP_COLUMNS = (
    "key", "work", "title", "collection", "group", "split", "seconds", "start_seconds",
    "quarter_bpm", "transposition", "programs", "instrument", "style",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What decides the content of a build.

    Attributes:
        works: how many works are taken; None for all of the corpus.
        renditions: performances of each work.
        seed: of orchestration, performance and splits. (Which works are taken does not depend on
            it: what has been read serves every seed.)
        clip_seconds: longest clip.
        keep_audio: whether the clips' audio is kept too, as FLAC.
    """

    works: int | None = DEFAULT_WORKS
    renditions: int = 1
    seed: int = 0
    clip_seconds: float = DEFAULT_CLIP_SECONDS
    keep_audio: bool = False

    def __post_init__(self) -> None:
        least = {"works": 1, "renditions": 1, "clip_seconds": 1.0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and not value >= bound:
                raise InputError(
                    f"found {value}",
                    hint=f"Give {bound:g} or more{', or all' if name == 'works' else ''}.",
                    setting=f"--{name.replace('_', '-')}",
                )

    @property
    def recipe(self) -> str:
        """What clips of one version depend on, besides their work and the rendition's number."""
        return json.dumps(
            {
                "seed": self.seed,
                "clip_seconds": self.clip_seconds,
                "performer": _PERFORMER_VERSION,
                "symusic": version("symusic"),
            }
        )


def versions() -> dict[str, str]:
    """What notes and clips depend on, besides the settings."""
    return {
        "music21": version("music21"),
        "symusic": version("symusic"),
        "SoundFont": hashlib.sha256(soundfont().read_bytes()).hexdigest()[:16],
        "reader": str(READER_VERSION),
        "performer": str(_PERFORMER_VERSION),
        "front end": str(FRONT_END_VERSION),
    }


@dataclass(frozen=True)
class Report:
    """What a build did.

    Attributes:
        out_dir: where everything is.
        done, skipped, failed: clips made now, whole before, and not to be had (with their works).
        works: works asked for; ``unreadable`` and ``duplicates`` of them gave nothing.
        clips: clips in the ground truths, by split.
        labels: number of labels of each label set.
    """

    out_dir: Path
    done: int
    skipped: int
    failed: int
    works: int
    unreadable: int
    duplicates: int
    clips: dict[str, int]
    labels: dict[str, int]

    def __str__(self) -> str:
        splits = " / ".join(str(self.clips[split]) for split in SPLITS)
        labels = ", ".join(f"{count} {name} labels" for name, count in self.labels.items())
        return (
            f"scores: {self.done} clips done, {self.skipped} skipped, {self.failed} failed; "
            f"{self.works} works, {self.unreadable} of them unreadable, {self.duplicates} "
            f"duplicates; train / validation / test {splits}; {labels}; {self.out_dir}"
        )


def build(
    out_dir: str | Path = DATA_DIR,
    works: int | None = DEFAULT_WORKS,
    renditions: int = 1,
    seed: int = 0,
    clip_seconds: float = DEFAULT_CLIP_SECONDS,
    keep_audio: bool = False,
    num_workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Build the data set, or what is missing of it.

    Args:
        out_dir: where to; made if need be. One process builds at a time, others wait for it.
        works, renditions, seed, clip_seconds, keep_audio: see :class:`Settings`.
        num_workers: processes; None for one a core. The result does not depend on it.
        progress: whether to show progress bars.

    Raises:
        InputError: a setting out of range; so few works that a split or a label set is empty; a
            build that other versions have begun; a folder that cannot be written to.
    """
    settings = Settings(works, renditions, seed, clip_seconds, keep_audio)
    out_dir = Path(out_dir).resolve()
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with _alone(out_dir):
            return _build(out_dir, settings, num_workers, progress)
    except (OSError, sqlite3.OperationalError) as error:
        raise InputError(
            f"cannot be written to ({error})",
            kind="access",
            hint="What is done is kept: make room, or give another --out-dir, and run the same "
            "again.",
            path=out_dir,
        ) from error


@contextmanager
def _alone(out_dir: Path) -> Iterator[None]:
    """Wait until no other process builds there."""
    lock = FileLock(out_dir / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("%s: another build is running, waiting for its end", out_dir)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _check_versions(cache: Cache, out_dir: Path) -> None:
    """Raise InputError if what is in the cache was made with other versions than the present."""
    present = versions()
    found = cache.versions()
    if not found and cache.empty:
        cache.set_versions(present)
        return
    if first := not found:  # by version 0.1, which kept versions in its report only
        now = present | {"pretty_midi": version("pretty_midi")}  # which brings the SoundFont
        path = out_dir / "report.json"
        kept = json.loads(path.read_text("utf-8"))["versions"] if path.exists() else {}
        found = {name: str(kept.get(name, "unknown")) for name in now if name in _IN_REPORT}
    else:
        now = present
    differ = [name for name in found if found[name] != now.get(name)]
    if differ:
        was, wanted = (
            ", ".join(f"{name} {some.get(name)}" for name in differ) for some in (found, now)
        )
        raise InputError(
            f"was built with {was}; this run is for {wanted}, and the two must not mix",
            kind="mismatch",
            hint="Give another --out-dir, or delete this folder, or install those versions.",
            path=out_dir,
        )
    if first:
        log.warning("%s: built by version 0.1 with the same libraries; it is kept", out_dir)
        cache.set_versions(present)


def _build(out_dir: Path, settings: Settings, num_workers: int | None, progress: bool) -> Report:
    folder = corpus_folder()
    chosen = list_works(folder)[: settings.works]
    lost: dict[str, str] = {}  # works and clips whose process was killed: they are not kept
    run = partial(run_parallel, num_workers=num_workers, progress=progress, unit="work")

    def lose_work(work: Work, reason: str) -> tuple[str, str]:
        lost[work.id] = reason
        return work.id, reason

    def lose_clip(task: tuple[Work, Score, int], reason: str) -> tuple[str, dict[str, Any]]:
        key = clip_key(task[0], task[2])
        lost[key] = reason
        return key, {"error": reason}

    with open_cache(out_dir / "notes.sqlite") as cache:
        _check_versions(cache, out_dir)
        results = cache.works(work.id for work in chosen)
        missing = [work for work in chosen if work.id not in results]
        read_now = run(_read_work, missing, (folder,), failed=lose_work, title="read")
        for identity, result in read_now:
            results[identity] = result
            if identity not in lost:
                cache.add_work(identity, result)
        unreadable = {w.id: results[w.id] for w in chosen if isinstance(results[w.id], str)}
        scores = {identity: r for identity, r in results.items() if isinstance(r, Score)}
        kept, duplicates = _drop_duplicates([w for w in chosen if w.id in scores], scores)
        leaders = group_works(kept, scores, settings.seed)
        between = [work.id for work in kept if work.id not in leaders]
        kept = [work for work in kept if work.id in leaders]

        rows = cache.clips(settings.recipe)
        tasks = [(w, scores[w.id], r) for w in kept for r in range(settings.renditions)]
        keys = [clip_key(work, rendition) for work, _, rendition in tasks]
        todo = [
            task
            for task, key in zip(tasks, keys, strict=True)
            if not _is_whole(out_dir, key, rows.get(key), settings.keep_audio)
        ]
        cache.forget_clips(clip_key(work, rendition) for work, _, rendition in todo)
        if todo:
            importlib.import_module("maest.helpers.melspectrogram")  # once, before processes fork
        performed = run(_perform_work, todo, (out_dir, settings), failed=lose_clip, title="perform")
        for key, row in performed:
            rows[key] = row
            if key not in lost:
                cache.add_clip(settings.recipe, key, row)

    rows = {key: rows[key] for key in keys}
    failed = {key: row["error"] for key, row in rows.items() if "error" in row}
    made_now = {clip_key(work, rendition) for work, _, rendition in todo}
    by_id = {work.id: work for work in kept}
    clips = []
    for (work, score, _), key in zip(tasks, keys, strict=True):
        if key not in failed:
            leader = by_id[leaders[work.id]]
            clips.append(
                {
                    "key": key,
                    "work": work.id,
                    "title": next(iter(score.metadata.titles), ""),
                    "collection": work.collection,
                    "group": leader.id,
                    "split": split_of(leader, settings.seed),
                    **rows[key],
                    "style": style_labels(work, score),
                }
            )
    for clip in clips:
        instruments = [f"Instrument---{name}" for name in clip["instrument"]]
        clip["tags"] = clip["style"] + instruments
    clips.sort(key=lambda clip: clip["key"])
    split_counts = Counter(clip["split"] for clip in clips)
    for split in SPLITS:
        if not split_counts[split]:
            raise InputError(
                f"{len(chosen)} works leave the {split} split empty",
                kind="empty",
                hint="Give more works.",
                setting="--works",
            )
    label_sets = {name: _write_label_set(out_dir, name, clips) for name in MAX_SHARE}
    _write_clips(out_dir / "clips.csv", clips)

    report = Report(
        out_dir=out_dir,
        done=len(made_now - failed.keys()),
        skipped=len(keys) - len(made_now | failed.keys()),
        failed=len(failed) + len(unreadable) * settings.renditions,
        works=len(chosen),
        unreadable=len(unreadable),
        duplicates=len(duplicates),
        clips={split: split_counts[split] for split in SPLITS},
        labels={name: len(labels.names) for name, labels in label_sets.items()},
    )
    left_out = {"unreadable": unreadable, "duplicates": duplicates, "between_splits": between}
    _write_report(out_dir, settings, report, left_out, failed, clips, label_sets)
    return report


# ---- the two stages, in worker processes ---------------------------------------------------------


def _read_work(work: Work, folder: Path) -> tuple[str, Score | str]:
    """Read a work; one that cannot be read gives the reason in place of a score."""
    try:
        return work.id, read(work, folder)
    except Unreadable as error:
        return work.id, str(error)
    except OSError:  # a full disk is no fault of the work's
        raise
    except Exception as error:  # whatever a damaged file leads to, the others are read
        return work.id, f"{type(error).__name__}: {error}"[:200]


def _perform_work(
    task: tuple[Work, Score, int], out_dir: Path, settings: Settings
) -> tuple[str, dict[str, Any]]:
    """Perform a work and write its files; its clip's key and facts."""
    work, score, rendition = task
    with one_torch_thread():
        row = _perform(work, score, rendition, out_dir, settings)
    return clip_key(work, rendition), row


def _perform(
    work: Work, score: Score, rendition: int, out_dir: Path, settings: Settings
) -> dict[str, Any]:
    import torch

    from maest.datasets.melspectrograms import write_mel
    from maest.helpers.melspectrogram import MelSpectrogram

    rng = generator(settings.seed, work, rendition)
    try:
        arrangement = arrange(work, score, rng)
        clip = render_clip(arrangement, settings.clip_seconds, rng)
    except TooShort as error:
        return {"error": str(error)}
    except OSError:
        raise
    except Exception as error:  # whatever an odd score leads to, the others are performed
        return {"error": f"{type(error).__name__}: {error}"[:200]}
    key = clip_key(work, rendition)
    if settings.keep_audio:
        _write_audio(_audio_path(out_dir, key), clip.audio)
    with torch.inference_mode():
        mel = MelSpectrogram()(torch.from_numpy(clip.audio))
    write_mel(out_dir / "melspectrograms" / key, mel.T.numpy())
    return {
        "seconds": round(len(clip.audio) / SAMPLE_RATE, 3),
        "start_seconds": round(clip.start, 3),
        "quarter_bpm": round(arrangement.tempo, 2),
        "transposition": arrangement.transposition,
        "programs": clip.programs,
        "instrument": clip.instruments,
        "bytes": mel.numel() * 2,  # float16
    }


# ---- files ---------------------------------------------------------------------------------------


def clip_key(work: Work, rendition: int) -> str:
    """A clip's path below ``melspectrograms/``."""
    return f"{work.id}-r{rendition}.mmap"


def _audio_path(out_dir: Path, key: str) -> Path:
    return (out_dir / "audio" / key).with_suffix(".flac")


def _is_whole(out_dir: Path, key: str, row: dict[str, Any] | None, keep_audio: bool) -> bool:
    if row is None:
        return False
    if "error" in row:
        return True
    path = out_dir / "melspectrograms" / key
    whole = path.is_file() and path.stat().st_size == row["bytes"]
    return whole and (not keep_audio or _audio_path(out_dir, key).is_file())


def _write_audio(path: Path, audio: np.ndarray) -> None:
    import soundfile

    with atomic_path(path) as temporary:
        soundfile.write(temporary, audio, SAMPLE_RATE, format="FLAC", subtype="PCM_16")


def _drop_duplicates(
    works: list[Work], scores: dict[str, Score]
) -> tuple[list[Work], dict[str, str]]:
    """Works whose notes are not those of an earlier one; and the others, with that one's id."""
    first: dict[bytes, str] = {}
    duplicates: dict[str, str] = {}
    for work in works:
        original = first.setdefault(scores[work.id].notes.tobytes(), work.id)
        if original != work.id:
            duplicates[work.id] = original
    return [work for work in works if work.id not in duplicates], duplicates


def _write_label_set(out_dir: Path, name: str, clips: list[dict[str, Any]]) -> LabelSet:
    labels = choose_labels(
        ((clip["split"], clip[name]) for clip in clips), MAX_SHARE[name], MIN_POSITIVES[name]
    )
    if not labels.names:
        raise InputError(
            f"no {name} label has enough positives in each split",
            kind="empty",
            hint="Give more works.",
            setting="--works",
        )
    index = {label: i for i, label in enumerate(labels.names)}
    targets = {}
    for clip in clips:
        target = np.zeros(len(index), bool)
        target[[index[label] for label in clip[name] if label in index]] = True
        targets[clip["key"]] = target
    for split in SPLITS:
        part = {clip["key"]: targets[clip["key"]] for clip in clips if clip["split"] == split}
        write_groundtruth(out_dir / name / f"groundtruth-{split}.pk", part)
    write_groundtruth(out_dir / name / "groundtruth-all.pk", targets)
    write_labels(out_dir / name / "labels.json", labels.names)
    return labels


def _write_clips(path: Path, clips: list[dict[str, Any]]) -> None:
    """One row a clip; lists are joined with "; ". All labels stand here, those left out too."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _CLIP_COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for clip in clips:
            joined = {
                name: "; ".join(map(str, value)) if isinstance(value, list) else value
                for name, value in clip.items()
            }
            writer.writerow(joined)


def _write_report(
    out_dir: Path,
    settings: Settings,
    report: Report,
    left_out: dict[str, Any],
    failed: dict[str, str],
    clips: list[dict[str, Any]],
    label_sets: dict[str, LabelSet],
) -> None:
    packages = {name: version(name) for name in ("pretty_midi", "torch")}
    write_json(
        out_dir / "report.json",
        {
            "settings": {**vars(settings), "works": settings.works or "all"},
            "versions": versions() | packages,
            "done": report.done,
            "skipped": report.skipped,
            "failed": report.failed,
            "works": report.works,
            "clips": report.clips,
            "hours": round(sum(clip["seconds"] for clip in clips) / 3600, 3),
            "collections": dict(sorted(Counter(clip["collection"] for clip in clips).items())),
            "clips_without_label": {
                name: sum(not set(clip[name]) & set(labels.names) for clip in clips)
                for name, labels in label_sets.items()
            },
            "labels": {name: labels.counts for name, labels in label_sets.items()},
            "labels_left_out": {name: labels.dropped for name, labels in label_sets.items()},
            **left_out,
            "failed_clips": failed,
        },
    )


def _number_or_all(text: str) -> int | None:
    try:
        return None if text == "all" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected a number of works, such as 700, or all"
        ) from None


def _main(arguments: list[str] | None) -> None:
    parser = argparse.ArgumentParser(
        description="Build the embedded data set from the music21 corpus.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--works",
        type=_number_or_all,
        default=DEFAULT_WORKS,
        help="works to take, or all",
    )
    parser.add_argument("--renditions", type=int, default=1, help="performances of each work")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clip-seconds", type=float, default=DEFAULT_CLIP_SECONDS)
    parser.add_argument("--keep-audio", action="store_true", help="keep the audio too, as FLAC")
    parser.add_argument("--num-workers", type=int, help="processes; by default one a core")
    parser.add_argument("--out-dir", type=Path, default=DATA_DIR)
    print(build(**vars(parser.parse_args(arguments))))


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    return commands.run(lambda: _main(arguments), "preprocess.py")


if __name__ == "__main__":
    commands.start("maest.datasets.scores.preprocess")

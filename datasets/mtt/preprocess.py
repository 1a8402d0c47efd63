"""MagnaTagATune: download it, unpack it, and make its log-mel files and ground truths.

    python preprocess.py                                               # everything
    python preprocess.py melspectrograms groundtruth --audio-dir DIR   # of your audio

A second call skips complete files; the step download fetches missing clips. There are 25,863 clips
of 29 s in folders 0 to f. The usual split: 0 to b train, c validation, d to f test; the usual tags:
the 50 most frequent of 188.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path

if not __package__:  # started as a script: import from the repository root, not from this folder
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parents[1]), *(p for p in sys.path if Path(p).resolve() != _FOLDER)]

from maest.datasets import commands, published
from maest.datasets.archives import fetch, known_absent, parts_there, unpack
from maest.datasets.published import PublishedTable, Task, shown
from maest.helpers.files.atomic import write_failures
from maest.helpers.files.data_folder import data_folder
from maest.helpers.files.download import download

URL = "https://mirg.city.ac.uk/datasets/magnatagatune"
URL_VARIABLE = "MTT_URL"
ARCHIVE = "mp3.zip"
PARTS = ("mp3.zip.001", "mp3.zip.002", "mp3.zip.003")
TABLE = "annotations_final.csv"
N_LABELS = 50
# The first character of a clip's path is its folder.
FOLDERS = {"train": "0123456789ab", "validation": "c", "test": "def"}
N_CLIPS, N_TAGS = 25_863, 188  # in the published table
# Without the three clips that are empty files.
PUBLISHED = {"train": 18_706, "validation": 1_825, "test": 5_329}
# Empty files in the archive; other copies lack them.
EMPTY = {
    "6/norine_braun-now_and_zen-08-gently-117-146.mp3",
    "8/jacob_heringman-josquin_des_prez_lute_settings-19-gintzler__pater_noster-204-233.mp3",
    "9/american_baroque-dances_and_suites_of_rameau_and_couperin-25-le_petit_rien_xiveme_ordre_"
    "couperin-88-117.mp3",
}
STEPS = ("download", "unpack", "melspectrograms", "groundtruth")
_AGAIN = "Delete it and run the step download again."
_HOME = data_folder() / "mtt"


def read_annotations(path: Path) -> Task:
    """Read the TSV of clip_id, 0 or 1 per tag, mp3_path. Raises InputError, naming the line."""
    side = {folder: split for split, folders in FOLDERS.items() for folder in folders}
    clips: dict[str, list[str]] = {}  # the tags of each
    table = PublishedTable(path, _AGAIN)
    rows = iter(table)
    header = next(rows, [""])
    if (header[0], header[-1]) != ("clip_id", "mp3_path") or len(header) < 3:
        what = f"found the columns {', '.join(header[:3])} …, expected clip_id, the tags and "
        raise table.error(f"{what}mp3_path, separated by tabs")
    tags = header[1:-1]
    for cells in rows:
        name = cells[-1]
        if len(cells) != len(header) or not set(cells[1:-1]) <= {"0", "1"}:
            raise table.error(f"expected {len(header)} columns, with 0 or 1 for each tag")
        if name.partition("/")[0] not in side:
            raise table.error(f"{name!r} is in none of the folders 0 to f")
        table.check_name(name, clips)
        clips[name] = [tag for tag, cell in zip(tags, cells[1:-1], strict=True) if cell == "1"]
    if not clips:
        raise table.error("no clips in it", "empty")
    if (len(clips), len(tags)) != (N_CLIPS, N_TAGS):
        print(f"warning: {path} has {len(clips):,} clips and {len(tags)} tags, where the published "
              f"table has {N_CLIPS:,} and {N_TAGS}")  # fmt: skip
    counts = Counter(tag for own in clips.values() for tag in own)
    # Among equally frequent tags, the first in the table win.
    frequent = frozenset(sorted(tags, key=lambda tag: -counts[tag])[:N_LABELS])
    tracks = {
        name: (side[name.partition("/")[0]], frequent.intersection(own))
        for name, own in clips.items()
    }
    return Task(sorted(frequent), tracks, PUBLISHED)


def _audio_is_there(options: argparse.Namespace, clips: Collection[str]) -> bool:
    """Whether all clips are there, except those missing or empty in the archive."""
    lacking = {name for name in clips if not (options.audio_dir / name).is_file()}
    # An empty folder never counts, whatever the archive lacks.
    absent = known_absent(options.download_dir / ARCHIVE) | EMPTY
    return len(lacking) < len(clips) and lacking <= absent


def _unpack(options: argparse.Namespace, clips: Collection[str]) -> None:
    archive, keep = options.download_dir / ARCHIVE, options.keep_archives
    outcome = unpack(archive, PARTS, options.audio_dir, clips, keep=keep, again=options.force)
    print(f"unpacked {outcome.done:,} clips, {outcome.skipped:,} were there: {options.audio_dir}")
    if outcome.other:
        print(f"{len(outcome.other):,} clips have other sizes than in the archive, and were not "
              f"replaced (--force does that): {shown(outcome.other)}")  # fmt: skip
    if outcome.absent:
        print(f"{len(outcome.absent)} clips are not in the archive: {shown(outcome.absent)}")
    listed = write_failures(options.download_dir / "failed.csv", outcome.failed, column="path")
    commands.print_failures(outcome.failed, "not unpacked")
    if outcome.failed:
        print(f"{len(outcome.failed)} clips are not unpacked: {listed}", file=sys.stderr)
    if outcome.again:
        again = " and ".join(outcome.again)
        print(f"Run the same again to fetch {again} once more", file=sys.stderr)


def _main(arguments: list[str] | None = None) -> None:
    parser = published.parser("Prepare MagnaTagATune.", STEPS, _HOME)
    parser.add_argument("--download-dir", type=Path, default=_HOME / "download")
    parser.add_argument("--keep-archives", action="store_true", help="after they are unpacked")
    what = f"of the folder with the files; {URL_VARIABLE} in the environment changes it too"
    parser.add_argument("--url", default=os.environ.get(URL_VARIABLE) or URL, help=what)
    options = parser.parse_intermixed_args(arguments)
    steps = published.chosen_steps(options, STEPS)
    # Every step needs the table.
    table, archive = options.download_dir / TABLE, options.download_dir / ARCHIVE
    again = options.force and "download" in steps
    download(f"{options.url.rstrip('/')}/{TABLE}", table, again=again)
    task = read_annotations(table)
    clips = task.tracks.keys()
    if not options.force and _audio_is_there(options, clips):
        for step in [step for step in ("download", "unpack") if step in steps]:
            print(f"{len(clips):,} clips are in {options.audio_dir} already: nothing to {step}")
        if "unpack" in steps and not options.keep_archives:
            for part in parts_there(archive, PARTS):  # a killed run left them
                part.unlink()
    else:
        if "download" in steps:
            fetch(archive, options.url, PARTS, again=options.force)
        if "unpack" in steps:
            _unpack(options, clips)
    published.make({"": task}, options, steps)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code; corrupt clips are reported, and keep it 0."""
    return commands.run(lambda: _main(arguments), "preprocess.py")


if __name__ == "__main__":
    commands.start("maest.datasets.mtt.preprocess")

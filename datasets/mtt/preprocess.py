"""MagnaTagATune: download it, unpack it, and make its log-mel files and ground truths.

    python preprocess.py                                               # everything
    python preprocess.py melspectrograms groundtruth --audio-dir DIR   # of your audio

A second call skips complete files; the step download fetches missing clips. There are 25,863 clips
of 29 s in folders 0 to f. The usual split: 0 to b train, c validation, d to f test; the usual tags:
the 50 most frequent of 188.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Collection
from itertools import chain
from pathlib import Path

if not __package__:  # started as a script: import from the repository root, not from this folder
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parents[1]), *(p for p in sys.path if Path(p).resolve() != _FOLDER)]

from maest.datasets import commands, published
from maest.datasets.archives import SplitArchive
from maest.datasets.published import Task, check_name, open_table
from maest.helpers.errors import InputError
from maest.helpers.files.data_folder import data_folder
from maest.helpers.files.download import download

URL = "https://mirg.city.ac.uk/datasets/magnatagatune"
URL_VARIABLE = "MTT_URL"
ARCHIVE = "mp3.zip"
PARTS = ("mp3.zip.001", "mp3.zip.002", "mp3.zip.003")
TABLE = "annotations_final.csv"
# The first character of a clip's path is its folder.
FOLDERS = {"train": "0123456789ab", "validation": "c", "test": "def"}
PUBLISHED = {"train": 18_706, "validation": 1_825, "test": 5_329, "labels": 50}
# Empty files in the archive: tagged, but in no split
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
    split_of = {folder: split for split, folders in FOLDERS.items() for folder in folders}
    clips: dict[str, list[str]] = {}  # the tags of each
    with open_table(path, _AGAIN) as rows:
        header = next(rows, [])
        if header[:1] + header[-1:] != ["clip_id", "mp3_path"]:
            raise ValueError("expected the columns clip_id, tags and mp3_path, separated by tabs")
        tags = header[1:-1]
        for _, *cells, name in rows:
            folder = name.partition("/")[0]
            if len(cells) != len(tags) or not set(cells) <= {"0", "1"} or folder not in split_of:
                what = f"expected {len(header)} columns, with 0 or 1 for each tag, and a path in a "
                raise ValueError(f"{what}folder 0 to f")
            check_name(name, clips)
            clips[name] = [tag for tag, cell in zip(tags, cells, strict=True) if cell == "1"]
    if not clips:
        raise InputError("no clips in it", kind="empty", path=path, hint=_AGAIN)
    counts = Counter(chain(*clips.values()))
    # Among equally frequent tags, the first in the table win.
    labels = frozenset(sorted(tags, key=lambda tag: -counts[tag])[: PUBLISHED["labels"]])
    tracks = {
        name: (split_of[name[0]], labels.intersection(tags_of_clip))
        for name, tags_of_clip in clips.items()
        if name not in EMPTY
    }
    return Task(sorted(labels), tracks, PUBLISHED)


def _get_audio(options: argparse.Namespace, clips: Collection[str]) -> None:
    """The steps download and unpack, unless all clips are there that the archive has."""
    archive, audio_dir = SplitArchive(options.download_dir / ARCHIVE, PARTS), options.audio_dir
    steps = [step for step in ("download", "unpack") if step in options.steps]
    missing = {name for name in clips if not (audio_dir / name).is_file()}
    # An empty folder is never complete, whatever the archive lacks.
    complete = len(missing) < len(clips) and missing <= archive.missing()
    if complete and not options.force:
        if steps:
            what = " and ".join(steps)
            print(f"{len(clips):,} clips are in {audio_dir} already: nothing to {what}")
        if "unpack" in steps and not options.keep_archives:
            archive.delete()  # a killed run left them
        return
    if "download" in steps:
        archive.fetch(options.url, again=options.force)
    if "unpack" in steps:
        keep = options.keep_archives
        outcome = archive.unpack(audio_dir, clips, keep=keep, again=options.force)
        print(f"unpacked {outcome.done:,} clips, {outcome.skipped:,} existed already: {audio_dir}")
        commands.print_failures(outcome.failed, "not unpacked")
        if outcome.failed:
            what = f"{len(outcome.failed)} clips are not unpacked: {archive.failed_csv}"
            print(what, file=sys.stderr)


def _main(arguments: list[str] | None = None) -> None:
    parser = published.parser("Prepare MagnaTagATune.", STEPS, _HOME)
    parser.add_argument("--download-dir", type=Path, default=_HOME / "download")
    parser.add_argument("--keep-archives", action="store_true", help="after they are unpacked")
    what = f"of the folder with the files; {URL_VARIABLE} in the environment changes it too"
    parser.add_argument("--url", default=os.environ.get(URL_VARIABLE) or URL, help=what)
    options = published.parse(parser, arguments, STEPS)
    # Every step needs the table.
    again = options.force and "download" in options.steps
    url, table = f"{options.url.rstrip('/')}/{TABLE}", options.download_dir / TABLE
    task = read_annotations(download(url, table, again=again))
    _get_audio(options, task.tracks.keys())
    published.make({"": task}, options)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code; corrupt clips are reported, and keep it 0."""
    return commands.run(lambda: _main(arguments), "preprocess.py")


if __name__ == "__main__":
    commands.start("maest.datasets.mtt.preprocess")

"""MTG-Jamendo: download its tables, and make log-mel files and ground truths of your audio.

    python preprocess.py --audio-dir DIR                 # all four tasks
    python preprocess.py --audio-dir DIR --tasks genre   # only one

Scripts in https://github.com/MTG/mtg-jamendo-dataset download the audio (``DIR/00/1000000.mp3``, or
``….low.mp3``). A second call skips complete files.
"""

import csv
import sys
from dataclasses import replace
from itertools import chain, product
from pathlib import Path

if not __package__:  # started as a script: import from the repository root, not from this folder
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parents[1]), *(p for p in sys.path if Path(p).resolve() != _FOLDER)]

from maest.datasets import commands, published
from maest.datasets.audio_folder import mel_key
from maest.datasets.melspectrograms import mel_path
from maest.datasets.published import Task, check_name, open_table
from maest.datasets.splitting import SPLITS
from maest.helpers.errors import InputError
from maest.helpers.files.data_folder import data_folder
from maest.helpers.files.download import download

# The newest known version of the tables, of July 2024
COMMIT = "1b4fa8c32e076c73b5175c1703ae805b4109309d"
URL = f"https://raw.githubusercontent.com/MTG/mtg-jamendo-dataset/{COMMIT}/data/splits/split-0"
SHA256 = {  # of the tables; not checked with another --url
    "genre-train": "c1cddb195ef94a07e67e227bf38e2a79389c1820950702b8c8894a2096f21e54",
    "genre-validation": "3e203b4c573db6ec63a06c7066cf678dcf673a68ad5694c8fed22637c270dbcf",
    "genre-test": "cf917388eebfa7d17d363c2fca037e2379ac027e31aa6dbe92e8dbf409ac5098",
    "instrument-train": "f844a85f0b40bb31a5d5b448ddfc10a68d7b38ecc760673d23df2bd6e7ca0f4c",
    "instrument-validation": "a5060020013ac5ba65c6470ee83fc2a9785db1fe554b55065de08aa9b0cca70d",
    "instrument-test": "8c1ab86f3212b6484106baf2e78f70dd5520b917607487ac98999adbd5d7ab1a",
    "moodtheme-train": "e5e9e798364b34bd241b773e5011809b24429edf471f27cf21dd8181077ba2d4",
    "moodtheme-validation": "ecaa279367153476884d84d686479e566234cef1814bd6892a8755ba0a550dbf",
    "moodtheme-test": "4341b5586bb3e5a80a882ce9ef33cb8b1bdaa7df856246ecc5de188dfe1cf394",
    "top50tags-train": "6dee445ddd1901286184c2059d3d5eef7486f083ae80de9011705f852a850dde",
    "top50tags-validation": "4f5f0f0a7662f523b45727476f67d799d6e98151b2c585a8e94e19d980ad93c1",
    "top50tags-test": "3ede06a35e6cb27e1dbe8cfc84708a607622e30e5cd0a7199fce6c081124bc35",
}
_COLUMNS = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]
# task → its name in file names; number of tracks in train, validation and test; number of tags
TASKS = {
    "genre": ("genre", (32_572, 11_043, 11_479), 87),
    "instrument": ("instrument", (14_395, 5_466, 5_115), 40),
    "moodtheme": ("moodtheme", (9_949, 3_802, 4_231), 56),
    "top50": ("top50tags", (32_136, 10_888, 11_356), 50),
}
STEPS = ("tables", "melspectrograms", "groundtruth")
_HOME = data_folder() / "jamendo"
_AGAIN = "Get the tables (again): the step tables, with --force."


def table_name(task: str, split: str) -> str:
    return f"autotagging_{TASKS[task][0]}-{split}.tsv"


def read_task(task: str, tables_dir: Path) -> Task:
    """Read a task's three tables. Raises InputError if one is missing, or corrupt (which line)."""
    tracks: dict[str, tuple[str, frozenset[str]]] = {}
    for split in SPLITS:
        with open_table(tables_dir / table_name(task, split), _AGAIN, csv.QUOTE_NONE) as rows:
            if next(rows, [])[: len(_COLUMNS)] != _COLUMNS:
                raise ValueError(f"expected the columns {', '.join(_COLUMNS)}, separated by tabs")
            for cells in rows:
                if len(cells) < len(_COLUMNS):
                    raise ValueError(f"{len(cells)} columns, expected six or more")
                check_name(cells[3], tracks)
                tracks[cells[3]] = (split, frozenset(filter(None, cells[5:])))
    labels = sorted(set().union(*(tags for _, tags in tracks.values())))
    if not labels:
        what = f"the tables of {task} have no tracks with tags"
        raise InputError(what, kind="empty", path=tables_dir, hint=_AGAIN)
    _, counts, n_labels = TASKS[task]
    return Task(labels, tracks, dict(zip(SPLITS, counts, strict=True)) | {"labels": n_labels})


def existing_tracks(task: Task, audio_dir: Path, melspec_dir: Path) -> Task:
    """Rename tracks to ``.low.mp3`` where only these smaller files, or their log-mels, exist."""

    def existing(name: str) -> str:
        both = (name, f"{name.removesuffix('.mp3')}.low.mp3")
        audio = (path for path in both if (audio_dir / path).exists())
        mels = (path for path in both if mel_path(melspec_dir, mel_key(path)).exists())
        return next(chain(audio, mels), name)

    return replace(task, tracks={existing(name): row for name, row in task.tracks.items()})


def _main(arguments: list[str] | None = None) -> None:
    parser = published.parser("Prepare MTG-Jamendo.", STEPS, _HOME)
    parser.add_argument("--tables-dir", type=Path, default=_HOME / "tables", help="of the TSVs")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--url", default=URL, help="of the folder with the tables")
    options = published.parse(parser, arguments, STEPS)
    tables = options.tables_dir
    if "tables" in options.steps:
        for task, split in product(options.tasks, SPLITS):
            name = table_name(task, split)
            known = SHA256[f"{TASKS[task][0]}-{split}"] if options.url == URL else None
            url = f"{options.url.rstrip('/')}/{name}"
            download(url, tables / name, sha256=known, again=options.force)
    tasks = {
        name: existing_tracks(read_task(name, tables), options.audio_dir, options.melspec_dir)
        for name in options.tasks
    }
    published.make(tasks, options)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code; corrupt tracks are reported, and keep it 0."""
    return commands.run(lambda: _main(arguments), "preprocess.py")


if __name__ == "__main__":
    commands.start("maest.datasets.jamendo.preprocess")

"""MTG-Jamendo: get its tables, and make log-mel files and ground truths of audio you have.

    python preprocess.py --audio-dir DIR                 # all four tasks
    python preprocess.py --audio-dir DIR --tasks genre   # the tracks of one of them

The audio (``DIR/00/1000000.mp3``, or ``….low.mp3``) comes with the scripts of the data set's own
repository, https://github.com/MTG/mtg-jamendo-dataset. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

if not __package__:  # started as a script: import from the repository root, not from this folder
    _FOLDER = Path(__file__).resolve().parent
    sys.path[:] = [str(_FOLDER.parents[1]), *(p for p in sys.path if Path(p).resolve() != _FOLDER)]

from datasets import published
from datasets.collection import mel_key
from datasets.melspectrograms import mel_path
from datasets.published import Task, check_name
from datasets.splitting import SPLITS
from helpers.errors import InputError
from helpers.transfer import download

URL = "https://raw.githubusercontent.com/MTG/mtg-jamendo-dataset/master/data/splits/split-0"
_COLUMNS = ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]
# task → its name in the tables' names; tracks in train, validation and test; tags
TASKS = {
    "genre": ("genre", (32_572, 11_043, 11_479), 87),
    "instrument": ("instrument", (14_395, 5_466, 5_115), 40),
    "moodtheme": ("moodtheme", (9_949, 3_802, 4_231), 56),
    "top50": ("top50tags", (32_136, 10_888, 11_356), 50),
}
STEPS = ("tables", "melspectrograms", "groundtruth")
_HERE = Path(__file__).resolve().parent


def table_name(task: str, split: str) -> str:
    """The published name of a table."""
    return f"autotagging_{TASKS[task][0]}-{split}.tsv"


def read_task(task: str, tables_dir: Path) -> Task:
    """Read the three tables of a task.

    Raises:
        InputError: one is missing, or no such table; the message names the line.
    """
    tracks: dict[str, tuple[str, frozenset[str]]] = {}
    for split in SPLITS:
        path = tables_dir / table_name(task, split)
        for line, name, tags in _rows(path):
            if name in tracks and tracks[name][0] != split:
                raise InputError(f"{path}, line {line}: {name!r} is in {tracks[name][0]} too")
            check_name(name, f"{path}, line {line}", tracks)
            tracks[name] = (split, tags)
    labels = sorted(set().union(*(tags for _, tags in tracks.values())))
    if not labels:
        raise InputError(
            f"{tables_dir}: the tables of {task} have no tracks with tags. Delete them and get "
            "them again: the step tables"
        )
    _, counts, n_labels = TASKS[task]
    if len(labels) != n_labels:
        print(f"warning: {task} has {len(labels)} tags, where the published tables have {n_labels}")
    return Task(labels, tracks, dict(zip(SPLITS, counts, strict=True)))


def _rows(path: Path) -> Iterable[tuple[int, str, frozenset[str]]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            header = next(table, [])
            if header[: len(_COLUMNS)] != _COLUMNS:
                raise InputError(
                    f"{path}: expected tab-separated columns {', '.join(_COLUMNS)}, found "
                    f"{', '.join(header[:6])}. Delete it and get it again: the step tables"
                )
            for cells in table:
                if not cells:
                    continue
                if len(cells) < len(_COLUMNS):
                    raise InputError(
                        f"{path}, line {table.line_num}: {len(cells)} columns, expected six or "
                        "more. Delete the table and get it again: the step tables"
                    )
                yield table.line_num, cells[3], frozenset(tag for tag in cells[5:] if tag)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file. Get it first: the step tables") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: no table of text ({error}). Get it again") from None


def as_there(task: Task, audio_dir: Path, melspec_dir: Path) -> Task:
    """The task with the audio files' names as they are: the smaller ones end in ``.low.mp3``.

    Where there is no audio, the log-mel files tell.
    """

    def found(name: str) -> str:
        both = (name, f"{name.removesuffix('.mp3')}.low.mp3")
        for own in both:
            if (audio_dir / own).exists():
                return own
        return next((own for own in both if mel_path(melspec_dir, mel_key(own)).exists()), name)

    return replace(task, tracks={found(name): own for name, own in task.tracks.items()})


def _main(arguments: list[str] | None = None) -> None:
    parser = published.parser("Prepare MTG-Jamendo.", STEPS, _HERE)
    parser.add_argument("--tables-dir", type=Path, default=_HERE / "tables", help="of the TSVs")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--url", default=URL, help="of the folder with the tables")
    options: argparse.Namespace = parser.parse_intermixed_args(arguments)
    steps = published.chosen_steps(options, STEPS)
    if "tables" in steps:
        for name in (table_name(task, split) for task in options.tasks for split in SPLITS):
            url, path = f"{options.url.rstrip('/')}/{name}", options.tables_dir / name
            download(url, path, again=options.force)
    tasks = {
        task: as_there(read_task(task, options.tables_dir), options.audio_dir, options.melspec_dir)
        for task in options.tasks
    }
    if "melspectrograms" in steps:
        published.make_melspectrograms(
            options.audio_dir,
            options.melspec_dir,
            dict.fromkeys(name for task in tasks.values() for name in task.tracks),
            num_workers=options.num_workers,
            overwrite=options.force,
        )
    if "groundtruth" in steps:
        for name, task in tasks.items():
            print(f"\n{name}")
            for line in published.write_task(task, options.out_dir / name, options.melspec_dir):
                print(line)


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit code; a broken track is reported, and no failure."""
    return published.run(lambda: _main(arguments), "preprocess.py")


if __name__ == "__main__":
    # Functions sent to worker processes must have an importable module's name, not __main__'s.
    from datasets.jamendo.preprocess import main as _imported_main

    published.start(_imported_main)

"""Tables of tracks and labels, and what the ground-truth command makes of them."""

from pathlib import Path

from maest.datasets.groundtruth import read_groundtruth, read_labels
from maest.datasets.groundtruth_command import parser
from maest.datasets.splitting import SPLITS
from maest.datasets.tables import Table, read_table

WITH_SPLIT = """path,genres,artist,split
a/1.mp3,rock; pop,A,train
a/2.mp3,rock,A,Training
b/3.flac,jazz,B,val
"b/4, live.flac",jazz;rock,B,validation
c/5.wav,,C,TEST
c/6.mmap,pop;;pop,C,test
"""
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]


def options(text: str, *words: object, encoding: str = "utf-8"):
    Path("t.csv").write_bytes(text.encode(encoding))
    return parser().parse_args(["build", "t.csv", "--out-dir", "out", *map(str, words)])


def read(text: str, *words: object, encoding: str = "utf-8") -> Table:
    return read_table(options(text, *words, encoding=encoding))


def build(text: str, *words: object, encoding: str = "utf-8") -> list[str]:
    given = options(text, *words, encoding=encoding)
    return "\n".join(given.run(given)).splitlines()


def built(split: str = "all", task: str = "multi-label") -> dict[str, list]:
    """The targets of each track."""
    groundtruth = read_groundtruth(f"out/groundtruth-{split}.pk", task)
    return dict(zip(groundtruth.keys, groundtruth.targets.tolist(), strict=True))


def built_labels() -> list[str]:
    return read_labels("out/labels.json")


def splits_of_keys() -> dict[str, str]:
    return {key: split for split in SPLITS for key in built(split)}


def labels(table: Table) -> list[set[str]]:
    """The labels of each track."""
    sets: list[set[str]] = [set() for _ in table.keys]
    for track, label in table.marks.T:
        sets[track].add(table.labels[label])
    return sets


def warnings(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("warning: ")]

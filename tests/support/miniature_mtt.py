"""A small MagnaTagATune in the format of the published one, and runs of its preprocessing."""

import csv
import io
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from folders import tree
from http_server import Server

from maest.datasets.audio_folder import mel_key
from maest.datasets.groundtruth import read_groundtruth, read_labels
from maest.datasets.mtt.preprocess import EMPTY, main

FOLDERS = "0123456789abcdef"
SPLITS = {"train": "0123456789ab", "validation": "c", "test": "def"}
PARTS = ("mp3.zip.001", "mp3.zip.002", "mp3.zip.003")
TABLE = "annotations_final.csv"
_FREQUENT, _RARE, _RATE = 50, 14, 16_000


@dataclass(frozen=True)
class Miniature:
    audio: dict[str, bytes]  # clip → MP3, in the table's order; three are empty
    tags: dict[str, list[str]]  # clip → its tags
    columns: list[str]  # tags in the table's order; all but 50 are on one clip at most
    labels: list[str]  # the 50, sorted; each is on some clips of every split

    def split(self, clip: str) -> str:
        return next(split for split, folders in SPLITS.items() if clip[0] in folders)

    def sounding(self) -> list[str]:
        """The clips that are no empty files."""
        return [clip for clip, content in self.audio.items() if content]

    def target(self, clip: str) -> list[int]:
        return [int(label in self.tags[clip]) for label in self.labels]

    def files(self) -> dict[str, bytes]:
        """What is published: name → content."""
        folders = {f"{folder}/": b"" for folder in FOLDERS}  # members of the archive, too
        return {TABLE: self.table(), **in_parts(zipped(folders | self.audio))}

    def table(self) -> bytes:
        text = io.StringIO(newline="")
        rows = csv.writer(text, delimiter="\t", quoting=csv.QUOTE_ALL, lineterminator="\n")
        rows.writerow(["clip_id", *self.columns, "mp3_path"])
        for number, (clip, own) in enumerate(self.tags.items(), 2):
            rows.writerow([number, *(int(tag in own) for tag in self.columns), clip])
        return text.getvalue().encode()


def zipped(files: dict[str, bytes]) -> bytes:
    """An archive; the same whenever it is made."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as file:
        for name, content in files.items():
            file.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return whole.getvalue()


def in_parts(archive: bytes) -> dict[str, bytes]:
    """Two of one size, and a smaller one, cut without regard to what is in them."""
    size = len(archive) * 2 // 5
    pieces = archive[:size], archive[size : 2 * size], archive[2 * size :]
    return dict(zip(PARTS, pieces, strict=True))


@cache
def miniature(clips_per_folder: int = 2, seconds: float = 0.5) -> Miniature:
    """Clips with noise, and with a tone for each of the frequent tags that they have."""
    rng = np.random.default_rng(0)
    kinds = ["soft", "loud", "fast", "slow"]
    names = [f"{kinds[i % 4]} {i:02d}" for i in range(_FREQUENT + _RARE)]
    columns = [names[i] for i in rng.permutation(len(names))]
    frequent, rare = columns[5 : 5 + _FREQUENT], columns[:5] + columns[5 + _FREQUENT :]
    clips = [
        f"{folder}/band_{folder}-album-{i:02d}-a_song-{29 * i}-{29 * i + 29}.mp3"
        for folder in FOLDERS
        for i in range(clips_per_folder)
    ]
    tags: dict[str, list[str]] = {clip: [] for clip in clips}
    for folders in SPLITS.values():
        own = [clip for clip in clips if clip[0] in folders]
        for tag in frequent:  # on one clip of each split at least, and never on all
            for i in rng.permutation(len(own))[: max(1, round(len(own) * rng.uniform(0.1, 0.6)))]:
                tags[own[i]].append(tag)
    for i, tag in enumerate(rare[:-1]):  # the last is on none
        tags[clips[i % len(clips)]].append(tag)
    tags[clips[0]] = [tag for tag in tags[clips[0]] if tag in rare]  # a clip without a label
    tags |= {clip: [frequent[0]] for clip in EMPTY}
    audio = dict.fromkeys(sorted(tags), b"")
    time = np.arange(round(seconds * _RATE)) / _RATE
    for clip in audio.keys() - EMPTY:
        sound = 0.01 * np.random.default_rng(len(tags[clip])).standard_normal(len(time))
        for tag in set(tags[clip]) & set(frequent):
            sound += 0.03 * np.sin(2 * np.pi * 150 * 1.07 ** frequent.index(tag) * time)
        file = io.BytesIO()
        soundfile.write(file, sound, _RATE, format="MP3")
        audio[clip] = file.getvalue()
    return Miniature(audio, {clip: tags[clip] for clip in audio}, columns, sorted(frequent))


MTT = miniature()
CLIPS = MTT.sounding()


@dataclass
class Place:
    """The folders of a run, and its command line."""

    root: Path
    server: Server

    def run(self, *arguments: str, code: int = 0) -> None:
        """The steps; ``server.requests`` are theirs."""
        self.server.requests.clear()
        folders = {"download": "download", "audio": "audio", "melspec": "mels", "out": "out"}
        paths = [f"--{name}-dir={self.root / folder}" for name, folder in folders.items()]
        line = [*arguments, *paths, f"--url={self.server.url}/", "--num-workers=1"]
        assert main(line) == code

    def path(self, clip: str) -> Path:
        return self.root / "audio" / clip

    def mel(self, clip: str) -> Path:
        return self.root / "mels" / mel_key(clip)

    def state(self) -> dict[str, tuple[int, int]]:
        """Time of change and inode of each file; both differ after a rewrite."""
        files = (path for path in self.root.rglob("*") if path.is_file())
        found = {str(path.relative_to(self.root)): path.stat() for path in files}
        return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in found.items()}

    def downloads(self) -> list[str]:
        return sorted(tree(self.root / "download"))

    def check_audio(self, without: tuple[str, ...] = ()) -> None:
        wanted = {clip: MTT.audio[clip] for clip in CLIPS if clip not in without}
        assert tree(self.root / "audio") == wanted

    def check(self, without: tuple[str, ...] = ()) -> None:
        """There are log-mel files and targets of all clips that are not empty."""
        rows = {clip: MTT.target(clip) for clip in CLIPS if clip not in without}
        for split in (*SPLITS, "all"):
            found = read_groundtruth(self.root / "out" / f"groundtruth-{split}.pk")
            expected = {
                mel_key(c): row for c, row in rows.items() if split in ("all", MTT.split(c))
            }
            assert dict(zip(found.keys, found.targets.tolist(), strict=True)) == expected
        assert read_labels(self.root / "out" / "labels.json") == MTT.labels
        assert tree(self.root / "mels", "*.mmap").keys() == {mel_key(clip) for clip in rows}

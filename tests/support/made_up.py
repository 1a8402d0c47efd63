"""A downstream task with made-up embeddings, as extraction and a data set would leave them."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

import numpy as np
import pytest

from command_line import good, newest, refused  # isort: skip

from maest.datasets.groundtruth import read_groundtruth, write_groundtruth, write_labels
from maest.helpers.errors import InputError, Kind
from maest.helpers.results.manifest import open_folder

D = 8
TRACKS = {"train": 60, "validation": 20, "test": 30}
LABELS = ("calm", "loud", "fast")
SETTINGS = {"train": "train", "val": "validation", "test": "test"}
QUICK = "probe.max_epochs=4 probe.lr=0.03 probe.batch_size=32 probe.warmup_epochs=0 probe.hidden=16"


@dataclass(frozen=True)
class MadeUp:
    """Where it is; all paths are relative to ``root``."""

    root: Path
    task: str
    blocks: Sequence[int]

    def groundtruth(self, split: str) -> Path:
        return self.root / "groundtruth" / f"groundtruth-{split}.pk"

    def keys(self, split: str) -> list[str]:
        return read_groundtruth(self.groundtruth(split), task=self.task).keys

    def targets(self, split: str) -> np.ndarray:
        return read_groundtruth(self.groundtruth(split), task=self.task).targets

    def relabel(self, split: str, change: Callable, task: str = "multi-label") -> None:
        """Change the targets of a split, row by row."""
        changed = map(change, self.targets(split))
        targets = dict(zip(self.keys(split), changed, strict=True))
        write_groundtruth(self.groundtruth(split), targets, task)

    def block(self, block: int | str, seconds: str = "5") -> Path:
        return self.root / "embeddings" / f"{seconds}sec" / str(block)

    def embedding(self, block: int, key: str) -> Path:
        return self.block(block) / f"{key}.embeddings.npy"

    def lose(self, *keys: str) -> None:
        """Remove the embeddings of block 7 of some tracks."""
        for key in keys:
            self.embedding(7, key).unlink()

    def line(self, *typed: str) -> str:
        """Settings as they are typed."""
        splits = (
            f"data.groundtruth_{name}=groundtruth/groundtruth-{split}.pk"
            for name, split in SETTINGS.items()
        )
        base = "data.embeddings_dir=embeddings", *splits, f"data.task={self.task}", QUICK
        return " ".join([*base, *typed])

    def run(self, command: str, *typed: str) -> Path:
        """Run a command of ex_tl.py; the folder of the run."""
        good("ex_tl.py", f"{command} with {self.line(*typed)}", self.root)
        return newest(self.root)

    def probe(self, *typed: str) -> Path:
        return self.run("probe", "data.block=7", *typed)

    def refused(
        self, command: str, typed: str, kind: Kind, setting: str | None = None, place: str = ""
    ) -> InputError:
        """Run a command that must be refused so."""
        line = f"{command} with {self.line(typed)}"
        return refused("ex_tl.py", line, self.root, kind, setting, place)


def read_predictions(folder: Path) -> dict[str, np.ndarray]:
    """The arrays of a run's test split."""
    with np.load(folder / "predictions.npz", allow_pickle=False) as found:
        return dict(found)


def other_manifest(folder: Path, block: int, **options) -> None:
    """Give a folder of embeddings another manifest."""
    (folder / "manifest.json").unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as elsewhere:
        open_block(Path(elsewhere), block, **options)
        shutil.copy(Path(elsewhere) / "manifest.json", folder)


def open_block(
    folder: Path, block: int, seconds: float = 5.0, model: str = "a" * 64, **settings
) -> None:
    """The manifest that extraction leaves in a block's folder."""
    settings = {
        "kind": "embeddings",
        "model": model,
        "numbering": "blocks count from 0; -1 is after the final norm",
        "input": "log-mel files",
        "patch_seconds": seconds,
        "hop_seconds": seconds,
        "tail": "pad",
        "patchout": None,
        "precision": "32-true",
        "quantize": None,
        "version": 1,
        "block": block,
        "pool": "mean",
    } | settings
    made_by = {"arch": "maest_tiny", "checkpoint": None, "checkpoint_swa_weights": False}
    open_folder(folder, settings, "mels", False, lambda: None, made_by)


def make_up(root: Path, task: str = "multi-label", blocks: Sequence[int] = (6, 7)) -> MadeUp:
    """Three splits whose targets can be read from the embeddings, from the later blocks better."""
    made = MadeUp(root, task, blocks)
    rng = np.random.default_rng(7)
    mixing = rng.normal(size=(max(blocks) + 1, 3, len(LABELS), D))
    for block in blocks:
        open_block(made.block(block), block)
    for split, tracks in TRACKS.items():
        groundtruth = {}
        for i in range(tracks):
            key, hidden = f"{split}/{i:02d}.mmap", rng.normal(size=len(LABELS))
            groundtruth[key] = {
                "multi-label": hidden > 0.3,
                "single-label": np.arange(len(LABELS)) == hidden.argmax(),
                "regression": 10 * hidden + 50,
            }[task]
            for block in blocks:
                noise = rng.normal(size=(3, D))
                tokens = 0.3 * (block - 3) * (hidden @ mixing[block]) + noise
                path = made.embedding(block, key)
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, tokens.astype(np.float32))
        write_groundtruth(made.groundtruth(split), groundtruth, task)
    write_labels(made.groundtruth("train").parent / "labels.json", LABELS)
    return made


@contextlib.contextmanager
def refuses(
    kind: str | EllipsisType, place: str | None = None, setting: str | EllipsisType | None = None
) -> Iterator[pytest.ExceptionInfo]:
    """Expects an InputError of this kind, with a hint; of a path that ends so, of this setting.

    ``...``: of any.
    """
    with pytest.raises(InputError) as caught:
        yield caught
    error = caught.value
    assert kind in (..., error.kind), error
    assert setting in (..., error.setting), error
    assert str(error.path or "").endswith(place or ""), error
    assert error.hint, error

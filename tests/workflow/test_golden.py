"""What version 0.1 wrote is still read, continued and reproduced. See ``golden/README.md``."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import good, newest
from folders import read_json, rows
from music import arrays, stamps

from maest.datasets.groundtruth import read_groundtruth
from maest.datasets.preprocess import main as preprocess
from maest.datasets.scores import preprocess as scores
from maest.datasets.scores.cache import open_cache
from maest.datasets.scores.corpus import corpus_folder, list_works
from maest.datasets.scores.reading import Score
from maest.models import get_maest
from maest.models.extraction import Extractor

GOLDEN = Path(__file__).parents[1] / "golden"
CHECKOUT = Path(__file__).resolve().parents[2]
SCORES = read_json(GOLDEN / "scores.json")
FLOAT16_STEP = 2.0**-9  # between 2 and 4, where log-mels end


@pytest.fixture
def home(tmp_path) -> Path:
    """A copy of the folder that version 0.1 worked in; its results are newer than its audio."""
    shutil.copytree(GOLDEN, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("*"):
        if path.suffix == ".json":
            text = path.read_text("utf-8")
            text = text.replace("@HOME@", str(tmp_path)).replace("@CHECKOUT@", str(CHECKOUT))
            path.write_text(text, "utf-8")
        if path.suffix == ".flac":
            os.utime(path, (1.7e9, 1.7e9))
        elif path.is_file():
            os.utime(path, (1.75e9, 1.75e9))
    (tmp_path / "runs").rename(tmp_path / "exp_logs")
    return tmp_path


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Version 0.1 computed audio's log-mel in float32."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)
    cosine = (found * expected).sum(-1) / np.sqrt((found**2).sum(-1) * (expected**2).sum(-1))
    assert cosine.min() > 0.999999


def test_a_model_folder_gives_the_same_embeddings(home):
    extract = Extractor(home / "model", blocks=[1])
    for key, expected in arrays(home / "extracted/2sec/1").items():
        found = extract(home / "music" / key.removesuffix(".embeddings.npy"))
        assert_close(found.embeddings[1], expected)


@pytest.mark.parametrize(
    ("average", "folder"), [(None, "average"), (True, "average"), (False, "raw")]
)
def test_last_ckpt_gives_its_average_unless_the_raw_weights_are_asked_for(home, average, folder):
    last = home / "exp_logs/1/checkpoints/last.ckpt"
    typed = "" if average is None else f"maest.checkpoint_swa_weights={average}"
    good(
        "ex_maest.py",
        f"extract_logits with maest.checkpoint={last} inference.audio=music {typed} "
        "inference.out_dir=found datamodule.num_workers=0",
        home,
    )
    expected = arrays(home / folder / "2sec/logits")
    found = arrays(home / "found/2sec/logits")
    assert list(found) == list(expected)
    for key, values in expected.items():
        assert_close(found[key], values)


def test_a_training_is_continued_from_its_raw_weights(home):
    """Three epochs of version 0.1 and a fourth of this one; its config lacks newer settings."""
    good(
        "ex_maest.py",
        "with maest.checkpoint=model datamodule.clip_length=2 maest.s_patchout_t=2 "
        "module.swa_start=1 datamodule.clips_per_epoch=8 datamodule.batch_size_train=4 "
        "datamodule.num_workers=0 datamodule.base_dir=mels trainer.max_epochs=4 ckpt_path=last "
        "datamodule.groundtruth_train=groundtruth/groundtruth-train.pk "
        "datamodule.groundtruth_val=groundtruth/groundtruth-validation.pk",
        home,
    )
    assert read_json(newest(home) / "results.json")["steps"] == 8
    assert get_maest(checkpoint=newest(home) / "model").labels == ["low", "middle", "high"]


def test_extraction_goes_on_in_an_old_folder(home):
    before = stamps(home / "extracted")
    (home / "extracted/2sec/1/a/000.flac.embeddings.npy").unlink()
    for command in ("extract_embeddings", "predict"):
        good(
            "ex_maest.py",
            f"{command} with maest.checkpoint=model inference.audio=music "
            "inference.transformer_block=1 inference.out_dir=extracted datamodule.num_workers=0",
            home,
        )
    after = stamps(home / "extracted")
    changed = {Path(path).name for path in before if after[path] != before[path]}
    assert changed == {"000.flac.embeddings.npy"}


def test_an_old_store_is_kept_and_a_new_one_holds_the_same_log_mels(home):
    times = {path: path.stat().st_mtime_ns for path in home.glob("mels/*/*.mmap")}
    with contextlib.chdir(home):
        for store in ("mels", "new"):
            assert preprocess(["music", store, "--num-workers", "1"]) == 0
    assert times == {path: path.stat().st_mtime_ns for path in home.glob("mels/*/*.mmap")}
    for path in times:
        old, new = (
            np.fromfile(p, np.float16).astype(np.float32)
            for p in (path, home / "new" / path.relative_to(home / "mels"))
        )
        assert np.abs(old - new).max() <= FLOAT16_STEP


def test_an_old_probe_predicts_the_same(home):
    good("ex_tl.py", "predict with probe=exp_logs/6 audio=music predict.out_dir=probed", home)
    old, new = (rows(folder / "predictions.csv") for folder in (home / "exp_logs/7", newest(home)))
    for one, other in zip(old, new, strict=True):
        assert one["track"] == other["track"]
        for label in ("low", "middle", "high"):
            assert float(one[label]) == pytest.approx(float(other[label]), abs=1e-3)


# ---- the embedded data set -----------------------------------------------------------------------


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def check_clips(folder: Path, works: int) -> None:
    """Notes, rows, splits and the three clips of a build are those of version 0.1."""
    ids = [work.id for work in list_works(corpus_folder())[:works]]
    with open_cache(folder / "notes.sqlite") as cache:
        read = cache.works(ids)
    for identity, score in read.items():
        found = digest(score.notes.tobytes()) if isinstance(score, Score) else "unreadable"
        assert found == SCORES["notes"][identity], identity
    clips = rows(folder / "clips.csv")
    assert len(clips) > 0.9 * works
    for row in clips:
        text = json.dumps(row, sort_keys=True)
        assert digest(text.encode()) == SCORES["clips"][row["key"]], row
    with np.load(GOLDEN / "clips.npz") as golden:
        for key, expected in golden.items():
            found = np.fromfile(folder / "melspectrograms" / key, np.float16).reshape(-1, 96)
            assert found.shape == expected.shape
            assert np.abs(found.astype(np.float32) - expected).max() <= FLOAT16_STEP, key


def test_a_small_build_of_the_embedded_set_is_part_of_the_pinned_one(tmp_path):
    scores.build(tmp_path, works=48, progress=False)
    check_clips(tmp_path, 48)


@pytest.mark.slow
def test_the_embedded_set_is_the_pinned_one(tmp_path):
    scores.build(tmp_path, progress=False)
    check_clips(tmp_path, scores.stages.Settings().works)
    assert len(rows(tmp_path / "clips.csv")) == len(SCORES["clips"])
    for name, pinned in SCORES["label_sets"].items():
        assert read_json(tmp_path / name / "labels.json") == pinned["labels"]
        for split in ("train", "validation", "test", "all"):
            truth = read_groundtruth(tmp_path / name / f"groundtruth-{split}.pk")
            content = [list(truth.keys), np.asarray(truth.targets).astype(int).tolist()]
            assert digest(json.dumps(content).encode()) == pinned[split], (name, split)

"""The three steps of the downstream evaluation, as they are typed, in a copy of the program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import bad, good, settings
from http_server import Server
from miniature_mtt import miniature
from music import save_small_model
from published import into_hub_cache, released

from maest.datasets.groundtruth import read_groundtruth
from maest.models import ARCHS

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ("ex_*.py", "config", "datasets", "experiments", "helpers", "maest", "models")
STEPS = (
    "cd datasets/mtt/ && python preprocess.py && cd ../../",
    "python ex_maest.py extract_embeddings with maest_30s_from_passt_infer target_mtt",
    "python ex_tl.py with target_mtt_tl",
)
MODEL = "discogs-maest-30s-pw-129e"


@pytest.fixture
def copy(tmp_path) -> Path:
    """The program without the data of any data set."""
    for pattern in PROGRAM:
        for path in ROOT.glob(pattern):
            data = ("data", "audio", "download", "tables", "melspectrograms", "*.pk")
            data = data if path.name == "datasets" else ()
            left_out = shutil.ignore_patterns("__pycache__", *data)
            if path.is_dir():
                shutil.copytree(path, tmp_path / "maest" / path.name, ignore=left_out)
            else:
                (tmp_path / "maest").mkdir(exist_ok=True)
                shutil.copy(path, tmp_path / "maest")
    return tmp_path / "maest"


def test_as_typed(copy, tmp_path):
    """From a server with a small MagnaTagATune, and a model of the released size in the cache."""
    hub = tmp_path / "hub"
    into_hub_cache(hub, ARCHS[MODEL].hub, released(MODEL, 768, 12).save_pretrained)
    mtt = miniature(clips_per_folder=2, seconds=2.0)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "HF_HUB_CACHE": str(hub)}
    with Server(mtt.files()) as server:
        said = []
        for step in STEPS:
            done = subprocess.run(
                ["bash", "-c", step],
                cwd=copy,
                env=environment | {"MTT_URL": server.url},
                capture_output=True,
                text=True,
                timeout=500,
            )
            assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
            assert "Traceback" not in done.stderr
            assert "Warning:" not in done.stderr, done.stderr
            said.append(done.stdout)
    folder = copy / "datasets" / "mtt"
    splits = {s: read_groundtruth(folder / f"groundtruth-{s}.pk") for s in ("train", "test", "all")}
    assert (len(splits["train"]), len(splits["test"]), len(splits["all"])) == (24, 6, 32)
    assert not list((folder / "download").glob("mp3.zip.0*"))  # they are unpacked
    embeddings = copy / "embeddings" / "mtt" / "30sec" / "7"
    for key in splits["all"].keys:
        embedding = np.load(embeddings / f"{key}.embeddings.npy")
        assert (embedding.shape, embedding.dtype) == ((3, 768), np.float32)
    assert "32 tracks done, 0 failed" in said[1]
    assert "24 / 2 / 6 tracks, 50 labels" in said[2]
    run = copy / "exp_logs" / "2"
    results = json.loads((run / "results.json").read_text())
    assert results["labels"] == mtt.labels
    assert results["seeds"] == [0, 1, 2]
    assert results["probe"]["max_epochs"] == 60
    assert np.isfinite(results["ap"]["values"]).all()
    assert (run / "summary.md").is_file()


def test_a_teacher_and_its_student(toy, tmp_path):
    """The student finds the teacher's logits where extraction puts them by itself."""
    save_small_model(tmp_path / "teacher")
    train = toy.groundtruth("train")
    good(
        "ex_maest.py",
        f"extract_logits with maest.checkpoint=teacher datamodule.base_dir={toy.mels} "
        f"datamodule.groundtruth_predict={train}",
        tmp_path,
    )
    assert len(list((tmp_path / "embeddings/teacher/2sec/logits").rglob("*.npy"))) == 36
    student = (
        f"with {settings(toy)} datamodule.teacher_dir=embeddings/2sec/logits "
        "maest.distilled_type=separated "
        "datamodule.clip_length=2 trainer.max_epochs=1 datamodule.clips_per_epoch=8 "
        "datamodule.num_workers=0 maest.arch=maest_tiny"
    )
    good("ex_maest.py", student, tmp_path)
    shutil.copytree(tmp_path / "embeddings/teacher", tmp_path / "embeddings/other")
    said = bad("ex_maest.py", student, tmp_path)
    assert "datamodule.teacher_dir" in said
    assert "embeddings/teacher/2sec/logits" in said
    assert "embeddings/other/2sec/logits" in said

"""The three steps of the downstream evaluation, as they are typed, in a copy of the program."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from folders import read_json
from http_server import Server
from miniature_mtt import miniature
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
    data = "data", "audio", "download", "tables", "melspectrograms", "*.pk"
    (tmp_path / "maest").mkdir()
    for path in (path for pattern in PROGRAM for path in ROOT.glob(pattern)):
        if path.is_dir():
            skipped = data if path.name == "datasets" else ()
            skipped = shutil.ignore_patterns("__pycache__", *skipped)
            shutil.copytree(path, tmp_path / "maest" / path.name, ignore=skipped)
        else:
            shutil.copy(path, tmp_path / "maest")
    return tmp_path / "maest"


def test_as_typed(copy, tmp_path):
    """From a server with a small MagnaTagATune, and a model of the released size in the cache."""
    hub = tmp_path / "hub"
    into_hub_cache(hub, ARCHS[MODEL].hub, released(MODEL, 768, 12).save_pretrained)
    mtt = miniature(clips_per_folder=2, seconds=2.0)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with Server(mtt.files()) as server:
        environment = os.environ | {"PATH": path, "HF_HUB_CACHE": str(hub), "MTT_URL": server.url}
        for step in STEPS:
            done = subprocess.run(
                ["bash", "-c", step], cwd=copy, env=environment, capture_output=True, text=True
            )
            assert done.returncode == 0, f"{step}\n{done.stdout}\n{done.stderr}"
            assert "Warning:" not in done.stderr, done.stderr
    folder = copy / "datasets/mtt"
    splits = {s: read_groundtruth(folder / f"groundtruth-{s}.pk") for s in ("train", "test", "all")}
    assert [len(split) for split in splits.values()] == [24, 6, 32]
    for key in splits["all"].keys:
        embedding = np.load(copy / f"embeddings/mtt/30sec/7/{key}.embeddings.npy")
        assert (embedding.shape, embedding.dtype) == ((3, 768), np.float32)
    results = read_json(copy / "exp_logs/2/results.json")
    assert (results["labels"], results["seeds"]) == (mtt.labels, [0, 1, 2])
    assert results["tracks"] == {"train": 24, "val": 2, "test": 6}
    assert results["probe"]["max_epochs"] == 60
    assert np.isfinite(results["ap"]["values"]).all()

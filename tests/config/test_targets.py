"""The named targets: extraction, probe and the data sets' scripts use the same folders."""

from pathlib import Path

import pytest

from maest import config
from maest.datasets import published
from maest.datasets.jamendo import preprocess as jamendo
from maest.datasets.mtt import preprocess as mtt
from maest.datasets.scores import DATA_DIR
from maest.helpers.files.data_folder import data_folder

TARGETS = [name.removeprefix("target_") for name in config.MAEST_NAMED if "target_" in name]
DATASETS = data_folder()
MADE = {
    "scores": (DATA_DIR / "instrument", DATA_DIR / "melspectrograms"),
    "mtt": (DATASETS / "mtt", DATASETS / "mtt" / "melspectrograms"),
    "custom": (DATASETS / "custom", DATASETS / "custom" / "melspectrograms"),
    **{
        f"jamendo_{task}": (DATASETS / "jamendo" / task, DATASETS / "jamendo" / "melspectrograms")
        for task in jamendo.TASKS
    },
}


def test_there_is_one_for_each_data_set():
    assert sorted(TARGETS) == sorted(MADE)
    assert {f"target_{name}_tl" for name in TARGETS} == set(config.TL_NAMED)


@pytest.mark.parametrize("name", MADE)
def test_extraction_reads_the_data_set_and_the_probe_the_embeddings(name):
    folder, mels = MADE[name]
    extraction, probe = config.MAEST_NAMED[f"target_{name}"], config.TL_NAMED[f"target_{name}_tl"]
    assert Path(extraction["datamodule"]["groundtruth_predict"]) == folder / "groundtruth-all.pk"
    assert Path(extraction["datamodule"]["base_dir"]) == mels
    data = probe["data"]
    splits = {"train": "train", "val": "validation", "test": "test"}
    for short, split in splits.items():
        assert Path(data[f"groundtruth_{short}"]) == folder / f"groundtruth-{split}.pk"
    assert Path(data["base_dir"]) == mels
    assert data["embeddings_dir"] == extraction["inference"]["out_dir"]
    # Both take the default block.
    assert "transformer_block" not in extraction["inference"]
    assert "block" not in data


@pytest.mark.parametrize("module", [mtt, jamendo])
def test_where_the_scripts_write_by_default(module):
    options = published.parser("", module.STEPS, module._HOME).parse_args([])
    folder = Path(module.__file__).resolve().parent
    assert (options.out_dir, options.melspec_dir) == (folder, folder / "melspectrograms")

"""The commands of the original repository's README, as typed, and every model of the family.

The networks have the family's names, lengths and layouts, and 64 channels, so that a CPU does it.
Their weights are made here, in the published formats, and lie in the caches where the program
looks before it asks the network.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from command_line import bad, good, newest, settings
from hub_cache import into_hub_cache, released

from maest import config
from maest.models import ARCHS, get_maest
from maest.models.archs import DEIT, PASST

SMALL = {"embed_dim": 64, "num_heads": 1}
# Two steps of two clips, whatever the recipe says.
TWO_STEPS = (
    "trainer.max_epochs=1 trainer.limit_train_batches=2 datamodule.clips_per_epoch=4 "
    "datamodule.batch_size_train=2 trainer.limit_val_batches=1 datamodule.batch_size_eval=2"
)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Small architectures under the family's names, and their published weights in the caches."""
    patch = pytest.MonkeyPatch()
    root = tmp_path_factory.mktemp("caches")
    for name in [*ARCHS]:
        patch.setitem(ARCHS, name, dataclasses.replace(ARCHS[name], **SMALL))
    patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root / "hub"))
    patch.setattr(torch.hub, "get_dir", lambda: str(root / "torch"))
    for name, arch in ARCHS.items():
        if arch.hub and name != DEIT:
            into_hub_cache(root / "hub", arch.hub, released(name).save_pretrained)
    deit = timm.create_model("deit_base_distilled_patch16_384", embed_dim=64, num_heads=1)
    into_hub_cache(
        root / "hub",
        ARCHS[DEIT].hub,
        lambda folder: safetensors.torch.save_file(deit.state_dict(), folder / "model.safetensors"),
    )
    passt = get_maest("maest_base", n_classes=527).state_dict()
    passt["freq_new_pos_embed"] = torch.randn(1, 64, 12, 1)
    passt["time_new_pos_embed"] = torch.randn(1, 64, 1, 99)
    (root / "torch" / "checkpoints").mkdir(parents=True)
    torch.save(passt, root / "torch" / "checkpoints" / ARCHS[PASST].url.rpartition("/")[2])
    yield
    patch.undo()


@pytest.fixture(scope="module")
def home(tmp_path_factory, family, toy) -> Path:
    """A working directory: its first run is the README's first command."""
    home = tmp_path_factory.mktemp("home")
    good("ex_maest.py", f"with {settings(toy)} {TWO_STEPS} trainer.limit_val_batches=None", home)
    return home


# ---------------------------------------------------------------- the README, line by line

FRAMES = {5: 312, 10: 625, 20: 1250, 30: 1875}
PRETRAIN = [
    ("maest_10s_random_weights_pretrain", 10, None),
    ("maest_10s_from_deit_pretrain", 10, DEIT),
    ("maest_10s_from_passt_pretrain", 10, PASST),
    ("maest_discogs_5sec_pretrain", 5, PASST),
    ("maest_discogs_10sec_pretrain", 10, PASST),
    ("maest_discogs_20sec_pretrain", 20, PASST),
    ("maest_discogs_30sec_pretrain", 30, PASST),
]


@pytest.mark.parametrize(("name", "seconds", "start"), PRETRAIN)
def test_pretraining(home, toy, name, seconds, start):
    good("ex_maest.py", f"with {name} {settings(toy)} {TWO_STEPS}", home)
    card = json.loads((newest(home) / "model" / "config.json").read_text())
    assert card["sizes"]["input_t"] == FRAMES[seconds]
    assert card["sizes"]["norm_mean"] == pytest.approx(2.06755686098554)
    assert (card["trained_on"]["started_from"], card["trained_on"]["steps"]) == (start, 2)
    assert card["labels"] == list(toy.labels)
    assert not ARCHS[card["arch"]].published  # the network that it is, not the one it came from
    if start is not None:
        parents = [{"name": start, "licence": ARCHS[start].licence}]
        assert card["trained_on"]["parents"] == parents


def test_pretraining_starts_from_the_weights(home, toy):
    """A rate of next to nothing leaves them as they were, but for a head of this ground truth."""
    line = f"with maest_10s_from_passt_pretrain {settings(toy)} {TWO_STEPS} module.lr=1e-30"
    good("ex_maest.py", line, home)
    found = get_maest(checkpoint=newest(home) / "model").state_dict()
    source = torch.load(
        Path(torch.hub.get_dir()) / "checkpoints" / "passt-s-f128-p16-s10-ap.476-swa.pt"
    )
    for name in ("blocks.11.mlp.fc2.weight", "cls_token", "head.0.weight"):
        assert torch.equal(found[name], source[name]), name
    assert found["head.1.weight"].shape == (3, 64)


def test_teacher_and_student(home, toy):
    """The teacher's logits of the training clips come first."""
    line = f"with maest_30s_teacher_student_pretrain {settings(toy)} {TWO_STEPS}"
    message = bad("ex_maest.py", line, home)
    assert "embeddings/30sec/logits: " in message
    assert "extract_logits" in message
    (home / "embeddings/other/30sec/logits").mkdir(parents=True)
    message = bad("ex_maest.py", line, home)
    assert "36 of 36" in message
    assert "extract_logits" in message

    good("ex_maest.py", f"with maest_discogs_30sec_pretrain {settings(toy)} {TWO_STEPS}", home)
    train = f"{settings(toy)} datamodule.groundtruth_predict={toy.groundtruth('train')}"
    good(
        "ex_maest.py",
        f"extract_logits with maest_discogs_30sec_inference maest.checkpoint=exp_logs/latest/model "
        f"{train}",
        home,
    )
    message = bad("ex_maest.py", line, home)
    assert "embeddings/other/30sec/logits" in message  # as well as the teacher's
    (home / "embeddings/other/30sec/logits").rmdir()
    good("ex_maest.py", line, home)
    card = json.loads((newest(home) / "model" / "config.json").read_text())
    assert card["sizes"]["distilled_type"] == "separated"


def test_the_configuration_that_was_typed_for_a_command(home, toy):
    data = (
        "datamodule.groundtruth_train=my_dataset/groundtruth-train.pk "
        "datamodule.groundtruth_val=my_dataset/groundtruth-val.pk "
        "datamodule.groundtruth_test=my_dataset/groundtruth-test.pk "
    )
    message = bad(
        "ex_maest.py",
        f"maest_discogos_30s_pretrain with {data} datamodule.base_dir =my/data/",
        home,
    )
    right = f"with maest_discogs_30s_pretrain {data}datamodule.base_dir=my/data/"
    assert f"'{right}'" in message
    message = bad("ex_maest.py", right, home)
    assert "my_dataset/groundtruth-train.pk: " in message


@pytest.mark.parametrize(
    ("override", "block"),
    [
        ("", 7),
        ("inference.transformer_block=11", 11),
        ("predict.transformer_block=11", 11),
    ],
)
def test_embeddings_of_a_released_model(home, toy, override, block):
    line = f"extract_embeddings with maest_10s_random_weights_inference {override} {settings(toy)}"
    good("ex_maest.py", line, home)
    source = released("discogs-maest-10s-fs-129e")
    folder = "embeddings/discogs-maest-10s-fs-129e"
    mels = [np.fromfile(p, np.float16).reshape(-1, 96) for p in sorted(toy.mels.glob("test/*"))]
    model = get_maest("discogs-maest-10s-fs-129e")
    assert model.labels == list(source.config.id2label.values())
    for i in (0, 7):
        found = np.load(home / f"{folder}/10sec/{block}/test/{i:02d}.mmap.embeddings.npy")
        mel = model.normalise(torch.from_numpy(mels[i]).float().T[None])
        with torch.no_grad():
            expected = model(mel, transformer_block=block)[1].view(3, 64)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_downstream(home, toy):
    """The three steps for MagnaTagATune, on other data; its own script is another matter."""
    data = " ".join(
        f"data.groundtruth_{name}={toy.groundtruth(split)}"
        for name, split in (("train", "train"), ("val", "validation"), ("test", "test"))
    )
    for split in ("train", "validation", "test"):
        predict = f"{settings(toy)} datamodule.groundtruth_predict={toy.groundtruth(split)}"
        good(
            "ex_maest.py",
            f"extract_embeddings with maest_30s_from_passt_infer target_mtt {predict}",
            home,
        )
    assert len(list((home / "embeddings/mtt/30sec/7").rglob("*.npy"))) == 60
    out = good("ex_tl.py", f"with target_mtt_tl {data} probe.max_epochs=2 seeds=1", home)
    assert "test AP" in out


# ---------------------------------------------------------------- the whole family

STEMS = [
    "maest_10s_random_weights",
    "maest_10s_from_deit",
    *(f"maest_{seconds}s_from_passt" for seconds in FRAMES),
    *(f"maest_discogs_{seconds}sec" for seconds in FRAMES),
    *(f"maest_discogs_{seconds}s" for seconds in FRAMES),
    "maest_30s_teacher_student",
    "maest_30s_from_passt_teacher_student",
]


RELEASED = {
    "10s_random_weights": "discogs-maest-10s-fs-129e",
    "10s_from_deit": "discogs-maest-10s-dw-75e",
    "10s_from_passt": "discogs-maest-10s-pw-129e",
    "discogs_5sec": "discogs-maest-5s-pw-129e",
    "discogs_10s": "discogs-maest-10s-pw-129e",
    "20s_from_passt": "discogs-maest-20s-pw-129e",
    "discogs_30sec": "discogs-maest-30s-pw-129e",
    "30s_teacher_student": "discogs-maest-30s-pw-73e-ts",
    "30s_from_passt_teacher_student": "discogs-maest-30s-pw-73e-ts",
}


@pytest.mark.parametrize(("stem", "arch"), RELEASED.items())
def test_which_released_model_a_name_stands_for(stem, arch):
    for suffix in ("inference", "infer", "finetune"):
        assert config.MAEST_NAMED[f"maest_{stem}_{suffix}"]["maest"]["arch"] == arch


@pytest.mark.parametrize("suffix", ["pretrain", "inference", "infer", "finetune"])
def test_every_name_has_its_counterparts_and_a_sentence(suffix):
    for stem in STEMS:
        assert f"{stem}_{suffix}" in config.MAEST_NAMED
        assert config.SENTENCES[f"{stem}_{suffix}"].endswith(".")


def test_named_configs_are_shown_with_their_sentences(home):
    out = good("ex_maest.py", "print_named_configs", home)
    for name in config.MAEST_NAMED:
        assert name in out
        assert config.SENTENCES[name] in out


@pytest.mark.parametrize("name", [n for n in config.MAEST_NAMED if n.endswith("_infer")])
def test_every_inference_config_extracts(home, toy, tmp_path, name):
    groundtruth = f"datamodule.groundtruth_predict={toy.groundtruth('validation')}"
    line = f"with {name} {settings(toy)} {groundtruth} inference.out_dir={tmp_path}"
    good("ex_maest.py", f"extract_embeddings {line} trainer.limit_predict_batches=1", home)
    seconds = config.MAEST_NAMED[name]["datamodule"]["clip_length"]
    (path, *_) = (tmp_path / f"{seconds}sec" / "7").rglob("*.npy")
    assert np.load(path).shape == (3, 64)


def test_a_folder_typed_in_the_singular(home, toy, tmp_path):
    (tmp_path / "datasets").symlink_to(toy.root)
    line = f"with {settings(toy)} {TWO_STEPS} datamodule.base_dir=dataset/mels"
    good("ex_maest.py", line, tmp_path)


def test_own_weights_take_the_place_of_the_released_ones(home, toy):
    line = f"extract_logits with maest_10s_from_deit_infer {settings(toy)} inference.out_dir=own"
    good("ex_maest.py", f"{line} maest.checkpoint=exp_logs/1/model", home)
    assert np.load(home / "own/10sec/logits/test/00.mmap.logits.npy").shape == (3,)
    assert "maest.n_classes" in bad("ex_maest.py", f"{line} maest.n_classes=5", home)

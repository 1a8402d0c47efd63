"""The commands of the original repository's README, as typed, and every model of the family.

The networks have the family's names, lengths and layouts, and 64 channels, so that a CPU does it.
Their weights are made here, in the published formats, and lie in the caches where the program
looks before it asks the network.
"""

import dataclasses
import json
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import torch
from command_line import bad, good, newest, settings
from networks import noise
from published import deit_state, into_hub_cache, passt_state, released

from maest import config
from maest.models import ARCHS, get_maest
from maest.models.archs import DEIT, PASST
from maest.models.download import PRETRAINED

SHIPPED = "maest-tiny-music"
# Two steps of two clips, whatever the recipe says.
TWO_STEPS = (
    "trainer.max_epochs=1 trainer.limit_train_batches=2 datamodule.clips_per_epoch=4 "
    "datamodule.batch_size_train=2 trainer.limit_val_batches=1 datamodule.batch_size_eval=2"
)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Small architectures under the family's names, and their published weights in the caches."""
    root = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        for name in [*ARCHS]:
            small = dataclasses.replace(ARCHS[name], embed_dim=64, num_heads=1)
            patch.setitem(ARCHS, name, small if name != SHIPPED else ARCHS[name])
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(root / "hub"))
        patch.setattr(torch.hub, "get_dir", lambda: str(root / "torch"))
        for name, arch in ARCHS.items():
            if arch.hub and name != DEIT:
                into_hub_cache(root / "hub", arch.hub, released(name).save_pretrained)
        deit = deit_state(depth=12)
        into_hub_cache(
            root / "hub",
            ARCHS[DEIT].hub,
            lambda folder: safetensors.torch.save_file(deit, folder / "model.safetensors"),
        )
        (root / "torch" / "checkpoints").mkdir(parents=True)
        passt = root / "torch" / "checkpoints" / ARCHS[PASST].url.rpartition("/")[2]
        torch.save(passt_state(depth=12), passt)
        yield passt


@pytest.fixture(scope="module")
def home(tmp_path_factory, family, toy) -> Path:
    """A working directory: its first run is the README's first command."""
    home = tmp_path_factory.mktemp("home")
    good("ex_maest.py", f"with {settings(toy)} {TWO_STEPS} trainer.limit_val_batches=None", home)
    return home


def card(home: Path) -> dict:
    return json.loads((newest(home) / "model" / "config.json").read_text("utf-8"))


# ---------------------------------------------------------------- the README, line by line

FRAMES = {5: 312, 10: 625, 20: 1250, 30: 1875}


@pytest.mark.parametrize(
    ("name", "seconds", "start"),
    [
        ("10s_random_weights", 10, None),
        ("10s_from_deit", 10, DEIT),
        ("10s_from_passt", 10, PASST),
        *((f"discogs_{seconds}sec", seconds, PASST) for seconds in FRAMES),
    ],
)
def test_pretraining(home, toy, name, seconds, start):
    good("ex_maest.py", f"with maest_{name}_pretrain {settings(toy)} {TWO_STEPS}", home)
    known = card(home)
    assert known["sizes"]["input_t"] == FRAMES[seconds]
    assert known["sizes"]["norm_mean"] == pytest.approx(2.06755686098554)
    assert (known["trained_on"]["started_from"], known["trained_on"]["steps"]) == (start, 2)
    assert known["labels"] == list(toy.labels)
    assert not ARCHS[known["arch"]].published  # the network that it is, not the one it came from
    if start is not None:
        parents = [{"name": start, "licence": ARCHS[start].licence}]
        assert known["trained_on"]["parents"] == parents


def test_pretraining_starts_from_the_weights(home, family, toy):
    """A rate of next to nothing leaves them as they were, but for a head of this ground truth."""
    line = f"with maest_10s_from_passt_pretrain {settings(toy)} {TWO_STEPS} module.lr=1e-30"
    good("ex_maest.py", line, home)
    found, source = get_maest(newest(home) / "model").state_dict(), torch.load(family)
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
    assert "36 of 36" in bad("ex_maest.py", line, home)

    good("ex_maest.py", f"with maest_discogs_30sec_pretrain {settings(toy)} {TWO_STEPS}", home)
    teacher = "extract_logits with maest_discogs_30sec_inference maest.checkpoint="
    train = f"{settings(toy)} datamodule.groundtruth_predict={toy.groundtruth('train')}"
    good("ex_maest.py", f"{teacher}exp_logs/latest/model {train}", home)
    message = bad("ex_maest.py", line, home)
    assert "embeddings/other/30sec/logits" in message  # as well as the teacher's
    (home / "embeddings/other/30sec/logits").rmdir()
    good("ex_maest.py", line, home)
    assert card(home)["sizes"]["distilled_type"] == "separated"


# ---------------------------------------------------------------- the whole family

RELEASED = {
    "10s_random_weights": "discogs-maest-10s-fs-129e",
    "10s_from_deit": "discogs-maest-10s-dw-75e",
    **{f"{s}s_from_passt": f"discogs-maest-{s}s-pw-129e" for s in FRAMES},
    **{f"discogs_{s}sec": f"discogs-maest-{s}s-pw-129e" for s in FRAMES},
    **{f"discogs_{s}s": f"discogs-maest-{s}s-pw-129e" for s in FRAMES},
    "30s_teacher_student": "discogs-maest-30s-pw-73e-ts",
    "30s_from_passt_teacher_student": "discogs-maest-30s-pw-73e-ts",
}


def test_every_name_has_its_counterparts_and_a_sentence(home):
    out = good("ex_maest.py", "print_named_configs", home)
    for stem, arch in RELEASED.items():
        for suffix in ("inference", "infer", "finetune"):
            assert config.MAEST_NAMED[f"maest_{stem}_{suffix}"]["maest"]["arch"] == arch
        assert f"maest_{stem}_pretrain" in config.MAEST_NAMED
    for name in config.MAEST_NAMED:
        assert config.SENTENCES[name].endswith(".")
        assert config.SENTENCES[name] in out
        assert name in out


@pytest.mark.parametrize("name", [n for n in config.MAEST_NAMED if n.endswith("_infer")])
def test_every_inference_config_extracts(home, toy, tmp_path, name):
    groundtruth = f"datamodule.groundtruth_predict={toy.groundtruth('validation')}"
    line = f"with {name} {settings(toy)} {groundtruth} inference.out_dir={tmp_path}"
    good("ex_maest.py", f"extract_embeddings {line} trainer.limit_predict_batches=1", home)
    seconds = config.MAEST_NAMED[name]["datamodule"]["clip_length"]
    (path, *_) = (tmp_path / f"{seconds}sec" / "7").rglob("*.npy")
    assert np.load(path).shape == (3, 64)


def test_a_folder_typed_in_the_singular(toy, tmp_path):
    (tmp_path / "datasets").symlink_to(toy.root)
    line = f"with {settings(toy)} {TWO_STEPS} datamodule.base_dir=dataset/mels"
    good("ex_maest.py", line, tmp_path)


def test_other_weights_replace_the_released_ones(home, toy):
    line = f"extract_logits with maest_10s_from_deit_infer {settings(toy)} inference.out_dir=own"
    good("ex_maest.py", f"{line} maest.checkpoint=exp_logs/1/model", home)
    assert np.load(home / "own/10sec/logits/test/00.mmap.logits.npy").shape == (3,)
    assert "maest.n_classes" in bad("ex_maest.py", f"{line} maest.n_classes=5", home)


def test_the_shipped_model_is_small_whole_and_has_its_card():
    folder, model = PRETRAINED / SHIPPED, get_maest(SHIPPED)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12e6
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    known = json.loads((folder / "config.json").read_text("utf-8"))
    text = (folder / "README.md").read_text("utf-8")
    head = huggingface_hub.ModelCard(text).data.to_dict()
    assert head["license"].upper() == ARCHS[SHIPPED].licence
    assert (head["library_name"], head["pipeline_tag"]) == ("maest", "audio-classification")
    for word in ("CC BY-SA 4.0", "recordings", f"{known['trained_on']['steps']:,} steps"):
        assert word in text
    assert known["trained_on"]["licence"] == ARCHS[SHIPPED].licence
    assert (model.embed_dim, model.input_t) == (192, ARCHS[SHIPPED].input_t)
    assert len(model.labels) == len(model.thresholds) == ARCHS[SHIPPED].n_classes
    assert {"Instrument---Violin", "Genre---Rock", "Voice---Singing"} <= set(model.labels)
    activations, labels = model.predict_labels(0.1 * noise(16_000 * 6))
    assert np.isfinite(activations).all()
    assert labels == model.labels


def test_the_shipped_model_extracts_tags_and_starts_a_training(toy, tmp_path):
    arch = f"maest.arch={SHIPPED} {settings(toy)}"
    labels = ARCHS[SHIPPED].n_classes
    for command, path, shape in (("embeddings", "7", (3, 192)), ("logits", "logits", (labels,))):
        good("ex_maest.py", f"extract_{command} with {arch}", tmp_path)
        files = list((tmp_path / f"embeddings/{SHIPPED}/10sec/{path}").rglob("*.npy"))
        assert len(files) == 12
        assert np.load(files[0]).shape == shape
    steps = "maest.s_patchout_t=0 trainer.max_epochs=1 trainer.limit_train_batches=1"
    good("ex_maest.py", f"with maest_finetune {arch} {steps}", tmp_path)
    known = card(tmp_path)
    assert (known["labels"], known["trained_on"]["started_from"]) == (list(toy.labels), SHIPPED)

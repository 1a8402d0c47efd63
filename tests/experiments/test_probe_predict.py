"""A finished probe on new music: what ``python ex_tl.py predict`` writes, and what it refuses."""

import contextlib
import shutil
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from command_line import good, newest, refused, run
from folders import read_json, rows
from music import RATE, arrays, noise, save_small_model, write_music
from safetensors.numpy import load_file, save_file

from maest.config import ProbeSettings
from maest.datasets.groundtruth import read_any_groundtruth, write_groundtruth, write_labels
from maest.datasets.preprocess import main as preprocess
from maest.experiments.probe_predict import extraction_settings
from maest.helpers.audio.reading import read_audio
from maest.helpers.errors import Kind
from maest.helpers.files.atomic import write_json
from maest.models.extraction import Extractor

LABELS = {
    "multi-label": ["drums", "flute", "voice"],
    "single-label": ["jig", "mass", "reel"],
    "regression": ["arousal", "tempo"],
}
SPLITS = {"train": "train", "val": "validation", "test": "test"}


@dataclass
class Home:
    """A working directory with music, its embeddings, and a probe for each task."""

    folder: Path
    model: Path
    music: Path
    probes: dict[str, Path]

    def extract(self, out: str, *typed: str) -> None:
        """Embeddings of block 1 of the old music."""
        line = f"extract_embeddings with maest.checkpoint={self.model} inference.out_dir={out}"
        line += " inference.transformer_block=1 inference.audio=old"
        good("ex_maest.py", " ".join([line, *typed]), self.folder)

    def probe(self, *typed: str, task: str = "multi-label", home: Path | None = None) -> Path:
        """Train a probe; its folder."""
        splits = (
            f"data.groundtruth_{short}={self.folder}/{task}/groundtruth-{name}.pk"
            for short, name in SPLITS.items()
        )
        line = f"with data.task={task} seeds=2 probe.max_epochs=4 probe.lr=0.01 data.types=ct"
        good("ex_tl.py", " ".join([line, *splits, *typed]), home or self.folder)
        return newest(home or self.folder)

    def predict(self, *typed: str, probe: Path | None = None, code: int = 0) -> Path:
        """Apply a probe; the folder of what it finds."""
        line = f"predict with probe={probe or self.probes['multi-label']} audio={self.music}"
        done = run("ex_tl.py", " ".join([line, *typed]), self.folder)
        assert done.code == code, done.err[-3000:]
        return newest(self.folder)

    def refuse(self, kind: Kind, setting: str, *typed: str, place: str = "") -> None:
        line = f"predict with probe={self.probes['multi-label']} audio={self.music}"
        refused("ex_tl.py", " ".join([line, *typed]), self.folder, kind, setting, place)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    folder = tmp_path_factory.mktemp("home")
    home = Home(folder, save_small_model(folder / "model"), folder / "new", {})
    names = write_music(folder / "old", 16)
    home.extract("embeddings", "inference.transformer_block=[1,2]")
    rng = np.random.default_rng(0)
    for task, labels in LABELS.items():
        targets = {
            "multi-label": rng.random((16, 3)) < 0.5,
            "single-label": np.eye(3, dtype=bool)[np.arange(16) % 3],
            "regression": rng.normal((60, 120), (5, 30), (16, 2)).astype(np.float32),
        }[task]
        # The names of log-mel files of the same music.
        keys = [name.replace(".flac", ".mmap") for name in names]
        for split, first, end in (("train", 0, 8), ("validation", 8, 12), ("test", 12, 16)):
            path = folder / task / f"groundtruth-{split}.pk"
            truth = dict(zip(keys[first:end], targets[first:end], strict=True))
            write_groundtruth(path, truth, task)
        write_labels(folder / task / "labels.json", labels)
        home.probes[task] = home.probe("data.embeddings_dir=embeddings data.block=1", task=task)
    write_music(home.music, 3)
    return home


def predicted(folder: Path) -> dict[str, np.ndarray]:
    """Track → values, in predictions.csv."""
    table = rows(folder / "predictions.csv")
    return {row["track"]: np.array([float(v) for v in list(row.values())[1:-1]]) for row in table}


def by_hand(home: Home, probe: Path, task: str, track: str) -> np.ndarray:
    """The network's embedding of a whole track, through each seed's layers."""
    embeddings = Extractor(home.model, blocks=[1, 2])(home.music / track).embeddings
    outputs = []
    for seed in (0, 1):
        state = load_file(probe / f"probe/seed-{seed}.safetensors")
        x = embeddings[1][[0, 2]].mean(axis=0)
        if "mix" in state:
            x = np.stack([embeddings[block][[0, 2]].mean(axis=0) for block in (1, 2)])
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
            x = np.exp(state["mix"]) / np.exp(state["mix"]).sum() @ x
        hidden = np.maximum(state["net.0.weight"] @ x + state["net.0.bias"], 0)
        out = state["net.2.weight"] @ hidden + state["net.2.bias"]
        outputs.append(torch.from_numpy(out * state["scale"] + state["shift"]))
    logits = torch.stack(outputs)
    activations = {"multi-label": logits.sigmoid(), "single-label": logits.softmax(dim=1)}
    return activations.get(task, logits).mean(dim=0).numpy()


@pytest.mark.parametrize("task", LABELS)
def test_the_values_are_the_networks_and_the_probes(home, task):
    probe = home.probes[task]
    folder = home.predict(probe=probe)
    assert list(rows(folder / "predictions.csv")[0]) == ["track", *LABELS[task], "warnings"]
    table, found = predicted(folder), read_json(folder / "predictions.json")
    assert list(table) == ["a/000.flac", "a/002.flac", "b/001.flac"]
    assert (found["task"], [own["track"] for own in found["tracks"]]) == (task, list(table))
    (name,) = set(found["tracks"][0]) - {"track", "warnings"}
    for entry, (track, own) in zip(found["tracks"], table.items(), strict=True):
        np.testing.assert_allclose(own, by_hand(home, probe, task, track), rtol=1e-4, atol=1e-5)
        assert entry[name] == pytest.approx(dict(zip(LABELS[task], own, strict=True)), abs=1e-6)


def test_a_probe_of_mixed_blocks_on_one_file(home):
    probe = home.probe("data.embeddings_dir=embeddings data.block=mix")
    table = predicted(home.predict(f"audio={home.music}/b/001.flac", probe=probe))
    expected = by_hand(home, probe, "multi-label", "b/001.flac")
    assert list(table) == ["001.flac"]
    np.testing.assert_allclose(table["001.flac"], expected, rtol=1e-4, atol=1e-5)


def test_a_silent_track_has_a_warning_beside_its_labels(home, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(48_000), RATE)
    soundfile.write(tmp_path / "noise.wav", noise(3), RATE)
    folder = home.predict(f"audio={tmp_path}")
    warned = {row["track"]: row["warnings"] for row in rows(folder / "predictions.csv")}
    assert warned == {"noise.wav": "", "silence.wav": "silent"}
    found = read_json(folder / "predictions.json")["tracks"]
    assert [own["warnings"] for own in found] == [[], ["silent"]]


def test_a_broken_file_is_listed(home, tmp_path):
    music, kept = shutil.copytree(home.music, tmp_path / "music"), tmp_path / "kept/2sec/1"
    (music / "broken.mp3").write_bytes(b"no music" * 100)
    typed = f"audio={music} predict.out_dir={tmp_path}/kept"
    assert len(predicted(home.predict(typed, code=1))) == 3
    assert [row["key"] for row in rows(kept / "failed.csv")] == ["broken.mp3"]
    # The embedding of a file that was replaced by an unreadable one is stale.
    (music / "b/001.flac").write_bytes(b"no music" * 100)
    assert list(predicted(home.predict(typed, code=1))) == ["a/000.flac", "a/002.flac"]
    assert (kept / "b/001.flac.embeddings.npy").is_file()


# ---- the model, and the settings of its extraction -----------------------------------------------


def other_model(folder: Path) -> Path:
    """A model of the same sizes and other weights."""
    save_small_model(folder)
    weights = load_file(folder / "model.safetensors")
    weights["cls_token"] = weights["cls_token"] + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_embeddings_of_another_model_or_setting_are_not_used(home, tmp_path):
    """In the folder of the new embeddings."""
    other = other_model(tmp_path / "other")
    home.refuse("mismatch", "predict.checkpoint", f"predict.checkpoint={other}", place="other")
    for name, typed in (
        ("model", f"maest.checkpoint={other}"),
        ("hop", "inference.patch_hop=0.96"),
    ):
        home.extract(str(tmp_path / name), typed, f"inference.audio={home.music}")
        home.refuse("mismatch", "predict.out_dir", f"predict.out_dir={tmp_path / name}")


def test_a_name_that_now_gives_another_model(home, tmp_path):
    """The weights that the probe was made with are no longer those of their model's name."""
    probe = shutil.copytree(home.probes["multi-label"], tmp_path / "probe")
    about = read_json(probe / "probe/probe.json")
    about["made_by"] |= {"arch": "maest-tiny-scores", "checkpoint": None}
    write_json(probe / "probe/probe.json", about)
    line = f"predict with probe={probe} audio={home.music}"
    error = refused("ex_tl.py", line, home.folder, "mismatch", "predict.checkpoint")
    wanted = "maest-tiny-scores", about["extraction"]["model"][:12]
    assert all(part in error.message for part in wanted)
    good("ex_tl.py", f"{line} predict.checkpoint={home.model}", home.folder)


def test_a_model_that_has_moved_is_named(home, tmp_path):
    moved = shutil.move(home.model, tmp_path / "elsewhere")
    try:
        home.refuse("missing", "predict.checkpoint", place=str(home.model))
        home.predict(f"predict.checkpoint={moved}")
    finally:
        shutil.move(moved, home.model)


def test_log_mel_files_of_the_central_part(home, tmp_path):
    """As much of new music is read as ``preprocess.py --seconds`` kept of the old."""
    with contextlib.chdir(tmp_path):
        assert preprocess([str(home.folder / "old"), "mels", "--seconds", "1.2"]) == 0
    everything = {}
    for split in SPLITS.values():
        part = read_any_groundtruth(str(home.folder / f"multi-label/groundtruth-{split}.pk"))
        everything |= {key: [1, 0, 0] for key in part.keys}
    write_groundtruth(tmp_path / "all.pk", everything)
    line = (
        f"extract_embeddings with maest.checkpoint={home.model} datamodule.base_dir=mels "
        "datamodule.groundtruth_predict=all.pk inference.transformer_block=1"
    )
    good("ex_maest.py", line, tmp_path)
    probe = home.probe("data.embeddings_dir=embeddings", home=tmp_path)
    extract = Extractor(home.model, blocks=[1])
    for name, found in arrays(home.predict(probe=probe) / "embeddings/2sec/1").items():
        waveform = read_audio(home.music / name.removesuffix(".embeddings.npy"), 1.2)
        assert len(waveform) <= 1.2 * RATE
        soundfile.write(tmp_path / "part.wav", waveform, RATE, "FLOAT")
        expected = extract(tmp_path / "part.wav").embeddings[1]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def asked(extraction: dict | None = None, **made_by):
    """Settings with which new music is extracted for a probe."""
    made = {
        **{"input": "audio", "patch_seconds": 2.0, "hop_seconds": 1.0, "tail": "pad", "block": 7},
        **{"patchout": {"s_patchout_t_interleaved": 2}, "precision": "32-true", "pool": "mean"},
        **{"quantize": None},
    }
    made_by = {"arch": "maest_tiny", "checkpoint": None} | made_by
    about = {"extraction": made | (extraction or {}), "made_by": made_by}
    return extraction_settings(about, ProbeSettings(audio="music"), Path("out"))


MELS, AVERAGE = {"input": "log-mel files"}, "maest.checkpoint_swa_weights"


@pytest.mark.parametrize(
    ("extraction", "made_by", "setting", "value"),
    [
        ({}, {}, "inference.patch_hop", 1.0),
        ({}, {}, "inference.tail", "pad"),
        ({}, {}, "inference.transformer_block", (7,)),
        ({}, {}, "datamodule.clip_length", 2.0),
        ({}, {}, "maest.arch", "maest_tiny"),
        ({}, {}, "maest.s_patchout_t_interleaved", 2),
        ({"quantize": "int8"}, {}, "trainer.accelerator", "cpu"),
        ({}, {"checkpoint_swa_weights": True}, AVERAGE, None),
        ({}, {"checkpoint_swa_weights": False}, AVERAGE, False),
        ({}, {}, AVERAGE, False),  # version 0.1 took it only on request
        ({}, {}, "inference.max_seconds", None),
        ({"max_seconds": 60.0}, {}, "inference.max_seconds", 60.0),
        ({}, {}, "inference.max_windows", None),  # older ones do not say so
        ({"max_windows": 4}, {}, "inference.max_windows", 4),
        (MELS, {"max_seconds": 60.0}, "inference.max_seconds", 60.0),
        (MELS, {"max_seconds": None}, "inference.max_seconds", None),
        (MELS, {}, "inference.max_seconds", 300.0),  # of version 0.1
    ],
)
def test_a_setting_of_the_extraction_is_repeated(extraction, made_by, setting, value):
    assert attrgetter(setting)(asked(extraction, **made_by)) == value


@pytest.mark.parametrize(("gpu", "precision"), [(True, "16-mixed"), (False, "32-true")])
def test_the_precision_is_that_of_the_extraction_where_it_can_be(monkeypatch, gpu, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert asked({"precision": "16-mixed"}).trainer.precision == precision


# ---- what is refused -----------------------------------------------------------------------------


def test_what_is_no_finished_probe(home):
    """``exp_logs/latest`` is what a training leaves: the hint lists the probes."""
    latest, probe = home.folder / "exp_logs/latest", home.probes["multi-label"]
    (home.folder / "exp_logs/training/model").mkdir(parents=True)
    latest.symlink_to("training")
    line = "predict with audio=new probe=exp_logs/latest"
    error = refused("ex_tl.py", line, home.folder, "missing", "probe", "probe.json")
    latest.unlink()
    assert any(f"exp_logs/{own.name}" in error.hint for own in home.probes.values())
    assert "exp_logs/latest," not in error.hint
    home.refuse("missing", "probe", "probe=nowhere", place="nowhere")
    home.refuse("missing", "probe", f"probe={probe}/results.json", place="results.json")


def test_a_probe_that_is_damaged(home, tmp_path):
    copied = shutil.copytree(home.probes["multi-label"], tmp_path / "probe")
    weights, about = copied / "probe/seed-1.safetensors", copied / "probe/probe.json"
    whole, content = weights.read_bytes(), read_json(about)
    weights.write_bytes(whole[:100])
    home.refuse("corrupt", "probe", f"probe={copied}", place="seed-1.safetensors")
    weights.unlink()
    home.refuse("corrupt", "probe", f"probe={copied}", place="seed-1.safetensors")
    weights.write_bytes(whole)
    for changes in ({"features": "mel_statistics"}, {"extraction": None}):
        write_json(about, content | changes)
        home.refuse("unsupported", "probe", f"probe={copied}", place="probe")


def test_what_is_not_given(home):
    home.refuse("missing", "probe", "probe=None")
    home.refuse("missing", "audio", "audio=None")
    home.refuse("missing", "audio", "audio=nowhere", place="nowhere")

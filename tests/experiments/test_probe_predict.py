"""A finished probe on new music: what ``python ex_tl.py predict`` writes, and what it refuses."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from command_line import bad, good, newest, run
from music import save_small_model, write_music
from safetensors.numpy import load_file, save_file

from maest.config import ProbeSettings
from maest.datasets.embeddings import find_folders, read_tokens
from maest.datasets.groundtruth import read_groundtruth, write_groundtruth, write_labels
from maest.datasets.preprocess import main as preprocess
from maest.experiments.probe_predict import extraction_settings
from maest.helpers.audio.reading import read_audio
from maest.models.extraction import Extractor

BLOCK = 1
LABELS = {
    "multi-label": ["drums", "flute", "voice"],
    "single-label": ["jig", "mass", "reel"],
    "regression": ["arousal", "tempo"],
}


@dataclass
class Home:
    """A working directory with music, its embeddings, and a probe for each task."""

    folder: Path
    model: Path
    music: Path
    probes: dict[str, Path]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Home:
    folder = tmp_path_factory.mktemp("home")
    model = save_small_model(folder / "model")
    names = write_music(folder / "old", 16)
    good(
        "ex_maest.py",
        f"extract_embeddings with maest.checkpoint={model} inference.audio=old "
        f"inference.transformer_block=[{BLOCK},2]",
        folder,
    )
    rng = np.random.default_rng(0)
    probes = {}
    for task, labels in LABELS.items():
        targets = {
            "multi-label": rng.random((16, 3)) < 0.5,
            "single-label": np.eye(3, dtype=bool)[np.arange(16) % 3],
            "regression": rng.normal((60, 120), (5, 30), (16, 2)).astype(np.float32),
        }[task]
        for split, rows in (("train", range(8)), ("validation", range(8, 12)),
                            ("test", range(12, 16))):  # fmt: skip
            # As they are named where log-mel files are made of the same music.
            own = {names[i].replace(".flac", ".mmap"): targets[i] for i in rows}
            write_groundtruth(folder / task / f"groundtruth-{split}.pk", own, task)
        write_labels(folder / task / "labels.json", labels)
        good(
            "ex_tl.py",
            f"with data.embeddings_dir=embeddings data.block={BLOCK} data.types=ct data.task={task}"
            f" data.groundtruth_train={task}/groundtruth-train.pk seeds=2 probe.max_epochs=4"
            f" data.groundtruth_val={task}/groundtruth-validation.pk probe.lr=0.01"
            f" data.groundtruth_test={task}/groundtruth-test.pk",
            folder,
        )
        probes[task] = newest(folder)
    write_music(folder / "new", 3)
    return Home(folder, model, folder / "new", probes)


def predicted(folder: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Columns, tracks and values of predictions.csv."""
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    values = np.array([[float(cell) for cell in row[1:-1]] for row in rows])
    return header, [row[0] for row in rows], values


def by_hand(home: Home, task: str, track: str) -> np.ndarray:
    """The network's embedding of a whole track, through each seed's layers."""
    embedding = Extractor(home.model, blocks=[BLOCK])(home.music / track).embeddings[BLOCK]
    features = embedding[[0, 2]].mean(axis=0)
    outputs = []
    for seed in (0, 1):
        state = load_file(home.probes[task] / "probe" / f"seed-{seed}.safetensors")
        hidden = np.maximum(state["net.0.weight"] @ features + state["net.0.bias"], 0)
        out = state["net.2.weight"] @ hidden + state["net.2.bias"]
        outputs.append(torch.from_numpy(out * state["scale"] + state["shift"]))
    logits = torch.stack(outputs)
    if task == "multi-label":
        logits = logits.sigmoid()
    elif task == "single-label":
        logits = logits.softmax(dim=1)
    return logits.mean(dim=0).numpy()


@pytest.mark.parametrize("task", LABELS)
def test_the_values_are_the_networks_and_the_probes(home, task):
    out = good(
        "ex_tl.py", f"predict with probe={home.probes[task]} audio={home.music}", home.folder
    )
    header, tracks, values = predicted(newest(home.folder))
    assert header == ["track", *LABELS[task], "warnings"]
    assert tracks == ["a/000.flac", "a/002.flac", "b/001.flac"]
    for track, own in zip(tracks, values, strict=True):
        np.testing.assert_allclose(own, by_hand(home, task, track), rtol=1e-4, atol=1e-5)
    assert "3 tracks" in out
    assert "a/000.flac: " in out
    found = json.loads((newest(home.folder) / "predictions.json").read_text())
    assert (found["task"], [own["track"] for own in found["tracks"]]) == (task, tracks)
    (figure,) = set(found["tracks"][0]) - {"track", "warnings"}
    for entry, own in zip(found["tracks"], values, strict=True):
        assert list(entry[figure].values()) == pytest.approx(list(own), abs=1e-6)
        assert list(entry[figure]) == LABELS[task]


def test_a_silent_track_has_a_warning_beside_its_labels(home, tmp_path):
    soundfile.write(tmp_path / "silence.wav", np.zeros(48_000), 16_000)
    soundfile.write(tmp_path / "noise.wav", np.random.default_rng(0).normal(0, 0.1, 48_000), 16_000)
    out = good(
        "ex_tl.py", f"predict with probe={home.probes['multi-label']} audio={tmp_path}", home.folder
    )
    assert "silence.wav: " in out
    assert "(silent" in out
    assert "1 with warnings" in out
    with (newest(home.folder) / "predictions.csv").open(newline="") as file:
        assert {row["track"]: row["warnings"] for row in csv.DictReader(file)} == {
            "noise.wav": "",
            "silence.wav": "silent",
        }
    found = json.loads((newest(home.folder) / "predictions.json").read_text())
    assert [own["warnings"] for own in found["tracks"]] == [[], ["silent"]]


def test_a_probe_of_mixed_blocks(home):
    task = "multi-label"
    good(
        "ex_tl.py",
        f"with {home.probes[task].relative_to(home.folder)}/config.json data.block=mix",
        home.folder,
    )
    probe = newest(home.folder)
    out = good("ex_tl.py", f"predict with probe={probe} audio={home.music}", home.folder)
    assert "/{1,2}" in out
    _, tracks, values = predicted(newest(home.folder))
    for track, own in zip(tracks, values, strict=True):
        embeddings = Extractor(home.model, blocks=[1, 2])(home.music / track).embeddings
        x = np.stack([embeddings[block][[0, 2]].mean(axis=0) for block in (1, 2)])
        x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
        found = []
        for seed in (0, 1):
            state = load_file(probe / "probe" / f"seed-{seed}.safetensors")
            weights = np.exp(state["mix"]) / np.exp(state["mix"]).sum()
            hidden = state["net.0.weight"] @ (weights @ x) + state["net.0.bias"]
            logits = state["net.2.weight"] @ np.maximum(hidden, 0) + state["net.2.bias"]
            found.append(1 / (1 + np.exp(-logits)))
        np.testing.assert_allclose(own, np.mean(found, axis=0), rtol=1e-4, atol=1e-5)


def test_one_file(home):
    line = f"predict with probe={home.probes['multi-label']} audio={home.music}/b/001.flac"
    out = good("ex_tl.py", line, home.folder)
    _, tracks, values = predicted(newest(home.folder))
    assert tracks == ["001.flac"]
    highest = LABELS["multi-label"][values[0].argmax()]
    assert f"001.flac: {highest} {values[0].max():.3f}, " in out
    np.testing.assert_allclose(
        values[0], by_hand(home, "multi-label", "b/001.flac"), rtol=1e-4, atol=1e-5
    )


def test_a_broken_file_costs_that_file_only(home, tmp_path):
    shutil.copytree(home.music, tmp_path / "music")
    (tmp_path / "music" / "broken.mp3").write_bytes(b"no music" * 100)
    done = run("ex_tl.py", f"predict with probe={home.probes['multi-label']} "
               f"audio={tmp_path}/music predict.out_dir={tmp_path}/kept", home.folder)  # fmt: skip
    assert done.code == 1
    assert "1 failed" in done.out
    _, tracks, _ = predicted(newest(home.folder))
    assert len(tracks) == 3
    kept = tmp_path / "kept" / "2sec" / str(BLOCK)
    assert "broken.mp3" in (kept / "failed.csv").read_text()
    done = run("ex_tl.py", f"predict with probe={home.probes['multi-label']} "
               f"audio={tmp_path}/music predict.out_dir={tmp_path}/kept", home.folder)  # fmt: skip
    assert "3 there already" in done.out
    # What is there of a file that has been replaced since, by one that cannot be read, is stale.
    (tmp_path / "music" / "b" / "001.flac").write_bytes(b"no music" * 100)
    run("ex_tl.py", f"predict with probe={home.probes['multi-label']} "
        f"audio={tmp_path}/music predict.out_dir={tmp_path}/kept", home.folder)  # fmt: skip
    _, tracks, _ = predicted(newest(home.folder))
    assert tracks == ["a/000.flac", "a/002.flac"]
    assert (kept / "b" / "001.flac.embeddings.npy").is_file()


def test_embeddings_of_another_model_or_setting_are_not_used(home, tmp_path):
    """Where the folder of the new embeddings holds some already."""
    line = f"predict with probe={home.probes['multi-label']} audio={home.music}"
    for name, options in (
        ("model", f"maest.checkpoint={other_model(tmp_path / 'other')}"),
        ("hop", f"maest.checkpoint={home.model} inference.patch_hop=0.96"),
    ):
        good(
            "ex_maest.py",
            f"extract_embeddings with {options} inference.transformer_block={BLOCK} "
            f"inference.audio={home.music} inference.out_dir={tmp_path / name}",
            home.folder,
        )
        message = bad("ex_tl.py", f"{line} predict.out_dir={tmp_path / name}", home.folder)
        assert f"predict.out_dir: {tmp_path / name}" in message


def other_model(folder: Path) -> Path:
    """A model of the same sizes and other weights."""
    save_small_model(folder)
    weights = load_file(folder / "model.safetensors")
    weights["cls_token"] = weights["cls_token"] + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_model_that_has_moved_is_named(home, tmp_path):
    probe = home.probes["multi-label"]
    assert json.loads((probe / "probe" / "probe.json").read_text())["made_by"]["checkpoint"] == str(
        home.model
    )
    moved = shutil.move(home.model, tmp_path / "elsewhere")
    line = f"predict with probe={probe} audio={home.music}"
    try:
        message = bad("ex_tl.py", line, home.folder)
        assert str(home.model) in message
        assert "predict.checkpoint" in message
        good("ex_tl.py", f"{line} predict.checkpoint={moved}", home.folder)
    finally:
        shutil.move(moved, home.model)


def test_another_model_is_refused(home, tmp_path):
    other = other_model(tmp_path / "other")
    line = f"predict with probe={home.probes['multi-label']} audio={home.music}"
    message = bad("ex_tl.py", f"{line} predict.checkpoint={other}", home.folder)
    assert f"predict.checkpoint: {other}: " in message


def test_the_newest_training_is_no_probe(home):
    """``exp_logs/latest`` is what a training leaves: the message lists the probes."""
    (home.folder / "exp_logs" / "training" / "model").mkdir(parents=True)
    latest = home.folder / "exp_logs" / "latest"
    latest.symlink_to("training")
    try:
        message = bad("ex_tl.py", "predict with probe=exp_logs/latest audio=new", home.folder)
    finally:
        latest.unlink()
    assert "probe: exp_logs/latest/probe/probe.json: " in message
    probes = [f"exp_logs/{home.probes[task].name}" for task in reversed(LABELS)]
    assert sum(probe in message for probe in probes) >= 1
    assert "exp_logs/latest," not in message


def test_what_is_no_finished_probe(home, tmp_path):
    line = f"audio={home.music}"
    message = bad("ex_tl.py", f"predict with probe=nowhere {line}", home.folder)
    assert "probe: nowhere: " in message
    file = home.probes["multi-label"] / "results.json"
    message = bad("ex_tl.py", f"predict with probe={file} {line}", home.folder)
    assert f"exp_logs/{home.probes['multi-label'].name}" in message
    copied = shutil.copytree(home.probes["multi-label"], tmp_path / "probe")
    weights = copied / "probe" / "seed-1.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert str(copied) in bad("ex_tl.py", f"predict with probe={copied} {line}", home.folder)
    weights.unlink()
    assert "seed-1" in bad("ex_tl.py", f"predict with probe={copied} {line}", home.folder)
    about = copied / "probe" / "probe.json"
    for changes, words in (
        ({"features": "mel_statistics"}, "mel_statistics"),
        ({"extraction": None}, "manifest.json"),
    ):
        whole = json.loads((home.probes["multi-label"] / "probe" / "probe.json").read_text())
        about.write_text(json.dumps(whole | changes))
        shutil.copy(home.probes["multi-label"] / "probe" / "seed-1.safetensors", weights)
        assert words in bad("ex_tl.py", f"predict with probe={copied} {line}", home.folder)


def test_what_is_not_named(home):
    probe = home.probes["multi-label"]
    assert "probe=exp_logs/4" in bad("ex_tl.py", f"predict with audio={home.music}", home.folder)
    assert "audio=my/music" in bad("ex_tl.py", f"predict with probe={probe}", home.folder)
    assert "nowhere" in bad("ex_tl.py", f"predict with probe={probe} audio=nowhere", home.folder)


def test_the_settings_of_the_extraction_are_kept(home):
    """Hop, tail and block are the probe's, whatever this program's defaults are."""
    folder = home.folder / "hop"
    folder.mkdir(exist_ok=True)
    extract = (
        f"extract_embeddings with maest.checkpoint={home.model} inference.out_dir=hop/embeddings "
        f"inference.patch_hop=0.96 inference.tail=drop inference.transformer_block={BLOCK}"
    )
    assert run("ex_maest.py", f"{extract} inference.audio=old", home.folder).code == 1  # short ones
    truths = " ".join(
        f"data.groundtruth_{short}=multi-label/groundtruth-{split}.pk"
        for short, split in (("train", "train"), ("val", "validation"), ("test", "test"))
    )
    line = f"with data.embeddings_dir=hop/embeddings {truths} data.missing=skip"
    good("ex_tl.py", f"{line} seeds=1 probe.max_epochs=1", home.folder)
    line = f"predict with probe={newest(home.folder)} audio=new predict.out_dir=hop/found"
    run("ex_tl.py", line, home.folder)  # too short tracks fail, as tail=drop has it
    good_ones = sorted(p.name for p in (home.folder / "hop/found").rglob("*.npy"))
    run("ex_maest.py", extract.replace("hop/embeddings", "hop/again") + " inference.audio=new",
        home.folder)  # fmt: skip
    again = sorted(p for p in (home.folder / "hop/again").rglob("*.npy"))
    assert good_ones == sorted(p.name for p in again) != []
    for path in again:
        same = home.folder / "hop/found" / path.relative_to(home.folder / "hop/again")
        np.testing.assert_array_equal(np.load(path), np.load(same))


def test_log_mel_files_of_the_central_part(home, tmp_path):
    """A probe on what ``preprocess.py --seconds`` keeps hears as much of new music."""
    with contextlib.chdir(tmp_path):
        assert preprocess([str(home.folder / "old"), "mels", "--seconds", "1.2"]) == 0
    truths = home.folder / "multi-label"
    splits = {s: truths / f"groundtruth-{s}.pk" for s in ("train", "validation", "test")}
    everything = {}
    for path in splits.values():
        split = read_groundtruth(path)
        everything |= dict(zip(split.keys, split.targets, strict=True))
    write_groundtruth(tmp_path / "all.pk", everything)
    good(
        "ex_maest.py",
        f"extract_embeddings with maest.checkpoint={home.model} datamodule.base_dir=mels "
        f"datamodule.groundtruth_predict=all.pk inference.transformer_block={BLOCK}",
        tmp_path,
    )
    typed = " ".join(
        f"data.groundtruth_{short}={splits[name]}"
        for short, name in (("train", "train"), ("val", "validation"), ("test", "test"))
    )
    line = f"with data.embeddings_dir=embeddings {typed} seeds=1 probe.max_epochs=1"
    good("ex_tl.py", line, tmp_path)
    probe = newest(tmp_path)
    good("ex_tl.py", f"predict with probe={probe} audio={home.music}", tmp_path)
    extract = Extractor(home.model, blocks=[BLOCK])
    for path in sorted((newest(tmp_path) / "embeddings").rglob("*.npy")):
        track = path.relative_to(newest(tmp_path) / "embeddings" / "2sec" / str(BLOCK))
        waveform = read_audio(home.music / str(track).removesuffix(".embeddings.npy"), 1.2)
        assert len(waveform) <= 1.2 * 16_000
        soundfile.write(tmp_path / "part.wav", waveform, 16_000, "FLOAT")
        expected = extract(tmp_path / "part.wav").embeddings[BLOCK]
        np.testing.assert_allclose(np.load(path), expected, rtol=1e-3, atol=1e-4)


MADE = {
    "input": "audio",
    "patch_seconds": 2.0,
    "hop_seconds": 1.0,
    "tail": "pad",
    "patchout": {"s_patchout_t_interleaved": 2},
    "precision": "32-true",
    "quantize": None,
    "block": 7,
    "pool": "mean",
}


def asked(extraction: dict | None = None, **made_by):
    """The settings of the extraction that a probe asks for."""
    made_by = {"arch": "maest_tiny", "checkpoint": None} | made_by
    about = {"extraction": MADE | (extraction or {}), "made_by": made_by}
    return extraction_settings(about, ProbeSettings(audio="music"), Path("out"))


def test_all_settings_of_the_extraction_are_asked_for():
    found = asked()
    own = found.inference
    assert (own.patch_hop, own.tail, own.transformer_block) == (1.0, "pad", (7,))
    assert (found.datamodule.clip_length, found.maest.arch) == (2.0, "maest_tiny")
    assert found.maest.s_patchout_t_interleaved == 2
    assert found.trainer.precision == "32-true"


@pytest.mark.parametrize(("gpu", "precision"), [(True, "16-mixed"), (False, "32-true")])
def test_the_precision_is_that_of_the_extraction_where_it_can_be(monkeypatch, gpu, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert asked({"precision": "16-mixed"}).trainer.precision == precision


def test_quantized_embeddings_are_made_on_a_cpu():
    found = asked({"quantize": "int8"})
    assert (found.inference.quantize, found.trainer.accelerator) == ("int8", "cpu")


@pytest.mark.parametrize(("kept", "typed"), [(True, None), (False, False), (None, False)])
def test_the_average_is_taken_where_it_was(kept, typed):
    """Version 0.1 took it only where it was asked for."""
    made_by = {} if kept is None else {"checkpoint_swa_weights": kept}
    assert asked(**made_by).maest.checkpoint_swa_weights is typed


@pytest.mark.parametrize(
    ("extraction", "made_by", "seconds"),
    [
        ({}, {}, None),
        ({"max_seconds": 60.0}, {}, 60.0),
        ({"input": "log-mel files"}, {"max_seconds": 60.0}, 60.0),
        ({"input": "log-mel files"}, {"max_seconds": None}, None),
        ({"input": "log-mel files"}, {}, 300.0),  # of version 0.1
    ],
)
def test_as_much_of_each_track_is_heard(extraction, made_by, seconds):
    assert asked(extraction, **made_by).inference.max_seconds == seconds


def test_patches_that_were_kept_give_the_pooled_embedding(home):
    """Of tracks whose last patch is shorter than the others, too."""
    made = {}
    for pool in ("none", "mean"):
        good(
            "ex_maest.py",
            f"extract_embeddings with maest.checkpoint={home.model} inference.audio=old "
            f"inference.transformer_block={BLOCK} inference.out_dir=pool/{pool} "
            f"datamodule.clip_length=1 inference.patch_hop=0.8 inference.pool={pool}",
            home.folder,
        )
        (folder,) = find_folders(home.folder / "pool" / pool)
        paths = list(folder.folder.rglob("*.npy"))
        assert {np.load(path).ndim for path in paths} == {3 if pool == "none" else 2}
        made[pool] = {path.relative_to(folder.folder): read_tokens(path) for path in paths}
    assert len(made["none"]) == 16
    for name, expected in made["mean"].items():
        np.testing.assert_allclose(made["none"][name], expected, rtol=1e-5, atol=1e-6)

"""The whole way through, as a user types it: pre-train → model folder → extract → probe."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import bad, good, newest, read_history, run, settings  # isort: skip

from maest import config
from maest.datasets.groundtruth import write_groundtruth, write_labels
from maest.datasets.melspectrograms import read_patches
from maest.experiments.plan import decided
from maest.models import get_maest

ROOT = Path(__file__).resolve().parents[2]
QUICK = (
    "trainer.max_epochs=1 trainer.limit_train_batches=2 maest.s_patchout_t=2 "
    "datamodule.clip_length=1.5"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory, toy) -> Path:
    """A working directory with a finished pre-training run, exp_logs/1."""
    home = tmp_path_factory.mktemp("home")
    good("ex_maest.py", f"with {settings(toy)} {QUICK}", home)
    return home


def test_pretraining_leaves_everything_in_its_folder(home, toy):
    folder = home / "exp_logs" / "1"
    assert (home / "exp_logs" / "latest").resolve() == folder
    results = json.loads((folder / "results.json").read_text())
    assert results["steps"] == 2
    assert 0 <= results["val_ap"] <= 1
    assert [row["label"] for row in results["per_label"]] == list(toy.labels)
    assert results["label_frequencies"]["ap"] == pytest.approx(1 / 3)
    for name in ("learning_curve.png", "labels.png", "history.csv", "config.json", "run.json"):
        assert (folder / name).stat().st_size, name
    assert list((folder / "checkpoints").glob("*.ckpt"))
    assert list((folder / "tensorboard").rglob("events.*"))
    assert "val_ap" in json.loads((folder / "metrics.json").read_text())
    card = json.loads((folder / "model" / "config.json").read_text())
    assert card["arch"] == "maest_tiny"
    assert card["labels"] == list(toy.labels)
    assert card["sizes"]["input_t"] == 93
    assert card["trained_on"]["groundtruth"].endswith("/groundtruth-train.pk")
    assert card["trained_on"]["tracks"] == 36
    assert (results["best_epoch"], results["best_steps"]) == (1, 2)


def test_the_plan_is_shown_and_nothing_is_trained(toy, tmp_path):
    line = f"print_plan with {settings(toy)} datamodule.clip_length=1.5 trainer.max_epochs=2"
    out = good("ex_maest.py", line, tmp_path)
    shown = dict(row.split(":", 1) for row in out.splitlines())
    # 16 clips of each of 36 tracks, 8 in a batch
    assert shown["clips"].strip().startswith("576 ")
    assert shown["steps"].strip() == "144, 72 an epoch"
    assert shown["patchout"].strip().startswith("4 of 8 ")
    assert "36 training and 12 validation" in shown["tracks"]
    assert not list((tmp_path / "exp_logs").glob("*"))


def test_same_seed_same_result(home, toy, tmp_path):
    good("ex_maest.py", f"with {settings(toy)} {QUICK} datamodule.num_workers=2", tmp_path)
    first, again = (
        get_maest(checkpoint=folder / "exp_logs" / "1" / "model").state_dict()
        for folder in (home, tmp_path)
    )
    for name, value in first.items():
        assert torch.equal(value, again[name]), name
    good("ex_maest.py", f"with {settings(toy)} {QUICK} seed=1", tmp_path)
    other = get_maest(checkpoint=tmp_path / "exp_logs" / "2" / "model").state_dict()
    assert not torch.equal(first["head.1.weight"], other["head.1.weight"])


def test_embeddings_are_the_networks_own(home, toy):
    out = good(
        "ex_maest.py",
        f"extract_embeddings with {settings(toy)} maest.checkpoint=exp_logs/latest/model "
        "inference.transformer_block=7",
        home,
    )
    assert "12 tracks done, 0 failed" in out
    model = get_maest(checkpoint=home / "exp_logs" / "1" / "model")
    for key in ("test/00.mmap", "test/07.mmap"):
        found = np.load(home / f"embeddings/run-1/1.5sec/7/{key}.embeddings.npy")
        assert found.shape == (3, 192)
        assert found.dtype == np.float32
        pieces = read_patches(toy.mels, key, model.input_t)
        with torch.no_grad():
            values = [
                model(model.normalise(torch.from_numpy(p).float().T[None]), 7)[1] for p in pieces
            ]
        expected = np.average(
            torch.cat(values).reshape(-1, 3, 192).numpy(),
            axis=0,
            weights=[len(p) for p in pieces],
        )
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_final_embedding_patches_apart_and_logits(home, toy):
    base = f"with {settings(toy)} maest.checkpoint=exp_logs/latest/model inference.out_dir=out"
    good("ex_maest.py", f"extract_embeddings {base} inference.transformer_block=-1", home)
    good("ex_maest.py", f"extract_embeddings {base} inference.pool=none", home)
    good("ex_maest.py", f"extract_logits {base}", home)
    model = get_maest(checkpoint=home / "exp_logs" / "1" / "model")
    for path in sorted(toy.mels.glob("test/*")):
        key = f"test/{path.name}"
        pieces = read_patches(path.parent, path.name, model.input_t)
        final = np.load(home / f"out/1.5sec/final/{key}.embeddings.npy")
        patches = np.load(home / f"out/1.5sec/7/{key}.embeddings.npy")
        logits = np.load(home / f"out/1.5sec/logits/{key}.logits.npy")
        assert (final.shape, patches.shape) == ((192,), (len(pieces), 3, 192))
        with torch.no_grad():
            own = [model(model.normalise(torch.from_numpy(p).float().T[None]))[0] for p in pieces]
        expected = np.average(torch.cat(own).numpy(), axis=0, weights=[len(p) for p in pieces])
        np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_test_command(home, toy):
    base = f"test with {settings(toy)}"
    out = good("ex_maest.py", f"{base} maest.checkpoint=exp_logs/latest/model", home)
    assert "12 tracks: AP" in out
    assert "maest.checkpoint: " in bad("ex_maest.py", base, home)


def test_labels_in_another_order_are_not_of_one_task(home, toy, tmp_path):
    (tmp_path / "test.pk").write_bytes(toy.groundtruth("test").read_bytes())
    write_labels(tmp_path / "labels.json", reversed(toy.labels))
    line = f"test with {settings(toy)} maest.checkpoint=exp_logs/latest/model"
    message = bad("ex_maest.py", f"{line} datamodule.groundtruth_test={tmp_path}/test.pk", home)
    assert f"{tmp_path / 'labels.json'}: " in message


def test_probe(home, toy):
    for split in ("train", "validation", "test"):
        good(
            "ex_maest.py",
            f"extract_embeddings with {settings(toy)} maest.checkpoint=exp_logs/latest/model "
            f"datamodule.groundtruth_predict={toy.groundtruth(split)} inference.out_dir=probe",
            home,
        )
    data = " ".join(
        f"data.groundtruth_{name}={toy.groundtruth(split)}"
        for name, split in (("train", "train"), ("val", "validation"), ("test", "test"))
    )
    line = f"with {data} data.embeddings_dir=probe/1.5sec/7 probe.max_epochs=3 seeds=2"
    out = good("ex_tl.py", line, home)
    assert "over 2 seeds" in out
    folder = max((home / "exp_logs").glob("[0-9]*"), key=lambda path: int(path.name))
    results = json.loads((folder / "results.json").read_text())
    assert len(results["ap"]["values"]) == 2
    assert results["features"] == 192
    assert (folder / "labels.png").stat().st_size
    assert (folder / "labels.csv").read_text().startswith("label,test_positives,ap,ap_std")

    good("ex_tl.py", line, home)
    again = json.loads((folder.parent / str(int(folder.name) + 1) / "results.json").read_text())
    assert again["ap"] == results["ap"]

    # loud bands are what mel statistics are made of
    mel = f"data.features=mel_statistics data.base_dir={toy.mels} probe.lr=0.01 probe.batch_size=8"
    out = good("ex_tl.py", f"with {data} {mel} probe.max_epochs=10 seeds=1", home)
    assert "test AP 1.0000" in out

    message = bad("ex_tl.py", f"with {data} data.embeddings_dir=nowhere", home)
    assert "nowhere: no such folder" in message
    (home / "probe/1.5sec/7/test/00.mmap.embeddings.npy").unlink()
    message = bad("ex_tl.py", line, home)
    assert "test/00.mmap.embeddings.npy: " in message
    assert "1 of 12 " in message


def test_a_checkpoint_can_be_used_as_a_model(home):
    """What the weights alone do not say is in the checkpoint too."""
    (path,) = (home / "exp_logs" / "1" / "checkpoints").glob("best-*.ckpt")
    found = get_maest(checkpoint=path)
    expected = get_maest(checkpoint=home / "exp_logs" / "1" / "model")
    assert found.sizes() == expected.sizes()
    assert found.labels == expected.labels
    assert expected.norm_mean != pytest.approx(2.0676, abs=0.1)  # measured on the toy set
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_a_training_can_be_continued(home, toy, tmp_path):
    """The epochs, the best checkpoint and the figures of the first part are not lost."""
    line = f"with {settings(toy)} {QUICK} module.lr=1e-30"
    good("ex_maest.py", line.replace("module.lr=1e-30", ""), tmp_path)
    last = "exp_logs/1/checkpoints/last.ckpt"
    line = line.replace("trainer.max_epochs=1", f"trainer.max_epochs=4 ckpt_path={last}")
    good("ex_maest.py", f"{line} trainer.check_val_every_n_epoch=3", tmp_path)
    first, second = (
        json.loads((tmp_path / f"exp_logs/{i}/results.json").read_text()) for i in (1, 2)
    )
    assert [row["epoch"] for row in second["epochs"]] == [1, 2, 3, 4]
    assert second["epochs"][0] == first["epochs"][0]
    assert ["val_ap" in row for row in second["epochs"]] == [True, False, True, False]
    assert second["steps"] == 8
    assert second["val_ap"] >= first["val_ap"]


def test_a_shorter_clip_at_inference_crops_the_positions(home, toy):
    good(
        "ex_maest.py",
        f"extract_embeddings with {settings(toy)} maest.checkpoint=exp_logs/latest/model "
        "datamodule.clip_length=1 inference.out_dir=short",
        home,
    )
    model = get_maest(checkpoint=home / "exp_logs" / "1" / "model")
    key = "test/03.mmap"
    pieces = read_patches(toy.mels, key, 62)
    with torch.no_grad():
        own = [model(model.normalise(torch.from_numpy(p).float().T[None]), 7)[1] for p in pieces]
    expected = np.average(
        torch.cat(own).reshape(-1, 3, 192).numpy(), axis=0, weights=[len(p) for p in pieces]
    )
    found = np.load(home / f"short/1sec/7/{key}.embeddings.npy")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_precision_is_chosen_by_what_there_is(monkeypatch):
    """fp16 for training on CUDA; fp32 elsewhere."""
    for cuda, precision in ((False, "32-true"), (True, "16-mixed")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        assert decided(config.Settings(), frames=312, tracks=9).trainer.precision == precision


def test_one_bad_file_costs_that_file_only(home, toy, tmp_path):
    groundtruth = {f"test/{i:02d}.mmap": [1, 0, 0] for i in range(3)}
    groundtruth |= {"none.mmap": [1, 0, 0], "torn.mmap": [0, 1, 0]}
    write_groundtruth(tmp_path / "some.pk", groundtruth)
    mels = tmp_path / "mels"
    mels.mkdir()
    (mels / "test").symlink_to(toy.mels / "test")
    (mels / "torn.mmap").write_bytes(bytes(1001))
    done = run(
        "ex_maest.py",
        f"extract_embeddings with datamodule.groundtruth_predict={tmp_path / 'some.pk'} "
        f"datamodule.base_dir={mels} maest.checkpoint={home}/exp_logs/1/model",
        tmp_path,
    )
    assert done.code == 1
    assert "3 tracks done, 2 failed" in done.out
    folder = tmp_path / "embeddings/run-1/1.5sec/7"
    assert len(list(folder.glob("test/*.npy"))) == 3
    failed = (folder / "failed.csv").read_text()
    assert "none.mmap" in failed
    assert "no such file" in failed
    assert "no whole number of frames" in failed


def test_training_on_a_broken_file_names_it(toy, tmp_path):
    write_groundtruth(tmp_path / "train.pk", {"gone.mmap": [1, 0, 0]})
    for workers in (0, 1):
        message = bad(
            "ex_maest.py",
            f"with {settings(toy)} {QUICK} datamodule.groundtruth_train={tmp_path / 'train.pk'} "
            f"datamodule.num_workers={workers}",
            tmp_path,
        )
        assert "gone.mmap" in message


@pytest.mark.parametrize(
    ("line", "setting", "more"),
    [
        ("with datamodule.base_di=x", "datamodule.base_di", "'datamodule.base_dir'"),
        ("with modul.lr=1", "modul.lr", "'module.lr'"),
        ("with paper_recip", "paper_recip", "'paper_recipe'"),
        ("with datamodule.base_dir =my/dir/", "datamodule.base_dir", "base_dir=my/dir/"),
        ("with maest.arch=maest_tini {toy}", "maest.arch", "'maest_tiny'"),
        ("check_data with maest.arch=maest_tini {toy}", "maest.arch", "'maest_tiny'"),
        ("compute_norm_stats with maest.arch=maest_tini {toy}", "maest.arch", "'maest_tiny'"),
        ("with maest.n_classes=7 {toy}", "maest.n_classes", "groundtruth-train.pk"),
        ("with maest.input_t=50 datamodule.clip_length=5 {toy}", "maest.input_t", "50"),
        ("with maest.s_patchout_t=99 {toy}", "maest.s_patchout_t", "99"),
        ("with maest.pretrained=True {toy}", "maest.checkpoint", "maest.pretrained"),
        ("with maest.pretrained=True maest.arch=maest_tiny {toy}", "maest.arch", "maest_tiny"),
        ("with module.lr_interval=day {toy}", "module.lr_interval", "'step'"),
        ("with module.lr=0", "module.lr", "0"),
        ("with module.betas=[0.9]", "module.betas", "2"),
        ("with maest.drop_path_rate=2", "maest.drop_path_rate", "2"),
        ("with seed=99999999999", "seed", "99999999999"),
        ("with maest.checkpoint=nowhere {toy}", "nowhere", "exp_logs"),
        (
            "extract_embeddings with maest.arch=maest_tiny inference.pool=max {toy}",
            *("inference.pool", "'mean'"),
        ),
        (
            "extract_embeddings with maest.arch=maest_tiny inference.transformer_block=12 {toy}",
            *("inference.transformer_block", "12"),
        ),
        ("extract_embeddings with {toy}", "maest.checkpoint", "exp_logs/latest/model"),
        ("extract_embeddings with ckpt_path=a.ckpt {toy}", "ckpt_path", "maest.checkpoint"),
        ("with trainer.limit_val_batches=0 {toy}", "trainer.limit_val_batches", "0"),
        ("with trainer.limit_train_batches=0.0 {toy}", "trainer.limit_train_batches", "0"),
        ("with trainer.max_steps=0 {toy}", "trainer.max_steps", "0"),
        ("test with trainer.strategy=dpp {toy}", "trainer.strategy", "'ddp'"),
        ("with trainer.devices=-1 {toy}", "trainer.devices", "GPU"),
        ("with trainer.accelerator=gpu {toy}", "trainer.accelerator", "'gpu'"),
        ("with trainer.precision=16-mixed {toy}", "trainer.precision", "32-true"),
        ("with datamodule.clip_length=ten", "datamodule.clip_length", "ten"),
        ("with datamodule.batch_size_train=0", "datamodule.batch_size_train", "1"),
        ("with datamodule.on_error=skipp {toy}", "datamodule.on_error", "'skip'"),
        ("with ckpt_path={tmp} {toy}", "ckpt_path", "{tmp}"),
        ("with datamodule.groundtruth_train=no.pk", "datamodule.groundtruth_train", "no.pk"),
    ],
)
def test_a_mistake_is_one_line_with_the_settings_name(toy, tmp_path, line, setting, more):
    message = bad("ex_maest.py", line.format(toy=settings(toy), tmp=tmp_path), tmp_path)
    error = next(part for part in message.splitlines() if f"{setting}: " in part)
    assert more.format(tmp=tmp_path) in error
    assert error.endswith((".", "?", ")")), error


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("nowhere.yaml", None),
        ("own.yaml", "maest: [1"),
        ("own.json", "{"),
        ("own.json", "[1]"),
        ("own.json", '{"module.lr": 1}'),
    ],
)
def test_a_file_of_settings_that_holds_none(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_text(content)
    done = run("ex_maest.py", f"with {name}", tmp_path)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: ")
    assert f"{name}: " in done.err


def test_settings_in_a_file(home, toy):
    (home / "own.yaml").write_text("maest:\n  checkpoint: exp_logs/1/model\n")
    good("ex_maest.py", f"test with own.yaml {settings(toy)}", home)


@pytest.mark.slow
def test_as_a_program(toy, tmp_path):
    """The same through a process of its own: exit codes, and no noise."""

    def program(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(ROOT / arguments[0]), *arguments[1:]]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    done = program("ex_maest.py", "print_config")
    assert done.returncode == 0
    assert "groundtruth_train" in done.stdout
    assert "Warning" not in done.stderr, done.stderr
    assert not (tmp_path / "exp_logs").exists()
    done = program("ex_tl.py", "print_named_configs")
    assert "target_scores_tl" in done.stdout
    done = program("ex_maest.py", "with", "datamodule.base_dir", "=my/data/dir/")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: datamodule.base_dir: ")
    short = [*settings(toy).split(), *QUICK.split(), "trainer.max_steps=2"]
    done = program("ex_maest.py", "with", *short)
    assert done.returncode == 0, done.stderr
    assert "2 steps" in done.stdout
    assert "Warning" not in done.stderr, done.stderr


# --- Before a training ---------------------------------------------------------------------------


def a_set(toy, folder: Path, tracks: int = 6) -> tuple[str, Path]:
    """Copies of toy tracks with a ground truth of their own; as settings, and where they are."""
    for split, name in (("train", "train"), ("validation", "val")):
        keys = [f"{split}/{i:02d}.mmap" for i in range(tracks)]
        for key in keys:
            (folder / key).parent.mkdir(exist_ok=True)
            (folder / key).write_bytes((toy.mels / key).read_bytes())
        groundtruth = {key: np.eye(3)[i % 3] for i, key in enumerate(keys)}
        write_groundtruth(folder / f"{name}.pk", groundtruth)
    files = f"datamodule.groundtruth_train={folder}/train.pk datamodule.base_dir={folder}"
    return f"{files} datamodule.groundtruth_val={folder}/val.pk", folder


def test_check_data(toy, tmp_path):
    line, data = a_set(toy, tmp_path)
    line = f"check_data with {line} datamodule.groundtruth_test=None datamodule.clip_length=1"
    out = good("ex_maest.py", line, tmp_path)
    assert "problems: none" in out
    assert "warnings: none" in out
    assert "train: 6 tracks, 3 labels" in out
    found = json.loads((newest(tmp_path) / "check.json").read_text())
    assert (found["ok"], found["brief"], found["problems"]) == (True, False, [])
    assert found["splits"]["val"]["looked_at"] == 6

    (data / "train/00.mmap").unlink()
    (data / "train/01.mmap").write_bytes((data / "train/01.mmap").read_bytes()[:-1])
    np.full((100, 96), np.inf, np.float16).tofile(data / "validation/02.mmap")
    (data / "validation/03.mmap").write_bytes((data / "train/03.mmap").read_bytes())
    done = run("ex_maest.py", line, tmp_path)
    assert done.code == 1
    assert "Traceback" not in done.err
    assert "train: 2 of 6 tracks cannot be read" in done.out
    assert "val: 1 of 6 tracks cannot be read" in done.out
    assert "'train/00.mmap': " in done.out
    assert "no such file" in done.out
    assert "'train/01.mmap': " in done.out
    assert "no whole number of frames" in done.out
    assert "'validation/02.mmap': " in done.out
    assert "NaN or infinite values" in done.out
    assert "train and val: 1 tracks have the same content in both" in done.out
    found = json.loads((newest(tmp_path) / "check.json").read_text())
    assert not found["ok"]
    assert [problem["kind"] for problem in found["problems"]] == ["files", "files", "shared"]
    assert set(found["splits"]["train"]["bad"]) == {"train/00.mmap", "train/01.mmap"}


def test_missing_files_stop_a_training_at_once(toy, tmp_path):
    """All of them are named, and nothing has been trained."""
    line, data = a_set(toy, tmp_path)
    for key in ("train/01.mmap", "train/04.mmap", "validation/05.mmap"):
        (data / key).unlink()
    message = bad("ex_maest.py", f"with {line} {QUICK}", tmp_path)
    for key in ("train/01.mmap", "train/04.mmap", "validation/05.mmap"):
        assert f"'{key}': {data / key}: no such file" in message
    assert "train/02.mmap" not in message
    assert "datamodule.groundtruth_train: " in message
    assert "python ex_maest.py check_data" in message
    assert not list(newest(tmp_path).glob("**/*.ckpt"))
    done = run("ex_maest.py", f"with {line} {QUICK} datamodule.on_error=skip", tmp_path)
    assert done.code == 0, done.err[-3000:]
    skipped = json.loads((newest(tmp_path) / "results.json").read_text())["skipped"]
    assert set(skipped) <= {"train/01.mmap", "train/04.mmap", "validation/05.mmap"}
    assert "validation/05.mmap" in skipped


def test_norm_stats_can_be_pasted(toy, tmp_path):
    out = good("ex_maest.py", f"compute_norm_stats with {settings(toy)}", tmp_path)
    values = np.concatenate(
        [np.fromfile(path, np.float16) for path in sorted((toy.mels / "train").iterdir())]
    ).astype(np.float64)
    stats = json.loads((newest(tmp_path) / "norm_stats.json").read_text())
    assert stats["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert stats["std"] == pytest.approx(values.std(), rel=1e-12)
    assert (stats["tracks"], stats["frames"]) == (36, values.size // 96)
    pasted = out.splitlines()[-1]
    assert pasted.startswith("maest.norm_mean=")
    six = QUICK.replace("limit_train_batches=2", "limit_train_batches=6")
    good(
        "ex_maest.py",
        f"with {settings(toy)} {six} {pasted} datamodule.batch_size_train=2",
        tmp_path,
    )
    sizes = json.loads((newest(tmp_path) / "model" / "config.json").read_text())["sizes"]
    assert (sizes["norm_mean"], sizes["norm_std"]) == (stats["mean"], stats["std"])
    # how fast it was is told with each epoch
    (row,) = read_history(newest(tmp_path) / "history.csv")
    assert row["clips_per_second"] > 0
    assert "mfu" not in row  # which a CPU's means nothing


def test_norm_stats_leave_out_what_cannot_be_read(toy, tmp_path):
    line, data = a_set(toy, tmp_path)
    (data / "train/02.mmap").unlink()
    done = run("ex_maest.py", f"compute_norm_stats with {line}", tmp_path)
    assert done.code == 1
    assert "5 tracks" in done.out
    assert "1 files could not be read" in done.out
    stats = json.loads((newest(tmp_path) / "norm_stats.json").read_text())
    assert set(stats["failed"]) == {"train/02.mmap"}


# --- torch.compile -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "cuda", "compiled"),
    [
        ({}, False, False),
        ({"compile": True}, False, True),
        ({"max_epochs": 4}, True, True),  # 4 · 2400 / 8 = 1200 steps
        ({"max_epochs": 3}, True, False),  # 900: it would not pay
        ({"max_epochs": 3, "compile": True}, True, True),
        ({"compile": False}, True, False),
        ({"accelerator": "cpu"}, True, False),
    ],
)
def test_blocks_are_compiled_where_it_pays(monkeypatch, changes, cuda, compiled):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)

    def compiles(**maest: float) -> bool:
        settings = config.parse(config.Settings, {"trainer": changes, "maest": maest})
        return decided(settings, frames=312, tracks=500).trainer.compile

    assert compiles() is compiled
    # each rate of stochastic depth would be a graph
    assert compiles(drop_path_rate=0.1) is (changes.get("compile") is True)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a compiler")
def test_a_compiled_training_is_the_same(toy, tmp_path):
    for compiled in (False, True):
        line = f"with {settings(toy)} {QUICK} trainer.compile={compiled}"
        good("ex_maest.py", line, tmp_path)
    plain, compiled = (
        read_history(tmp_path / f"exp_logs/{i}/history.csv")[0]["train_loss"] for i in (1, 2)
    )
    assert compiled == pytest.approx(plain, rel=1e-4)
    net = get_maest(checkpoint=tmp_path / "exp_logs/2/model")
    assert not any("_orig_mod" in name for name in net.state_dict())


def test_a_limit_of_steps_counts_the_steps_of_the_run_that_is_continued(toy, model, tmp_path):
    line = (
        f"with maest.checkpoint={model} maest.s_patchout_t=2 {settings(toy)} "
        "datamodule.clip_length=2 datamodule.clips_per_epoch=8 datamodule.batch_size_train=4"
    )
    good("ex_maest.py", f"{line} trainer.max_steps=2", tmp_path)
    last = tmp_path / "exp_logs/1/checkpoints/last.ckpt"
    good("ex_maest.py", f"{line} trainer.max_steps=5 ckpt_path={last}", tmp_path)
    results = json.loads((tmp_path / "exp_logs/2/results.json").read_text("utf-8"))
    assert results["steps"] == 5
    assert np.isfinite([row["train_loss"] for row in results["epochs"]]).all()
    assert len(results["epochs"]) == 3


def test_a_split_that_is_not_given_is_not_the_embedded_sets(toy, tmp_path):
    """Its tracks are in another folder than the one that was typed."""
    truth = toy.groundtruth("train")
    line = f"with datamodule.base_dir={toy.mels} datamodule.groundtruth_train={truth}"
    assert "datamodule.groundtruth_val" in bad("ex_maest.py", line, tmp_path)
    good("ex_maest.py", f"check_data {line}", tmp_path)
    report = json.loads((newest(tmp_path) / "check.json").read_text("utf-8"))
    assert list(report["splits"]) == ["train"]
    nothing = f"check_data with datamodule.base_dir={toy.mels}"
    assert "datamodule.groundtruth_train" in bad("ex_maest.py", nothing, tmp_path)

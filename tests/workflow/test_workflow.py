"""The whole way through, as a user types it: pre-train → model folder → extract → probe."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import bad, good, newest, read_history, refused, run, settings  # isort: skip

from folders import read_json
from networks import same_weights

from maest import config
from maest.datasets.groundtruth import write_groundtruth, write_labels
from maest.experiments.plan import decided
from maest.models import get_maest

ROOT = Path(__file__).resolve().parents[2]
QUICK = (
    "trainer.max_epochs=1 trainer.limit_train_batches=2 maest.s_patchout_t=2 "
    "datamodule.clip_length=1.5"
)


def maest(home: Path, line: str) -> str:
    return good("ex_maest.py", line, home)


@pytest.fixture(scope="module")
def home(tmp_path_factory, toy) -> Path:
    """A working directory with a finished pre-training run, exp_logs/1."""
    home = tmp_path_factory.mktemp("home")
    maest(home, f"with {settings(toy)} {QUICK}")
    return home


@pytest.fixture
def model(home):
    return get_maest(checkpoint=home / "exp_logs/1/model")


# ---- training ------------------------------------------------------------------------------------


def test_pretraining_leaves_everything_in_its_folder(home, toy):
    folder = home / "exp_logs/1"
    assert (home / "exp_logs/latest").resolve() == folder
    results = read_json(folder / "results.json")
    assert (results["steps"], results["best_epoch"], results["best_steps"]) == (2, 1, 2)
    assert 0 <= results["val_ap"] <= 1
    assert [row["label"] for row in results["per_label"]] == list(toy.labels)
    assert results["label_frequencies"]["ap"] == pytest.approx(1 / 3)
    for name in ("learning_curve.png", "labels.png", "history.csv", "config.json", "run.json"):
        assert (folder / name).stat().st_size, name
    assert list((folder / "tensorboard").rglob("events.*"))
    assert "val_ap" in read_json(folder / "metrics.json")
    card = read_json(folder / "model/config.json")
    assert (card["arch"], card["labels"]) == ("maest_tiny", list(toy.labels))
    assert card["sizes"]["input_t"] == 93
    assert card["trained_on"]["groundtruth"].endswith("/groundtruth-train.pk")
    assert card["trained_on"]["tracks"] == 36


def test_the_plan_is_shown_and_nothing_is_trained(toy, tmp_path):
    line = f"print_plan with {settings(toy)} datamodule.clip_length=1.5 trainer.max_epochs=2"
    line += " datamodule.short_clips=0.5"
    shown = dict(row.split(":", 1) for row in maest(tmp_path, line).splitlines())
    # 16 clips of each of 36 tracks, 8 in a batch
    numbers = [shown[name].split()[0] for name in ("clips", "steps", "patchout", "tracks")]
    assert numbers == ["576", "144,", "4", "36"]
    assert all(seconds in shown["clips"] for seconds in ("of 1.5", "0.5"))
    assert not list((tmp_path / "exp_logs").glob("*"))


def test_same_seed_same_result(model, toy, tmp_path):
    for changes, same in (("datamodule.num_workers=2", True), ("seed=1", False)):
        maest(tmp_path, f"with {settings(toy)} {QUICK} {changes}")
        assert same_weights(get_maest(checkpoint=newest(tmp_path) / "model"), model) == same


def test_a_checkpoint_can_be_used_as_a_model(home, model):
    """Sizes and labels are in the checkpoint, too."""
    (path,) = (home / "exp_logs/1/checkpoints").glob("best-*.ckpt")
    found = get_maest(checkpoint=path)
    assert (found.sizes(), found.labels) == (model.sizes(), model.labels)
    assert model.norm_mean != pytest.approx(2.0676, abs=0.1)  # measured on the toy set
    assert same_weights(found, model)


def test_a_training_can_be_continued(toy, tmp_path):
    """Epochs, best checkpoint and metrics of the first part are kept."""
    line, last = f"with {settings(toy)} {QUICK}", "exp_logs/1/checkpoints/last.ckpt"
    maest(tmp_path, line)
    line += f" module.lr=1e-30 trainer.max_epochs=4 ckpt_path={last}"
    maest(tmp_path, f"{line} trainer.check_val_every_n_epoch=3")
    first, second = (read_json(tmp_path / f"exp_logs/{i}/results.json") for i in (1, 2))
    assert [row["epoch"] for row in second["epochs"]] == [1, 2, 3, 4]
    assert second["epochs"][0] == first["epochs"][0]
    assert ["val_ap" in row for row in second["epochs"]] == [True, False, True, False]
    assert second["steps"] == 8
    assert second["val_ap"] >= first["val_ap"]
    # A limit of steps counts those of the run that is continued.
    maest(tmp_path, f"{line} trainer.max_steps=5")
    third = read_json(tmp_path / "exp_logs/3/results.json")
    assert (third["steps"], len(third["epochs"])) == (5, 3)


@pytest.mark.parametrize(
    ("changes", "cuda", "precision", "compiled"),
    [
        ({}, False, "32-true", False),
        ({"compile": True}, False, "32-true", True),
        ({"max_epochs": 4}, True, "16-mixed", True),  # 4 · 2400 / 8 = 1200 steps
        ({"max_epochs": 3}, True, "16-mixed", False),  # 900: it would not pay
        ({"max_epochs": 3, "compile": True}, True, "16-mixed", True),
        ({"compile": False}, True, "16-mixed", False),
        ({"accelerator": "cpu"}, True, "32-true", False),
    ],
)
def test_precision_and_compiling_are_decided(monkeypatch, changes, cuda, precision, compiled):
    """Each rate of stochastic depth would need another graph."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)

    def trainer(**maest: float) -> config.settings.TrainerSettings:
        settings = config.parse(config.Settings, {"trainer": changes, "maest": maest})
        return decided(settings, frames=312, tracks=500).trainer

    assert (trainer().precision, trainer().compile) == (precision, compiled)
    assert trainer(drop_path_rate=0.1).compile is (changes.get("compile") is True)


def test_test_command(home, toy, tmp_path):
    line = f"test with {settings(toy)}"
    (home / "own.yaml").write_text("maest:\n  checkpoint: exp_logs/1/model\n")
    maest(home, f"{line} own.yaml")
    assert read_json(newest(home) / "results.json")["test_tracks"] == 12
    refused("ex_maest.py", line, home, "missing", "maest.checkpoint")
    (tmp_path / "test.pk").write_bytes(toy.groundtruth("test").read_bytes())
    write_labels(tmp_path / "labels.json", reversed(toy.labels))
    line += f" own.yaml datamodule.groundtruth_test={tmp_path}/test.pk"
    refused("ex_maest.py", line, home, "mismatch", "datamodule.groundtruth_test", "labels.json")


@pytest.mark.parametrize(
    ("line", "kind", "setting"),
    [
        ("with datamodule.base_di=x", "unknown", "datamodule.base_di"),
        ("with modul.lr=1", "unknown", "modul.lr"),
        ("with paper_recip", "unknown", "paper_recip"),
        ("with datamodule.base_dir =my/dir/", "invalid", "datamodule.base_dir"),
        ("with module.lr=0", "invalid", "module.lr"),
        ("with maest.arch=maest_tini {toy}", "unknown", "maest.arch"),
        ("check_data with maest.arch=maest_tini {toy}", "unknown", "maest.arch"),
        ("with maest.n_classes=7 {toy}", "conflict", "maest.n_classes"),
        ("with maest.input_t=50 datamodule.clip_length=5 {toy}", "conflict", "maest.input_t"),
        ("with maest.s_patchout_t=99 {toy}", "invalid", "maest.s_patchout_t"),
        ("with maest.pretrained=True {toy}", "missing", "maest.checkpoint"),
        ("with maest.pretrained=True maest.arch=maest_tiny {toy}", "missing", "maest.arch"),
        ("with maest.checkpoint=nowhere {toy}", "missing", None),
        ("extract_embeddings with {toy}", "missing", "maest.checkpoint"),
        ("extract_embeddings with ckpt_path=a.ckpt {toy}", "conflict", "ckpt_path"),
        ("test with trainer.strategy=dpp {toy}", "unknown", "trainer.strategy"),
        ("with trainer.devices=-1 {toy}", "unsupported", "trainer.devices"),
        ("with trainer.accelerator=gpu {toy}", "unsupported", "trainer.accelerator"),
        ("with trainer.precision=16-mixed {toy}", "unsupported", "trainer.precision"),
        ("with ckpt_path={tmp} {toy}", "missing", "ckpt_path"),
        ("with datamodule.groundtruth_train=no.pk", "missing", "datamodule.groundtruth_train"),
        ("with maest_finetune {toy}", "missing", "maest.checkpoint"),
        ("{tune} module.layer_decay=0", "invalid", "module.layer_decay"),
        ("{tune} module.freeze_blocks=13", "invalid", "module.freeze_blocks"),
        ("{tune} maest.task=regression maest.n_classes=4", "conflict", "maest.n_classes"),
        ("{tune} datamodule.short_clips=3000", "conflict", "datamodule.short_clips"),
        ("{tune} datamodule.window_targets=nowhere", "missing", "datamodule.window_targets"),
        ("{tune} datamodule.teacher_dir=nowhere", "missing", "datamodule.teacher_dir"),
        ("{tune} datamodule.teacher_dir={tmp}", "conflict", "maest.distilled_type"),
        (
            "{tune} datamodule.teacher_dir={tmp} maest.task=single-label",
            *("conflict", "datamodule.teacher_dir"),
        ),
        # of another folder than the one that was typed, the splits are not the embedded set's
        ("check_data with datamodule.base_dir={tmp}", "missing", "datamodule.groundtruth_train"),
        (
            "with datamodule.base_dir={tmp} datamodule.groundtruth_train={tmp}/train.pk",
            *("missing", "datamodule.groundtruth_val"),
        ),
    ],
)
def test_a_mistake_names_the_setting(home, toy, tmp_path, line, kind, setting):
    shutil.copy(toy.groundtruth("train"), tmp_path / "train.pk")
    tune = f"with maest_finetune maest.checkpoint={home}/exp_logs/1/model {settings(toy)} {QUICK}"
    line = line.format(toy=settings(toy), tmp=tmp_path, tune=tune)
    refused("ex_maest.py", line, tmp_path, kind, setting)


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
    assert f"Error: {name}: " in bad("ex_maest.py", f"with {name}", tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("own.json", '{"module": [{"py/reduce": [{"py/function": "os.mkdir"}, ["made"]]}]}'),
        ("own.yaml", "module: !!python/object/apply:os.mkdir [made]"),
    ],
)
def test_a_file_of_settings_runs_no_code(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert f"Error: {name}: " in bad("ex_maest.py", f"print_config with {name}", tmp_path)
    assert not (tmp_path / "made").exists()


# ---- data ----------------------------------------------------------------------------------------


@pytest.fixture
def data(toy, tmp_path) -> str:
    """Copies in ``tmp_path`` of six toy tracks a split, and their ground truths, as settings."""
    for split, name in (("train", "train"), ("validation", "val")):
        keys = [f"{split}/{i:02d}.mmap" for i in range(6)]
        (tmp_path / split).mkdir()
        for key in keys:
            shutil.copy(toy.mels / key, tmp_path / key)
        groundtruth = {key: np.eye(3)[i % 3] for i, key in enumerate(keys)}
        write_groundtruth(tmp_path / f"{name}.pk", groundtruth)
    return (
        f"datamodule.groundtruth_train={tmp_path}/train.pk datamodule.base_dir={tmp_path} "
        f"datamodule.groundtruth_val={tmp_path}/val.pk"
    )


def test_check_data(data, tmp_path):
    line = f"check_data with {data} datamodule.groundtruth_test=None datamodule.clip_length=1"
    maest(tmp_path, line)
    found = read_json(newest(tmp_path) / "check.json")
    assert (found["ok"], found["brief"], found["problems"]) == (True, False, [])
    assert found["splits"]["val"]["looked_at"] == 6
    (tmp_path / "train/00.mmap").unlink()
    (tmp_path / "train/01.mmap").write_bytes(b"1" * 97)
    np.full((100, 96), np.inf, np.float16).tofile(tmp_path / "validation/02.mmap")
    shutil.copy(tmp_path / "train/03.mmap", tmp_path / "validation/03.mmap")
    done = run("ex_maest.py", line, tmp_path)
    assert (done.code, "Traceback" in done.err) == (1, False)
    found = read_json(newest(tmp_path) / "check.json")
    assert not found["ok"]
    assert [problem["kind"] for problem in found["problems"]] == ["files", "files", "shared"]
    assert set(found["splits"]["train"]["bad"]) == {"train/00.mmap", "train/01.mmap"}
    (tmp_path / "val.pk").write_bytes(b"not a pickle")
    assert run("ex_maest.py", line, tmp_path).code == 1
    problems = read_json(newest(tmp_path) / "check.json")["problems"]
    assert ("groundtruth", "val") in [(problem["kind"], problem["split"]) for problem in problems]


def test_missing_files_are_refused_before_training(data, tmp_path):
    """All of them are named; with on_error=skip, training goes on."""
    gone = {"train/01.mmap", "train/04.mmap", "validation/05.mmap"}
    for key in gone:
        (tmp_path / key).unlink()
    line, setting = f"with {data} {QUICK}", "datamodule.groundtruth_train"
    error = refused("ex_maest.py", line, tmp_path, "corrupt", setting)
    assert all(str(tmp_path / key) in error.message for key in gone)
    assert "train/02.mmap" not in error.message
    assert not list(newest(tmp_path).glob("**/*.ckpt"))
    maest(tmp_path, f"{line} datamodule.on_error=skip")
    skipped = set(read_json(newest(tmp_path) / "results.json")["skipped"])
    assert {"validation/05.mmap"} <= skipped <= gone


def test_a_split_that_is_not_set_is_not_checked(data, tmp_path):
    maest(tmp_path, f"check_data with {data}")
    report = read_json(newest(tmp_path) / "check.json")
    assert list(report["splits"]) == ["train", "val"]


def test_norm_stats_can_be_pasted(toy, tmp_path):
    out = maest(tmp_path, f"compute_norm_stats with {settings(toy)}")
    paths = sorted((toy.mels / "train").iterdir())
    values = np.concatenate([np.fromfile(path, np.float16) for path in paths]).astype(np.float64)
    stats = read_json(newest(tmp_path) / "norm_stats.json")
    assert stats["mean"] == pytest.approx(values.mean(), rel=1e-12)
    assert stats["std"] == pytest.approx(values.std(), rel=1e-12)
    assert (stats["tracks"], stats["frames"]) == (36, values.size // 96)
    six = QUICK.replace("limit_train_batches=2", "limit_train_batches=6")
    line = f"with {settings(toy)} {six} {out.splitlines()[-1]} datamodule.batch_size_train=2"
    maest(tmp_path, line)
    sizes = read_json(newest(tmp_path) / "model/config.json")["sizes"]
    assert (sizes["norm_mean"], sizes["norm_std"]) == (stats["mean"], stats["std"])
    # each epoch has its speed
    (row,) = read_history(newest(tmp_path) / "history.csv")
    assert row["clips_per_second"] > 0
    assert "mfu" not in row  # for GPUs only


def test_norm_stats_leave_out_what_cannot_be_read(data, tmp_path):
    (tmp_path / "train/02.mmap").unlink()
    assert run("ex_maest.py", f"compute_norm_stats with {data}", tmp_path).code == 1
    stats = read_json(newest(tmp_path) / "norm_stats.json")
    assert (stats["tracks"], set(stats["failed"])) == (5, {"train/02.mmap"})

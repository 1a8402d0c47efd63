"""Which checkpoints are kept, and from which run a training goes on."""

import json
import logging
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from command_line import bad, good, newest, read_history, run, settings  # isort: skip

from maest import config
from maest.datasets.groundtruth import write_groundtruth
from maest.experiments import data, evaluate, plan
from maest.experiments.plan import find_run, read_continued, resumed_settings
from maest.helpers.training.checkpoints import Checkpoints
from maest.helpers.training.history import History
from maest.models import get_maest, training
from maest.models.archs import ARCHS, Arch, input_frames

LAST = "checkpoints/last.ckpt"
QUICK = (
    "maest.arch=maest_toy datamodule.clip_length=1.5 datamodule.clips_per_epoch=8 "
    "datamodule.batch_size_train=4 trainer.max_epochs=2 trainer.log_every_n_steps=1"
)


@pytest.fixture(autouse=True)
def toy_arch(monkeypatch):
    monkeypatch.setitem(ARCHS, "maest_toy", Arch(embed_dim=64, num_heads=1, depth=2))


class FakeTrainer(SimpleNamespace):
    """Saves nothing but names."""

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text("weights")


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([0.5, 0.25, 0.75, 0.75], 3),
        ([math.nan, 0.3, 0.9], 3),
        ([0.5, math.nan, 0.4], 1),
        ([-2.0, -1.0], 2),
        ([math.nan], None),
    ],
)
def test_the_best_epoch_has_the_highest_score_that_is_a_number(tmp_path, scores, best):
    checkpoints = Checkpoints(tmp_path, {"best": "val_ap"})
    trainer = FakeTrainer(
        is_global_zero=True,
        world_size=1,
        max_epochs=None,
        sanity_checking=False,
        lightning_module=torch.nn.Linear(1, 1),
    )
    for trainer.current_epoch, score in enumerate(scores):
        trainer.callback_metrics = {"val_ap": torch.tensor(score)}
        checkpoints.on_validation_end(trainer, None)
        checkpoints.on_train_epoch_end(trainer, None)
    names = {"last.ckpt", *([] if best is None else [f"best-epoch={best}.ckpt"])}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert checkpoints.path("best") == (tmp_path / f"best-epoch={best}.ckpt" if best else None)


def test_epochs_of_version_0_1_counted_from_zero(tmp_path):
    """Its checkpoints say 0 for the first, in their names, too."""
    checkpoints = Checkpoints(tmp_path / "new", {})
    history = History(tmp_path / "history.csv", record=print)
    checkpoints.load_state_dict({"best": {"best": {"epoch": 2, "score": 0.5}}})
    history.load_state_dict({"epochs": [{"epoch": 0}, {"epoch": 1}], "seconds": 0.0})
    old = tmp_path / "old"
    old.mkdir()
    for name in ("best-epoch=2.ckpt", "last.ckpt"):
        (old / name).write_text(name)
    trainer = SimpleNamespace(
        is_global_zero=True,
        ckpt_path=old / "last.ckpt",
        strategy=SimpleNamespace(broadcast=lambda value: value),
    )
    checkpoints.on_fit_start(trainer, None)
    history.on_fit_start(trainer, None)
    assert (tmp_path / "new" / "best-epoch=3.ckpt").read_text() == "best-epoch=2.ckpt"
    assert [row["epoch"] for row in read_history(tmp_path / "history.csv")] == [1, 2]
    # and what is saved from here on is not shifted again
    again = Checkpoints(tmp_path / "again", {})
    again.load_state_dict(checkpoints.state_dict())
    assert again.best == checkpoints.best


def changed(**sections: Any) -> config.Settings:
    """The default settings with others in some sections."""
    return config.parse(config.Settings, {"ckpt_path": "last", **sections})


def record(log_dir: Path, number: int, settings: config.Settings | dict[str, Any]) -> Path:
    """A run's folder; later numbers are newer."""
    last = log_dir / str(number) / LAST
    last.parent.mkdir(parents=True)
    weights = get_maest("maest_toy", n_classes=3, input_t=93).state_dict()
    torch.save({"state_dict": {f"net.{name}": value for name, value in weights.items()}}, last)
    os.utime(last, (number, number))
    (log_dir / str(number) / "config.json").write_text(json.dumps(config.plain(settings)))
    return last


def test_the_newest_run_of_the_same_settings_goes_on(tmp_path, caplog):
    wanted = changed()
    assert find_run(wanted, tmp_path) is None
    record(tmp_path, 1, config.Settings())
    expected = record(tmp_path, 2, changed(trainer={"max_epochs": 9}, inference={"top": 3}))
    assert find_run(wanted, tmp_path) == expected
    newest = record(tmp_path, 3, changed(module={"weight_decay": 0.5}))
    record(tmp_path, 4, {"data": {}})
    assert find_run(wanted, tmp_path) == expected
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert find_run(changed(seed=5), tmp_path) is None
    for part in (str(newest), "seed 0, now 5", "module.weight_decay 0.5, now 0.05"):
        assert part in caplog.text


def test_a_setting_that_came_later_counts_as_unchanged(tmp_path):
    old = config.plain(config.Settings())
    del old["module"]["roll"]
    expected = record(tmp_path, 1, old)
    assert find_run(changed(), tmp_path) == expected
    assert find_run(changed(module={"roll": 50}), tmp_path) is None


@pytest.mark.parametrize(
    ("section", "name", "before", "chosen"),
    [
        ("maest", "s_patchout_t", 22, 4),  # whatever the clip
        ("datamodule", "clips_per_epoch", 2400, 7),  # however few tracks there are
    ],
)
def test_what_version_0_1_had_by_default_is_kept(tmp_path, section, name, before, chosen):
    earlier = {"maest": {"checkpoint_swa_weights": False}}
    earlier[section] = {**earlier.get(section, {}), name: before}
    last = record(tmp_path, 1, changed(**earlier))

    def value(wanted: config.Settings, continued: Path | None) -> Any:
        settings = resumed_settings(wanted, read_continued(continued))
        return getattr(getattr(settings, section), name)

    assert find_run(changed(), tmp_path) == last
    assert value(changed(), None) == getattr(getattr(config.Settings(), section), name)
    assert value(changed(), last) == before
    for given in (chosen, before):
        wanted = changed(**{section: {name: given}})
        assert find_run(wanted, tmp_path) == (last if given == before else None)
        assert value(wanted, last) == given


@pytest.mark.parametrize(
    ("maest", "seconds", "columns"),
    [
        *(({}, *row) for row in [(5, 15), (10, 30), (20, 60), (30, 90), (2, 6), (0.5, 1)]),
        ({}, 0.26, 0),
        ({"s_patchout_t_interleaved": 2}, 5, 0),  # where others always are dropped
        ({"s_patchout_t_indices": [3]}, 5, 0),
    ],
)
def test_about_half_of_a_clips_columns_are_dropped(maest, seconds, columns):
    settings = plan.decided(changed(maest=maest), input_frames(seconds), tracks=9)
    assert settings.maest.s_patchout_t == columns


@pytest.mark.parametrize(
    ("given", "tracks", "clips"),
    [("auto", 10, 160), ("auto", 150, 2400), ("auto", 10**6, 2400), (None, 10, 10), (7, 10, 7)],
)
def test_clips_of_an_epoch(given, tracks, clips):
    settings = plan.decided(changed(datamodule={"clips_per_epoch": given}), 312, tracks)
    assert settings.datamodule.clips_per_epoch == clips
    assert plan.steps_of(settings) == (math.ceil(clips / 8), 4 * math.ceil(clips / 8))


def test_a_training_without_a_step_leaves_no_model(toy, tmp_path):
    line = f"with {settings(toy)} {QUICK} trainer.limit_train_batches=0.1"
    assert "limit_train_batches" in bad("ex_maest.py", line, tmp_path)
    assert not (newest(tmp_path) / "model").exists()
    assert not (tmp_path / "exp_logs" / "latest").exists()


@pytest.mark.parametrize(
    ("task", "split", "targets"),
    [
        ("multi-label", "train", [[0, 0, 0]] * 4),  # nothing to learn
        ("multi-label", "val", [[0, 1, 0]] * 4),  # nothing to choose the best epoch by
        ("regression", "val", [[0.5, 1, 2]] * 4),
    ],
)
def test_targets_that_say_nothing_are_refused_before_the_first_step(
    toy, tmp_path, task, split, targets
):
    line = f"with datamodule.base_dir={toy.mels} maest.task={task} {QUICK}"
    for name, folder in (("train", "train"), ("val", "validation")):
        rows = targets if name == split else [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
        groundtruth = {f"{folder}/{i:02d}.mmap": row for i, row in enumerate(rows)}
        write_groundtruth(tmp_path / f"{name}.pk", groundtruth, task=task)
        line += f" datamodule.groundtruth_{name}={tmp_path}/{name}.pk"
    message = bad("ex_maest.py", line, tmp_path)
    assert f"datamodule.groundtruth_{split}: {tmp_path / f'{split}.pk'}: " in message
    assert not (newest(tmp_path) / "checkpoints").exists()


def test_a_training_that_diverges_names_the_last_good_checkpoint(toy, tmp_path, monkeypatch):
    loss, calls = training.task_loss, []

    def fails_in_the_second_epoch(*arguments: Any) -> torch.Tensor:
        calls.append(True)
        return loss(*arguments) * (math.nan if len(calls) > 2 else 1)

    monkeypatch.setattr(training, "task_loss", fails_in_the_second_epoch)
    done = run("ex_maest.py", f"with {settings(toy)} {QUICK}", tmp_path)
    assert (done.code, sum(calls)) == (1, 3)
    last = Path("exp_logs") / newest(tmp_path).name / LAST
    typed = done.err.strip().splitlines()[-1].split()
    assert {"module.lr=0.0001", f"ckpt_path={last}"} <= set(typed)
    monkeypatch.setattr(training, "task_loss", loss)
    good("ex_maest.py", " ".join([*typed[2:], "module.betas=[0,0]"]), tmp_path)
    assert [row["epoch"] for row in read_history(newest(tmp_path) / "history.csv")] == [1, 2]


def test_what_needs_no_record_goes_on_where_none_can_be_kept(music, model, tmp_path):
    (tmp_path / "exp_logs").write_text("no folder")
    line = f"with maest.checkpoint={model} inference.audio={music} inference.transformer_block=1"
    good("ex_maest.py", f"extract_embeddings {line} inference.out_dir=out", tmp_path)
    assert list((tmp_path / "out").rglob("*.npy"))
    good("ex_maest.py", "print_config", tmp_path)
    line = f"export with maest.checkpoint={model} export.format=safetensors"
    good("ex_maest.py", line, tmp_path)
    assert (tmp_path / "export" / "model.safetensors").is_file()


@pytest.mark.parametrize("command", ["pretrain", "check_data"])
def test_what_needs_a_record_is_refused_there(toy, tmp_path, command):
    (tmp_path / "exp_logs").write_text("no folder")
    message = bad("ex_maest.py", f"{command} with {settings(toy)}", tmp_path)
    assert f"{tmp_path / 'exp_logs'}: " in message


def test_a_disk_that_fills_up_later_loses_the_record_only(music, model, tmp_path, monkeypatch):
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maest.experiments.runs.atomic_path", full)
    line = f"with maest.checkpoint={model} inference.audio={music} inference.out_dir=out"
    done = run("ex_maest.py", f"predict {line}", tmp_path)
    assert done.code == 0, done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", ["pretrain", "check_data", "compute_norm_stats", "test"])
def test_ctrl_c_is_one_line(toy, tmp_path, monkeypatch, command):
    def stopped(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    for module in (data, evaluate, plan):
        monkeypatch.setattr(module, "check_files", stopped)
    done = run("ex_maest.py", f"{command} with {settings(toy)}", tmp_path)
    assert done.code == 130
    assert "Traceback" not in done.err

"""No run is lost: a training that was killed or stopped goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import newest, read_history, settings  # isort: skip

import training_process as training
from training_process import LAST, Before, KilledWhileSaving, Signal, assert_same, outcome

from maest.helpers.files.atomic import atomic_path
from maest.helpers.training.throughput import Throughput
from maest.models.training import MaestModule

BASE = (
    "maest.arch=maest_toy maest.s_patchout_t=2 maest.drop_rate=0.1 datamodule.clip_length=1.5 "
    "datamodule.clips_per_epoch=22 datamodule.batch_size_train=4 module.mixup_alpha=0.3 "
    "module.time_masks=2 trainer.max_epochs=3 module.swa_start=1"
)
# Six batches an epoch, of which the last is smaller.
SETTINGS = {
    "steps": "trainer.checkpoint_minutes=0",
    "epochs": "module.lr_interval=epoch module.swa_lr=5e-4",  # saved at their ends alone
    "groups": (
        "trainer.checkpoint_minutes=0 trainer.accumulate_grad_batches=4 module.layer_decay=0.8 "
        "trainer.check_val_every_n_epoch=2 datamodule.balanced_sampling=True"
    ),
    "workers": (
        "trainer.checkpoint_minutes=0 datamodule.num_workers=2 trainer.accumulate_grad_batches=2 "
        "module.lr_interval=epoch trainer.check_val_every_n_epoch=2 trainer.max_epochs=4"
    ),
}


@pytest.fixture(scope="module")
def unbroken(toy, tmp_path_factory):
    """By the name of settings: what an unbroken run leaves, and the seconds of its training."""
    known = {}

    def run(name: str):
        if name not in known:
            home = tmp_path_factory.mktemp(name)
            process = training.start(home, line(toy, name))
            begun = process.wait_until_it_trains()
            process.wait()
            known[name] = outcome(home), time.monotonic() - begun
        return known[name]

    return run


def line(toy, name: str) -> str:
    return f"{settings(toy)} {BASE} {SETTINGS[name]}"


def leftovers(home: Path) -> list[Path]:
    """Parts of checkpoints."""
    return list((home / "exp_logs").glob("*/checkpoints/.tmp-*.ckpt"))


def kill_and_continue(home: Path, command: str, unbroken, kills: int, seed: int) -> None:
    """Kill a training so many times, let it end, and compare; begin anew if it ends before.

    At instants that are uniform over the training that is left; every second time while a
    checkpoint is being written, or right before or after it gets its name.
    """
    rng = np.random.default_rng(seed)
    print(f"seed {seed}")
    (expected, seconds), torn, runs = unbroken, 0, 0
    while kills:
        here = home / str(runs)
        here.mkdir(exist_ok=True)
        before, where, wait = len(leftovers(here)), "", 0.0
        if kills % 2:
            where = str(rng.choice(["middle", "middle", "before", "after"])) if torn else "middle"
            plan = KilledWhileSaving(int(rng.integers(4)), where, float(rng.random()))
            process = training.start(here, command, plan)
        else:
            process = training.start(here, command)
            begun, wait = process.wait_until_it_trains(), rng.random() * seconds
            process.process.join(begun + wait - time.monotonic())
            process.process.kill()
        process.process.join(120)
        if process.process.exitcode == 0:
            assert_same(outcome(here), expected)
            runs += 1
            continue
        process.wait(-signal.SIGKILL)
        now = len(leftovers(here)) - before
        print(f"{kills}: {where or f'after {wait:.2f} s'}, {now} torn")
        assert now == (where != "after") or not where
        torn, kills = torn + now, kills - 1
    assert torn
    training.start(here, command).wait()
    assert_same(outcome(here), expected)


def fresh_seed() -> int:
    """Another one each time, unless KILL_SEED says which."""
    return int(os.environ.get("KILL_SEED") or np.random.SeedSequence().entropy % 2**32)


@pytest.mark.parametrize(
    ("name", "kills"), [("steps", 2), ("epochs", 1), ("groups", 1), ("workers", 1)]
)
def test_killed_at_any_instant(toy, unbroken, tmp_path, name, kills):
    command = f"{line(toy, name)} ckpt_path=last"
    kill_and_continue(tmp_path, command, unbroken(name), kills, fresh_seed())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kills"), [("steps", 14), ("epochs", 12), ("groups", 12), ("workers", 12)]
)
def test_killed_at_fifty_instants(toy, unbroken, tmp_path, name, kills):
    command = f"{line(toy, name)} ckpt_path=last"
    kill_and_continue(tmp_path, command, unbroken(name), kills, fresh_seed())


# ---------------------------------------------------------------- signals


def advice(text: str) -> list[str]:
    """The arguments of the command line that a stopped run says will continue it."""
    program, script, *arguments = shlex.split(text.rpartition("To continue:\n")[2].splitlines()[0])
    assert (program, script) == ("python", training.SCRIPT)
    return arguments


@pytest.mark.parametrize(
    ("name", "number", "moment"),
    [
        ("steps", signal.SIGTERM, ("training_step", 8)),
        ("epochs", signal.SIGINT, ("training_step", 2)),
        ("groups", signal.SIGINT, ("training_step", 5)),  # the last batch, a group of two
        ("groups", signal.SIGTERM, ("training_step", 6)),  # a group's first
        ("steps", signal.SIGUSR1, ("validation_step", 1)),
        ("epochs", signal.SIGTERM, ("training_step", 0)),  # nothing has been saved yet
        ("workers", signal.SIGTERM, ("training_step", 8)),
    ],
)
def test_a_signal_saves_and_says_how_to_continue(toy, unbroken, tmp_path, name, number, moment):
    plan = Before(MaestModule, *moment, Signal((number,)))
    text = training.start(tmp_path, line(toy, name), plan).wait(128 + number)
    last = newest(tmp_path) / LAST
    step = torch.load(last, weights_only=True)["global_step"]
    assert f"{number.name}: saved at step {step}, {last.relative_to(tmp_path)}. To cont" in text
    assert "Traceback" not in text
    assert newest(tmp_path).joinpath("run.json").read_text().count("INTERRUPTED") == 1
    training.start(tmp_path, advice(text)).wait()
    assert_same(outcome(tmp_path), unbroken(name)[0])


@pytest.mark.parametrize("moment", [("training_step", 0), ("training_step", 9)])
def test_a_second_signal_stops_at_once(toy, unbroken, tmp_path, moment):
    plan = Before(MaestModule, *moment, Signal((signal.SIGTERM, signal.SIGINT)))
    text = training.start(tmp_path, line(toy, "steps"), plan).wait(128 + signal.SIGINT)
    assert "Traceback" not in text
    if moment[1]:
        last = newest(tmp_path) / LAST
        assert torch.load(last, weights_only=True)["global_step"] == 9
        assert f"not saved now; {last.relative_to(tmp_path)} is unchanged" in text
        arguments = advice(text)
    else:
        assert "stopped before anything was saved" in text
        arguments = ["with", *line(toy, "steps").split(), "ckpt_path=last"]
    training.start(tmp_path, arguments).wait()
    assert_same(outcome(tmp_path), unbroken("steps")[0])


@pytest.mark.parametrize("name", ["steps", "groups"])
def test_a_signal_right_before_the_first_batch(toy, unbroken, tmp_path, name):
    """Lightning listens by then, and would end in silence."""
    plan = Before(Throughput, "on_train_start", 0, Signal((signal.SIGTERM,)))
    text = training.start(tmp_path, line(toy, name), plan).wait(128 + signal.SIGTERM)
    training.start(tmp_path, advice(text)).wait()
    assert_same(outcome(tmp_path), unbroken(name)[0])


def test_a_signal_when_all_is_trained(toy, unbroken, tmp_path):
    """In the last batch, it is too late to stop; after that, what is left is done again."""
    stop = Signal((signal.SIGTERM,))
    plan = Before(MaestModule, "training_step", 17, stop)
    training.start(tmp_path, line(toy, "steps"), plan).wait()
    assert_same(outcome(tmp_path), unbroken("steps")[0])


# ---------------------------------------------------------------- which run goes on


def test_a_finished_run_continued_again(toy, unbroken, tmp_path):
    """It is the same; and does not need the folder of the first."""
    command = f"{line(toy, 'steps')} ckpt_path=last"
    text = training.start(tmp_path, command).wait()
    assert "ckpt_path=last: " in text
    first = newest(tmp_path)
    assert "continuing exp_logs/1/" in training.start(tmp_path, command).wait()
    shutil.rmtree(first)
    assert_same(outcome(tmp_path), unbroken("steps")[0])
    training.start(tmp_path, command).wait()
    assert_same(outcome(tmp_path), unbroken("steps")[0])


def test_a_chain_of_runs_keeps_the_best_epoch(toy, unbroken, tmp_path):
    """Though the folders before the last one are gone. With a rate of 0 the first is the best."""
    command = f"{line(toy, 'steps')} module.lr=1e-30 ckpt_path=last"
    for step in (8, 4):  # in the second epoch, and in the third
        plan = Before(MaestModule, "training_step", step, Signal((signal.SIGTERM,)))
        training.start(tmp_path, command, plan).wait(143)
        for folder in newest(tmp_path).parent.glob("[0-9]*"):
            if folder != newest(tmp_path):
                shutil.rmtree(folder)
    assert "is gone" not in training.start(tmp_path, command).wait()
    found = outcome(tmp_path)
    assert found["results"]["best_epoch"] == 1
    assert found["checkpoints"] == ["best-epoch=1.ckpt", "best-swa-epoch=2.ckpt", "last.ckpt"]


def test_another_setting_is_named_and_a_new_training_begins(toy, unbroken, tmp_path):
    command = line(toy, "steps").replace("max_epochs=3", "max_epochs=1")
    training.start(tmp_path, command).wait()
    # runs that cannot be continued are passed over
    odd = tmp_path / "exp_logs" / "17"
    (odd / "checkpoints").mkdir(parents=True)
    (odd / LAST).write_text("x")
    shutil.copytree(odd, odd.with_name("18"))
    (odd.with_name("18") / "config.json").write_text('{"data": {}, "probe": {}}')
    other = f"{command} module.weight_decay=0.01"
    text = training.start(tmp_path, f"{other} ckpt_path=last").wait()
    assert "module.weight_decay 0.05, now 0.01" in text
    assert "continuing" not in text
    path = f"ckpt_path=exp_logs/1/{LAST}"
    assert path in text
    training.start(tmp_path, f"{other} {path}").wait()
    # more epochs are no other experiment
    for number in ("19", "20"):
        shutil.rmtree(tmp_path / "exp_logs" / number)
    training.start(tmp_path, f"{line(toy, 'steps')} ckpt_path=last").wait()
    assert len(outcome(tmp_path)["history"]) == 3
    assert_same(outcome(tmp_path), unbroken("steps")[0])


@pytest.mark.parametrize("damage", ["cut", "byte", "empty", "weights"])
def test_a_damaged_checkpoint_is_named(toy, unbroken, tmp_path, damage):
    plan = Before(MaestModule, "training_step", 3, Signal((signal.SIGTERM,)))
    training.start(tmp_path, line(toy, "steps"), plan).wait(143)
    last = newest(tmp_path) / LAST
    whole = last.read_bytes()
    if damage == "weights":
        torch.save({"a": torch.ones(2)}, last)
    else:
        size = len(whole)
        cut = {"cut": whole[: size // 2], "empty": b""}
        last.write_bytes(
            cut.get(
                damage, whole[: size // 2] + bytes([whole[size // 2] ^ 1]) + whole[size // 2 + 1 :]
            )
        )
    command = f"{line(toy, 'steps')} ckpt_path=last"
    text = training.start(tmp_path, command).wait(1)
    assert f"ckpt_path: {last.relative_to(tmp_path)}: " in text
    assert "Traceback" not in text
    last.write_bytes(whole)
    training.start(tmp_path, command).wait()
    assert_same(outcome(tmp_path), unbroken("steps")[0])


def test_a_durable_file_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    events = []
    sync, replace = os.fsync, os.replace

    def note_sync(handle: int) -> None:
        events.append(("sync", os.readlink(f"/proc/self/fd/{handle}")))
        sync(handle)

    def note_replace(source: Path, target: Path) -> None:
        events.append(("rename", str(source), str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    with atomic_path(tmp_path / "a.ckpt", durable=True) as temporary:
        temporary.write_bytes(b"x")
    assert events == [
        ("sync", str(temporary)),
        ("rename", str(temporary), str(tmp_path / "a.ckpt")),
        ("sync", str(tmp_path)),
    ]


# ---------------------------------------------------------------- groups, other settings


@dataclass
class GroupSignal:
    """Sends a signal to this process and its workers, as a terminal and clusters do."""

    number: int

    def __call__(self) -> None:
        os.kill(0, self.number)


def own_group() -> None:
    os.setpgrp()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_workers_too(toy, unbroken, tmp_path, number):
    command = f"{line(toy, 'steps')} datamodule.num_workers=2"
    plan = Before(MaestModule, "training_step", 9, GroupSignal(number))
    text = training.start(tmp_path, command, own_group, plan).wait(128 + number)
    assert "saved at step 10" in text
    assert text.count("saving and stopping") == 1
    training.start(tmp_path, advice(text)).wait()
    assert_same(outcome(tmp_path), unbroken("steps")[0])


@pytest.fixture(scope="module")
def stopped(toy, tmp_path_factory) -> Path:
    """A home whose run was stopped after 9 steps, in the second of three epochs."""
    home = tmp_path_factory.mktemp("stopped")
    plan = Before(MaestModule, "training_step", 8, Signal((signal.SIGTERM,)))
    training.start(home, line(toy, "steps"), plan).wait(128 + signal.SIGTERM)
    return home


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("datamodule.batch_size_train=2", "datamodule.batch_size_train"),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches"),
        ("maest.distilled_type=separated", "distilled_type"),
        ("module.layer_decay=0.5", "module.layer_decay"),
    ],
)
def test_what_cannot_go_on_is_refused(toy, stopped, change, named):
    last = next((stopped / "exp_logs").glob(f"*/{LAST}"))
    text = training.start(stopped, f"{line(toy, 'steps')} {change} ckpt_path={last}").wait(1)
    assert "ckpt_path: " in text
    assert named in text
    assert "Traceback" not in text


def test_another_rate_holds_from_where_it_goes_on(toy, stopped, tmp_path):
    last = next((stopped / "exp_logs").glob(f"*/{LAST}"))
    change = "module.lr=1e-5 module.weight_decay=0.5 module.betas=[0.8,0.9]"
    training.start(tmp_path, f"{line(toy, 'steps')} {change} ckpt_path={last}").wait()
    found = torch.load(newest(tmp_path) / LAST, weights_only=True)
    (group,) = found["optimizer_states"][0]["param_groups"]
    assert (group["weight_decay"], tuple(group["betas"])) == (0.5, (0.8, 0.9))
    rates = [row["lr"] for row in read_history(newest(tmp_path) / "history.csv")]
    assert rates[0] == 1e-3  # before
    assert max(rates[1:]) <= 1e-5


def test_a_file_that_goes_changes_no_norm(toy, tmp_path):
    """It was measured when training began: with a file less it would be another."""
    mels = tmp_path / "mels"
    shutil.copytree(toy.mels, mels)
    command = f"{line(toy, 'steps')} datamodule.base_dir={mels}"
    plan = Before(MaestModule, "training_step", 8, Signal((signal.SIGTERM,)))
    training.start(tmp_path, command, plan).wait(128 + signal.SIGTERM)
    (mels / "train" / "00.mmap").unlink()
    resumed = f"{command} datamodule.on_error=skip ckpt_path=last"
    training.start(tmp_path, resumed).wait()
    card = json.loads((newest(tmp_path) / "model" / "config.json").read_text())
    first = torch.load(tmp_path / "exp_logs/1" / LAST, weights_only=True)["maest"]["sizes"]
    assert card["sizes"]["norm_mean"] == first["norm_mean"]

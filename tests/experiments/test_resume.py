"""No run is lost: a training that was killed or stopped goes on as if nothing had happened."""

import os
import shlex
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from command_line import newest, read_history, settings  # isort: skip

import training_process as training
from folders import read_json
from training_process import LAST, Before, KilledWhileSaving, Signal, assert_same, outcome

from maest.helpers.files.atomic import atomic_path
from maest.helpers.training.throughput import Throughput
from maest.models.training import MaestModule

INT, TERM, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGUSR1
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


def stop_at(step: int, *numbers: int, method: str = "training_step") -> Before:
    return Before(MaestModule, method, step, Signal(numbers or (TERM,)))


def last_checkpoint(home: Path) -> dict:
    return torch.load(newest(home) / LAST, weights_only=True)


def torn(home: Path) -> int:
    """The number of parts of checkpoints."""
    return len(list((home / "exp_logs").glob("*/checkpoints/.tmp-*.ckpt")))


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        *(("steps", 2), ("epochs", 1), ("groups", 1), ("workers", 1)),
        *(pytest.param(name, 12, marks=pytest.mark.slow) for name in SETTINGS),
    ],
)
def test_killed_at_any_instant(toy, unbroken, tmp_path, name, kills):
    """Kill a training so many times, let it end, and compare; begin anew if it ends before.

    At instants that are uniform over the training that is left; every second time while a
    checkpoint is being written, or right before or after it gets its name. Other instants each
    time, unless KILL_SEED says which.
    """
    command, (expected, seconds) = f"{line(toy, name)} ckpt_path=last", unbroken(name)
    seed = int(os.environ.get("KILL_SEED") or np.random.SeedSequence().entropy % 2**32)
    rng, parts, runs = np.random.default_rng(seed), 0, 0
    print(f"seed {seed}")
    while kills:
        home = tmp_path / str(runs)
        home.mkdir(exist_ok=True)
        before, where, wait = torn(home), "", 0.0
        if kills % 2:
            where = str(rng.choice(["middle", "middle", "before", "after"])) if parts else "middle"
            plan = KilledWhileSaving(int(rng.integers(4)), where, float(rng.random()))
            process = training.start(home, command, plan)
        else:
            process = training.start(home, command)
            begun, wait = process.wait_until_it_trains(), rng.random() * seconds
            process.process.join(begun + wait - time.monotonic())
            process.process.kill()
        process.process.join(120)
        if process.process.exitcode == 0:
            assert_same(outcome(home), expected)
            runs += 1
            continue
        process.wait(-signal.SIGKILL)
        now = torn(home) - before
        print(f"{kills}: {where or f'after {wait:.2f} s'}, {now} torn")
        assert now == (where != "after") or not where
        parts, kills = parts + now, kills - 1
    assert parts
    training.start(home, command).wait()
    assert_same(outcome(home), expected)


# ---- signals -------------------------------------------------------------------------------------


def advice(text: str) -> list[str]:
    """The arguments of the command line that a stopped run says will continue it."""
    program, script, *arguments = shlex.split(text.rpartition("To continue:\n")[2].splitlines()[0])
    assert (program, script) == ("python", training.SCRIPT)
    return arguments


def stopped_run(home: Path, command: str, number: int, *plan) -> str:
    """What a run prints that a signal ends, whose record says so."""
    text = training.start(home, command, *plan).wait(128 + number)
    assert "Traceback" not in text
    assert read_json(newest(home) / "run.json")["status"] == "INTERRUPTED"
    return text


@pytest.mark.parametrize(
    ("name", "number", "plan"),
    [
        ("steps", TERM, stop_at(8)),
        ("epochs", INT, stop_at(2, INT)),
        ("groups", INT, stop_at(5, INT)),  # the last batch, a group of two
        ("groups", TERM, stop_at(6)),  # a group's first
        ("steps", USR1, stop_at(1, USR1, method="validation_step")),
        ("epochs", TERM, stop_at(0)),  # nothing has been saved yet
        ("workers", TERM, stop_at(8)),
        # Lightning listens by then, and would end in silence.
        ("steps", TERM, Before(Throughput, "on_train_start", 0, Signal((TERM,)))),
        ("groups", TERM, Before(Throughput, "on_train_start", 0, Signal((TERM,)))),
    ],
)
def test_a_signal_saves_and_says_how_to_continue(toy, unbroken, tmp_path, name, number, plan):
    text = stopped_run(tmp_path, line(toy, name), number, plan)
    step, last = last_checkpoint(tmp_path)["global_step"], newest(tmp_path) / LAST
    assert f"{number.name}: saved at step {step}, {last.relative_to(tmp_path)}" in text
    training.start(tmp_path, advice(text)).wait()
    assert_same(outcome(tmp_path), unbroken(name)[0])


@pytest.mark.parametrize("number", [INT, TERM])
def test_a_signal_to_the_workers_too(toy, unbroken, tmp_path, number):
    """Sent to the process group, as terminals and clusters do."""
    command = f"{line(toy, 'steps')} datamodule.num_workers=2"
    plan = Before(MaestModule, "training_step", 9, Signal((number,), group=True))
    text = stopped_run(tmp_path, command, number, os.setpgrp, plan)
    assert last_checkpoint(tmp_path)["global_step"] == 10
    training.start(tmp_path, advice(text)).wait()
    assert_same(outcome(tmp_path), unbroken("steps")[0])


@pytest.mark.parametrize("step", [0, 9])
def test_a_second_signal_stops_at_once(toy, unbroken, tmp_path, step):
    text = stopped_run(tmp_path, line(toy, "steps"), INT, stop_at(step, TERM, INT))
    arguments = ["with", *line(toy, "steps").split(), "ckpt_path=last"]
    if step:
        assert last_checkpoint(tmp_path)["global_step"] == step
        arguments = advice(text)
    training.start(tmp_path, arguments).wait()
    assert_same(outcome(tmp_path), unbroken("steps")[0])


def test_a_signal_when_all_is_trained(toy, unbroken, tmp_path):
    """In the last batch, it is too late to stop."""
    training.start(tmp_path, line(toy, "steps"), stop_at(17)).wait()
    assert_same(outcome(tmp_path), unbroken("steps")[0])


# ---- which run goes on ---------------------------------------------------------------------------


def test_a_finished_run_continued_again(toy, unbroken, tmp_path):
    """The result is the same, also without the folder of the first run."""
    command = f"{line(toy, 'steps')} ckpt_path=last"
    for number in (1, 2, 3):
        training.start(tmp_path, command).wait()
        assert_same(outcome(tmp_path), unbroken("steps")[0])
        if number == 2:
            shutil.rmtree(tmp_path / "exp_logs/1")


def test_a_chain_of_runs_keeps_the_best_epoch(toy, unbroken, tmp_path):
    """Also without the folders of earlier runs. With a rate of 0 the first epoch is the best."""
    command = f"{line(toy, 'steps')} module.lr=1e-30 ckpt_path=last"
    for step in (8, 4):  # in the second epoch, and in the third
        training.start(tmp_path, command, stop_at(step)).wait(128 + TERM)
        for folder in newest(tmp_path).parent.glob("[0-9]*"):
            if folder != newest(tmp_path):
                shutil.rmtree(folder)
    training.start(tmp_path, command).wait()
    found = outcome(tmp_path)
    assert found["results"]["best_epoch"] == 1
    assert found["checkpoints"] == ["best-epoch=1.ckpt", "best-swa-epoch=2.ckpt", "last.ckpt"]


def test_other_settings_begin_a_new_training(toy, unbroken, tmp_path):
    """A run with more epochs continues; runs that cannot be continued are ignored."""
    command = line(toy, "steps").replace("max_epochs=3", "max_epochs=1")
    training.start(tmp_path, command).wait()
    odd = tmp_path / "exp_logs/17"
    (odd / "checkpoints").mkdir(parents=True)
    (odd / LAST).write_text("x")
    shutil.copytree(odd, odd.with_name("18"))
    (odd.with_name("18") / "config.json").write_text('{"data": {}, "probe": {}}')
    other = f"{command} module.weight_decay=0.01 trainer.max_epochs=2"
    text = training.start(tmp_path, f"{other} ckpt_path=last").wait()
    assert "module.weight_decay 0.05, now 0.01" in text
    assert last_checkpoint(tmp_path)["global_step"] == 12
    path = f"ckpt_path=exp_logs/1/{LAST}"
    assert path in text
    training.start(tmp_path, f"{other} {path}").wait()
    first, again = (read_history(tmp_path / f"exp_logs/{i}/history.csv") for i in (1, 20))
    assert (again[0], len(again)) == (first[0], 2)
    for number in ("19", "20"):
        shutil.rmtree(tmp_path / "exp_logs" / number)
    training.start(tmp_path, f"{line(toy, 'steps')} ckpt_path=last").wait()
    assert_same(outcome(tmp_path), unbroken("steps")[0])


@pytest.fixture
def stopped(toy, stopped_home, tmp_path) -> Path:
    """A copy of a home whose run was stopped after 9 steps, in the second of three epochs."""
    shutil.copytree(stopped_home, tmp_path, dirs_exist_ok=True, symlinks=True)
    return tmp_path


@pytest.fixture(scope="module")
def stopped_home(toy, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("stopped")
    training.start(home, line(toy, "steps"), stop_at(8)).wait(128 + TERM)
    return home


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", ["cut", "byte", "empty", "weights"])
def test_a_damaged_checkpoint_is_named(toy, stopped, unbroken, damage):
    last = newest(stopped) / LAST
    whole = last.read_bytes()
    if damage == "weights":
        torch.save({"a": torch.ones(2)}, last)
    else:
        changed = {"cut": whole[: len(whole) // 2], "byte": flipped(whole), "empty": b""}
        last.write_bytes(changed[damage])
    command = f"{line(toy, 'steps')} ckpt_path=last"
    text = training.start(stopped, command).wait(1)
    assert f"ckpt_path: {last.relative_to(stopped)}: " in text
    assert "Traceback" not in text
    last.write_bytes(whole)
    training.start(stopped, command).wait()
    assert_same(outcome(stopped), unbroken("steps")[0])


@pytest.mark.parametrize(
    "change",
    [
        "datamodule.batch_size_train=2",
        "trainer.accumulate_grad_batches=2",
        "maest.distilled_type=separated",
        "module.layer_decay=0.5",
    ],
)
def test_what_cannot_go_on_is_refused(toy, stopped, change):
    command = f"{line(toy, 'steps')} {change} ckpt_path=exp_logs/1/{LAST}"
    text = training.start(stopped, command).wait(1)
    assert "ckpt_path: " in text
    assert change.partition("=")[0].rpartition(".")[2] in text
    assert "Traceback" not in text


def test_another_rate_holds_from_where_it_goes_on(toy, stopped):
    change = "module.lr=1e-5 module.weight_decay=0.5 module.betas=[0.8,0.9]"
    command = f"{line(toy, 'steps')} {change} ckpt_path=exp_logs/1/{LAST}"
    training.start(stopped, command).wait()
    (group,) = last_checkpoint(stopped)["optimizer_states"][0]["param_groups"]
    assert (group["weight_decay"], tuple(group["betas"])) == (0.5, (0.8, 0.9))
    rates = [row["lr"] for row in read_history(newest(stopped) / "history.csv")]
    assert rates[0] == 1e-3  # before
    assert max(rates[1:]) <= 1e-5


def test_a_file_that_disappears_changes_no_norm(toy, tmp_path):
    """The norm is measured once, before training."""
    mels = shutil.copytree(toy.mels, tmp_path / "mels")
    command = f"{line(toy, 'steps')} datamodule.base_dir={mels}"
    training.start(tmp_path, command, stop_at(8)).wait(128 + TERM)
    first = last_checkpoint(tmp_path)["maest"]["sizes"]
    (mels / "train/00.mmap").unlink()
    training.start(tmp_path, f"{command} datamodule.on_error=skip ckpt_path=last").wait()
    card = read_json(newest(tmp_path) / "model/config.json")
    assert card["sizes"]["norm_mean"] == first["norm_mean"]


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
    path = tmp_path / "a.ckpt"
    with atomic_path(path, durable=True) as temporary:
        temporary.write_bytes(b"x")
    name = str(temporary)
    assert events == [("sync", name), ("rename", name, str(path)), ("sync", str(tmp_path))]

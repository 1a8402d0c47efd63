"""Tags in music files: what comes back, and what is left by a run that is interrupted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from folders import killed_at
from mutagen.id3 import ID3
from tagged_music import (
    content,
    packets,
    planned,
    texts,
    write_tagged,
)

from maest.file_tags import SUFFIXES, apply, undo
from maest.helpers.errors import InputError

# ---- undo ----------------------------------------------------------------------------------------


def test_what_somebody_edited_since_stays(song, log):
    apply(planned(song), log)
    tags = ID3(song)
    tags["TCON"].text = ["Mine"]
    tags.save()
    done = undo(log)
    assert [field for _, field in done.edited] == ["TCON"]
    assert texts(song) == {"genre": ["Mine"], "style": [], "mood": []}
    assert not undo(log).restored


def test_several_runs_are_undone_at_once(song, log):
    apply(planned(song, [("Mood---Sad", 1)]), log)
    apply(planned(song, [("Mood---Dark", 1)], replace=True), log)
    assert len(log.read_text().splitlines()) == 2
    undo(log)
    assert texts(song)["mood"] == []


def test_undo_without_the_file_or_the_log(song, log):
    apply(planned(song), log)
    song.unlink()
    assert [skip.kind for skip in undo(log).skipped] == ["missing"]
    with pytest.raises(InputError) as error:
        undo(log.with_name("none"))
    assert error.value.kind == "missing"


# ---- interruptions -------------------------------------------------------------------------------


def test_killed_before_the_rename(song, log):
    """The log is ahead of the file: nothing to undo, and the same change can be made."""
    before = song.read_bytes()
    change = planned(song)
    with killed_at(0, os, "replace"):
        apply(change, log)
    assert song.read_bytes() == before
    assert log.exists()
    done = undo(log)
    assert (done.restored, done.edited, done.skipped) == ([], [], [])
    apply(planned(song), log)
    undo(log)
    assert texts(song)["style"] == []


@pytest.mark.parametrize("function", ["fsync", "utime"])
def test_an_error_on_the_way(song, log, monkeypatch, function):
    before = song.read_bytes()
    change = planned(song)

    def fail(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(InputError) as error:
        apply(change, log)
    assert error.value.kind == "access"
    assert song.read_bytes() == before
    assert not list(song.parent.glob(".tmp*"))


def test_a_torn_line_in_the_log(song, log):
    log.parent.mkdir()
    log.write_bytes(b'{"by": "maest tag", "path": "/music/a.mp3", "fie')
    apply(planned(song), log)
    lines = log.read_text().splitlines()
    assert [json.loads(line)["field"] for line in lines[1:]] == ["TCON", "TXXX:STYLE", "TMOO"]
    assert len(undo(log).restored) == 3


def test_a_log_that_cannot_be_written(tmp_path, song):
    change, before = planned(song), song.read_bytes()
    for log, kind in ((song, "exists"), (tmp_path, "access")):
        with pytest.raises(InputError) as error:
            apply(change, log)
        assert (error.value.kind, error.value.path) == (kind, log)
    assert song.read_bytes() == before


def test_a_file_changed_since_the_plan(song, log):
    change = planned(song)
    apply(planned(song), log)
    with pytest.raises(InputError) as error:
        apply(change, log)
    assert error.value.kind == "conflict"


def test_a_file_changed_while_it_is_copied(song, log, monkeypatch):
    change = planned(song)
    copystat = shutil.copystat

    def meanwhile(source, target):
        copystat(source, target)
        os.utime(song, (1e9, 1e9))

    monkeypatch.setattr(shutil, "copystat", meanwhile)
    with pytest.raises(InputError) as error:
        apply(change, log)
    assert error.value.kind == "conflict"
    assert texts(song)["style"] == []


_ENDLESS = """
import sys
from maest.file_tags import Options, apply, plan, undo
log, *paths = sys.argv[1:]
for i in range(1000):
    tags = [("Mood---" + "m" * (i % 9 * 300 + 1), 1.0)]
    for path in paths:
        apply(plan(path, tags, Options(replace=True)), log)
    print(i, flush=True)
"""


def test_sigkill_at_any_instant(tmp_path, log):
    paths = [tmp_path / name for name in ("v23.mp3", "a.flac", "a.m4a")]
    others = {path: write_tagged(path) for path in paths}
    sound = {path: packets(path) for path in paths}
    for rounds in (1, 2):
        command = [sys.executable, "-c", _ENDLESS, log, *paths]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for _ in range(rounds):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        for path in paths:
            assert packets(path) == sound[path]
            assert all(raw in content(path) for raw in others[path])
    assert {path.suffix for path in tmp_path.glob(".tmp*")} <= SUFFIXES  # removed another day
    done = undo(log)
    assert {path for path, _ in done.restored} == set(paths)
    assert not done.edited
    assert not done.skipped
    assert all(texts(path)["mood"] == [] for path in paths)


def test_neither_torch_nor_sacred_is_imported():
    names = "{'torch', 'pytorch_lightning', 'sacred'}"
    code = f"import sys, maest.file_tags; sys.exit(bool({names} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

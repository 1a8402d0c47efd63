"""A second extraction, or several at once, into the folders of a first one."""

import errno
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soundfile
from command_line import good, refused, run
from music import RATE, arrays, assert_same_results, stamps, tone, write_music

from maest.helpers.errors import InputError

OVERWRITE = "inference.overwrite=True"


def logits(line: str, home: Path, *more: str) -> str:
    return good("ex_maest.py", " ".join([f"extract_logits {line}", *more]), home)


def refuse(
    line: str, home: Path, *more: str, kind: str = "mismatch", place: str = "logits/manifest.json"
) -> InputError:
    typed = " ".join([f"extract_logits {line}", *more])
    return refused("ex_maest.py", typed, home, kind, None, place)


def test_a_second_run_skips_finished_tracks(line, music, model, tmp_path):
    """Tracks are extracted again that are missing, truncated, or older than their audio."""
    copy = shutil.copytree(music, tmp_path / "copy")
    line = line.replace(str(music), str(copy)) + " inference.outputs=[logits,predictions]"
    logits(line, tmp_path)
    level, before = tmp_path / "2sec", stamps(tmp_path)
    assert " 6 there already" in logits(line, tmp_path)
    assert stamps(tmp_path) == before
    whole = {path: path.read_bytes() for path in level.rglob("*000.flac*")}
    assert len(whole) == 3
    for path, content in whole.items():
        path.write_bytes(content[:-4])
        assert "1 track done" in logits(line, tmp_path)
        assert path.read_bytes() == content
    (level / "logits/a/002.flac.logits.npy").unlink()
    soundfile.write(copy / "b/001.flac", tone(3, 99), RATE)
    before = stamps(tmp_path)
    logits(line, tmp_path)
    changed = {path for path, stamp in stamps(tmp_path).items() if before.get(path) != stamp}
    assert {path[-21:-11] for path in changed} == {"a/002.flac", "b/001.flac"}
    assert "6 tracks done" in logits(line, tmp_path, OVERWRITE)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("inference.pool=none", "pool"),
        ("inference.patch_hop=1", "hop_seconds"),
        ("inference.tail=drop", "tail"),
        ("inference.max_windows=1", "max_windows"),
        ("maest.s_patchout_f_indices=[1]", "patchout"),
    ],
)
def test_other_settings_do_not_mix(line, tmp_path, change, named):
    logits(line, tmp_path)
    before = stamps(tmp_path)
    assert named in refuse(line, tmp_path, change).message
    assert stamps(tmp_path) == before
    if named == "pool":
        logits(line, tmp_path, "datamodule.clip_length=1.9 inference.patch_hop=2")
        assert len(arrays(tmp_path / "1.9sec")) == 6


def test_another_model_does_not_mix_unless_overwriting(line, model, tmp_path):
    logits(line, tmp_path)
    old = arrays(tmp_path / "2sec")
    other = shutil.copytree(model, tmp_path / "other")
    state = safetensors.torch.load_file(other / "model.safetensors")
    state["head.1.bias"] += 1
    safetensors.torch.save_file(state, other / "model.safetensors")
    line = line.replace(str(model), str(other))
    refuse(line, tmp_path)
    logits(line, tmp_path, OVERWRITE)
    for name, values in arrays(tmp_path / "2sec").items():
        np.testing.assert_allclose(values, old[name] + 1, atol=1e-4)


def test_two_folders_with_tracks_of_one_name(line, music, tmp_path):
    logits(line, tmp_path)
    write_music(tmp_path / "others", 2)
    elsewhere = line.replace(str(music), str(tmp_path / "others"))
    assert str(music) in refuse(elsewhere, tmp_path, kind="conflict", place="2sec/logits").message
    (tmp_path / "others/a/000.flac").rename(tmp_path / "others/new.flac")
    (tmp_path / "others/b/001.flac").unlink()
    assert "1 track done" in logits(elsewhere, tmp_path)  # of another name


def test_the_tracks_of_all_shards_are_looked_for(line, music, tmp_path):
    """Also where a shard has no track in common with the older results."""
    for name, numbers in (("A", [2]), ("B", [0, 2])):
        (tmp_path / name).mkdir()
        for i in numbers:
            soundfile.write(tmp_path / name / f"x{i}.wav", tone(3, i), RATE)
    one, other = (line.replace(str(music), str(tmp_path / name)) for name in "AB")
    logits(one, tmp_path)
    for shard in ("1/2", "2/2"):
        refuse(other, tmp_path, f"inference.shard={shard}", kind="conflict", place="2sec/logits")
    assert list(arrays(tmp_path / "2sec")) == ["logits/x2.wav.logits.npy"]


def test_a_full_disk(line, tmp_path, monkeypatch):
    save, calls = np.save, []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        line = f"extract_logits {line}"
        refused("ex_maest.py", line, tmp_path, "access", None, ".logits.npy")
    assert "4 tracks done" in good("ex_maest.py", line, tmp_path)


@pytest.mark.parametrize(
    "typed",
    [
        "inference.transformer_block=[0,2] inference.outputs=[embeddings,logits]",
        "inference.quantize=int8 trainer.accelerator=cpu",
    ],
)
def test_shards_together_are_one_run(line, tmp_path, typed):
    logits(line, tmp_path, typed)
    part = line.replace(f"out_dir={tmp_path}", "out_dir=parts")
    for shard in ("1/4", "2/4", "3/4", "4/4"):
        logits(part, tmp_path, typed, f"inference.shard={shard}")
    assert_same_results(tmp_path / "parts/2sec", tmp_path / "2sec")


def test_each_shard_lists_its_failures(line, music, tmp_path):
    """A run over all tracks replaces these lists."""
    folder = shutil.copytree(music, tmp_path / "copy")
    (folder / "a/000.flac").write_bytes(b"no")
    line = f"extract_logits {line.replace(str(music), str(folder))}"
    for shard, code, listed in (
        ("inference.shard=1/2", 1, "failed-1-of-2.csv"),
        ("inference.shard=2/2", 0, "failed-1-of-2.csv"),
        ("", 1, "failed.csv"),
    ):
        assert run("ex_maest.py", f"{line} {shard}", tmp_path).code == code
        assert [p.name for p in (tmp_path / "2sec/logits").glob("failed*")] == [listed]

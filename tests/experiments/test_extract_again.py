"""A second extraction, or several at once, into the folders of a first one."""

import errno
import shutil
from dataclasses import dataclass, replace

import numpy as np
import pytest
import safetensors.torch
import soundfile
from command_line import bad, good, run
from music import (
    RATE,
    arrays,
    assert_same_results,
    stamps,
    tone,
    write_music,
)

from maest.config import Settings
from maest.config.schema import parse, setting
from maest.config.settings import Inference
from maest.experiments.extract import extract
from maest.helpers.errors import InputError
from maest.helpers.results.manifest import read_manifest

pytestmark = pytest.mark.usefixtures("one_thread")


# ------------------------------------------------------------------ a second run


def test_a_second_run_skips_what_is_there(line, music, model, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(music, copy)
    line = line.replace(str(music), str(copy))
    good("ex_maest.py", f"extract_logits {line}", tmp_path)
    before = stamps(tmp_path)
    assert "6 there already" in good("ex_maest.py", f"extract_logits {line}", tmp_path)
    assert stamps(tmp_path) == before
    (tmp_path / "2sec/logits/a/000.flac.logits.npy").unlink()
    soundfile.write(copy / "b/001.flac", tone(3, 99), RATE)  # newer than what was made of it
    out = good("ex_maest.py", f"extract_logits {line}", tmp_path)
    assert "2 tracks done" in out
    assert "4 there already" in out
    changed = {path for path, stamp in stamps(tmp_path).items() if before[path] != stamp}
    assert {path[-22:] for path in changed} == {
        "s/a/000.flac.logits.npy"[-22:],
        "s/b/001.flac.logits.npy"[-22:],
    }
    assert "6 tracks done" in good(
        "ex_maest.py", f"extract_logits {line} inference.overwrite=True", tmp_path
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("inference.pool=none", "pool"),
        ("inference.patch_hop=1", "hop_seconds"),
        ("inference.tail=drop", "tail"),
        ("maest.s_patchout_f_indices=[1]", "patchout"),
        ("datamodule.clip_length=1.9 inference.patch_hop=2", None),  # a folder of its own
    ],
)
def test_other_settings_do_not_mix(line, tmp_path, change, said):
    good("ex_maest.py", f"extract_logits {line}", tmp_path)
    if said is None:
        good("ex_maest.py", f"extract_logits {line} {change}", tmp_path)
        assert (tmp_path / "1.9sec").is_dir()
        return
    before = stamps(tmp_path)
    message = bad("ex_maest.py", f"extract_logits {line} {change}", tmp_path)
    assert said in message
    assert "inference.overwrite=True" in message
    assert stamps(tmp_path) == before


def test_a_setting_that_comes_later_does_not_mix(music, model, tmp_path):
    """To be declared as one that results depend on is all that it needs."""

    @dataclass(frozen=True, kw_only=True)
    class Later(Inference):
        loudness: float | None = setting(None, "of the audio", tags="results")

    given = {"maest": {"checkpoint": str(model)}, "trainer": {"accelerator": "cpu"}}
    given["inference"] = {"audio": str(music), "out_dir": str(tmp_path)}
    settings = parse(Settings, given)

    def extracted(loudness: float | None) -> dict:
        inference = Later(**vars(settings.inference), loudness=loudness)
        return extract(replace(settings, inference=inference), "logits")

    assert extracted(1.0)["written"] == 6
    assert read_manifest(tmp_path / "2sec/logits")["settings"]["loudness"] == 1.0
    with pytest.raises(InputError, match=r"loudness 1\.0, now null"):
        extracted(None)


def test_another_model_does_not_mix_unless_told_to(line, model, tmp_path):
    good("ex_maest.py", f"extract_logits {line}", tmp_path)
    old = arrays(tmp_path / "2sec")
    other = shutil.copytree(model, tmp_path / "other")
    weights = other / "model.safetensors"
    state = safetensors.torch.load_file(weights)
    state["head.1.bias"] += 1
    safetensors.torch.save_file(state, weights)
    line = line.replace(str(model), str(other))
    assert "model" in bad("ex_maest.py", f"extract_logits {line}", tmp_path)
    good("ex_maest.py", f"extract_logits {line} inference.overwrite=True", tmp_path)
    for name, values in arrays(tmp_path / "2sec").items():
        np.testing.assert_allclose(values, old[name] + 1, atol=1e-4)


def test_overwrite_leaves_what_it_did_not_make(line, tmp_path):
    folder = tmp_path / "2sec/logits"
    good("ex_maest.py", f"extract_logits {line}", tmp_path)
    (folder / "thesis.tex").write_text("mine")
    (tmp_path / "elsewhere.npy").write_text("old")
    result = folder / "a/000.flac.logits.npy"
    before = result.read_bytes()
    result.unlink()
    result.symlink_to(tmp_path / "elsewhere.npy")
    out = good("ex_maest.py", f"extract_logits {line} inference.overwrite=True", tmp_path)
    assert "6 tracks done" in out
    assert result.is_symlink()  # followed, not replaced
    assert (tmp_path / "elsewhere.npy").read_bytes() == before
    result.unlink()
    other = f"{line} inference.patch_hop=1 inference.overwrite=True"
    good("ex_maest.py", f"extract_logits {other}", tmp_path)
    assert (folder / "thesis.tex").read_text() == "mine"


def test_results_of_others_are_not_replaced(line, tmp_path):
    others = tmp_path / "2sec/logits/a/000.flac.logits.npy"
    others.parent.mkdir(parents=True)
    others.write_text("mine")
    for overwrite in (False, True):
        arguments = f"extract_logits {line} inference.overwrite={overwrite}"
        assert str(tmp_path / "2sec/logits") in bad("ex_maest.py", arguments, tmp_path)
        assert others.read_text() == "mine"


def test_a_truncated_result_is_made_again(line, tmp_path):
    line += " inference.outputs=[logits,predictions]"
    good("ex_maest.py", f"extract_logits {line}", tmp_path)
    whole = {path: path.read_bytes() for path in (tmp_path / "2sec").rglob("*000.flac*")}
    assert len(whole) == 3
    for path, content in whole.items():
        path.write_bytes(content[:-4])
        out = good("ex_maest.py", f"extract_logits {line}", tmp_path)
        assert "1 track done" in out
        assert path.read_bytes() == content


def test_two_folders_with_tracks_of_one_name(line, music, tmp_path):
    good("ex_maest.py", f"extract_logits {line}", tmp_path)
    write_music(tmp_path / "others", 2)
    elsewhere = line.replace(str(music), str(tmp_path / "others"))
    message = bad("ex_maest.py", f"extract_logits {elsewhere}", tmp_path)
    assert "a/000.flac" in message
    assert str(music) in message
    (tmp_path / "others/a/000.flac").rename(tmp_path / "others/new.flac")
    (tmp_path / "others/b/001.flac").unlink()
    out = good("ex_maest.py", f"extract_logits {elsewhere}", tmp_path)  # of another name
    assert "1 track done" in out


def test_a_full_disk_is_told(line, tmp_path, monkeypatch):
    save, calls = np.save, []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(*args, **kwargs)

    monkeypatch.setattr(np, "save", full)
    message = bad("ex_maest.py", f"extract_logits {line}", tmp_path)
    assert "disk is full" in message
    assert str(tmp_path / "2sec/logits") in message
    monkeypatch.undo()
    assert "2 there already" in good("ex_maest.py", f"extract_logits {line}", tmp_path)


def test_the_tracks_of_all_shards_are_looked_for(line, music, tmp_path):
    """One folder has been done; a shard of another would find none of its own tracks there."""
    for name, numbers in (("A", [2]), ("B", [0, 2])):
        (tmp_path / name).mkdir()
        for i in numbers:
            soundfile.write(tmp_path / name / f"x{i}.wav", tone(3, i), RATE)
    one, other = (line.replace(str(music), str(tmp_path / name)) for name in "AB")
    good("ex_maest.py", f"extract_logits {one}", tmp_path)
    for shard in ("1/2", "2/2"):
        said = bad("ex_maest.py", f"extract_logits {other} inference.shard={shard}", tmp_path)
        assert "x2.wav" in said
        assert str(tmp_path / "A") in said
    assert list(arrays(tmp_path / "2sec")) == ["logits/x2.wav.logits.npy"]


# ------------------------------------------------------------------ many machines


def test_shards_together_are_one_run(line, model, tmp_path):
    line += " inference.transformer_block=[0,2] inference.outputs=[embeddings,logits]"
    good("ex_maest.py", f"extract_logits {line}", tmp_path)
    for shard in ("1/4", "2/4", "3/4", "4/4"):
        part = line.replace(f"out_dir={tmp_path}", "out_dir=parts")
        good("ex_maest.py", f"extract_logits {part} inference.shard={shard}", tmp_path)
    assert_same_results(tmp_path / "parts" / "2sec", tmp_path / "2sec")


def test_int8_shards_together_are_one_run(line, tmp_path):
    """What else is in a pass does not matter to a track."""
    line += " inference.quantize=int8 trainer.accelerator=cpu"
    good("ex_maest.py", f"extract_logits {line}", tmp_path)
    for shard in ("1/2", "2/2"):
        part = line.replace(f"out_dir={tmp_path}", "out_dir=parts")
        good("ex_maest.py", f"extract_logits {part} inference.shard={shard}", tmp_path)
    assert_same_results(tmp_path / "parts" / "2sec", tmp_path / "2sec")


def test_failures_of_a_shard_have_their_own_list(line, music, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(music, folder)
    (folder / "a" / "000.flac").write_bytes(b"no")
    line = line.replace(str(music), str(folder))
    assert run("ex_maest.py", f"extract_logits {line} inference.shard=1/2", tmp_path).code == 1
    good("ex_maest.py", f"extract_logits {line} inference.shard=2/2", tmp_path)
    results = tmp_path / "2sec/logits"
    assert [path.name for path in results.glob("failed*")] == ["failed-1-of-2.csv"]
    assert run("ex_maest.py", f"extract_logits {line}", tmp_path).code == 1
    assert [path.name for path in results.glob("failed*")] == ["failed.csv"]

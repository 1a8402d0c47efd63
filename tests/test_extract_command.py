"""extract_embeddings, extract_logits and predict on a folder of music, as they are typed."""

import csv
import json
import os
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from command_line import bad, good, run
from music import LABELS, RATE, arrays, assert_same_results, save_small_model, tone, write_music

from datasets.groundtruth import write_groundtruth
from datasets.preprocess import preprocess
from helpers.audio import read_audio
from models import get_maest

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def music(tmp_path_factory):
    folder = tmp_path_factory.mktemp("music")
    write_music(folder, 6)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_small_model(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture
def line(model, music, tmp_path):
    """What is typed after the command."""
    return f"with maest.checkpoint={model} inference.audio={music} inference.out_dir={tmp_path}"


def rows_of(path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------ what is written


def test_embeddings_of_a_folder(line, music, model, tmp_path):
    out = good("ex_maest.py", f"extract_embeddings {line} inference.transformer_block=1", tmp_path)
    found = arrays(tmp_path / "2sec" / "1")
    names = [f"{path.relative_to(music)}.embeddings.npy" for path in sorted(music.rglob("*.flac"))]
    assert list(found) == names
    assert {(e.shape, e.dtype) for e in found.values()} == {((3, 32), np.dtype(np.float32))}
    assert re.search(
        r"6 tracks done, 0 failed, 0 there already, in \d+ s \(0\.01 h of audio, \d+ x", out
    )
    net = get_maest(checkpoint=model)
    for path in music.rglob("*.flac"):
        with torch.no_grad():
            waveform = torch.from_numpy(read_audio(path))
            rows = net(waveform, transformer_block=1)[1].view(-1, 3, 32).numpy()
        own = found[f"{path.relative_to(music)}.embeddings.npy"]
        assert rows.min(axis=0).min() <= own.min()
        if len(rows) == 1:
            np.testing.assert_allclose(own, rows[0], rtol=1e-4, atol=1e-4)
    assert not (tmp_path / "2sec" / "1" / "failed.csv").exists()


def test_all_that_there_is_from_one_pass(line, tmp_path):
    good(
        "ex_maest.py",
        f"extract_embeddings {line} inference.transformer_block=all "
        "inference.outputs=[embeddings,logits,predictions]",
        tmp_path,
    )
    levels = sorted(path.name for path in (tmp_path / "2sec").iterdir())
    assert levels == ["0", "1", "2", "logits", "predictions"]
    for block in "01":
        alone = tmp_path / f"alone {block}"
        single = line.replace(f"out_dir={tmp_path}", "out_dir=alone")
        good(
            "ex_maest.py",
            f"extract_embeddings {single} inference.transformer_block={block}",
            tmp_path,
        )
        assert_same_results(tmp_path / "alone" / "2sec" / block, tmp_path / "2sec" / block)
        assert not alone.exists()


@pytest.mark.parametrize("typed", ["[2,0]", "[0, 2]", "2,0"])
def test_a_list_of_blocks(line, tmp_path, typed):
    arguments = f"extract_embeddings {line} inference.transformer_block={typed.replace(' ', '')}"
    good("ex_maest.py", arguments, tmp_path)
    assert sorted(path.name for path in (tmp_path / "2sec").iterdir()) == ["0", "2"]


def test_without_pooling_the_times_are_beside(line, music, tmp_path):
    arguments = f"extract_embeddings {line} inference.pool=none inference.patch_hop=1"
    good("ex_maest.py", f"{arguments} inference.transformer_block=[1,-1]", tmp_path)
    for name, values in arrays(tmp_path / "2sec" / "1").items():
        times = rows_of(tmp_path / "2sec" / "1" / name.replace(".embeddings.npy", ".times.csv"))
        assert [float(row["start"]) for row in times] == pytest.approx(
            np.arange(len(values)) * 62 / 62.5, abs=1e-3
        )
        assert (
            float(times[-1]["end"])
            <= len(soundfile.read(music / name.removesuffix(".embeddings.npy"))[0]) / RATE + 0.017
        )
        assert values.shape[1:] == (3, 32)
    for values in arrays(tmp_path / "2sec" / "final").values():
        assert values.shape[1:] == (1, 32)


def test_an_overlapping_mean_is_weighted_by_what_is_new(line, tmp_path):
    hop = "inference.patch_hop=0.8"
    good("ex_maest.py", f"extract_logits {line} {hop}", tmp_path)
    other = line.replace(f"out_dir={tmp_path}", "out_dir=patches")
    good("ex_maest.py", f"extract_logits {other} {hop} inference.pool=none", tmp_path)
    rows, means = (arrays(tmp_path / f / "2sec" / "logits") for f in ("patches", "."))
    for name, values in rows.items():
        path = tmp_path / "patches" / "2sec" / "logits" / name.replace(".logits.npy", ".times.csv")
        ends = np.array([float(row["end"]) for row in rows_of(path)])
        new = np.diff(ends, prepend=0)
        expected = np.average(values, axis=0, weights=new)
        np.testing.assert_allclose(means[name], expected, rtol=2e-2, atol=2e-2)
        if len(values) > 2:
            plain = values.mean(axis=0)
            assert np.abs(means[name] - expected).max() < np.abs(means[name] - plain).max()


def test_tails(line, tmp_path):
    """Of a track of 0.5 s: kept as it is, padded to a patch, or refused."""
    found = {}
    for tail in ("keep", "pad", "drop"):
        arguments = line.replace(f"out_dir={tmp_path}", f"out_dir={tail}")
        done = run("ex_maest.py", f"extract_logits {arguments} inference.tail={tail}", tmp_path)
        found[tail] = arrays(tmp_path / tail / "2sec" / "logits")
        assert done.code == (tail == "drop")
    short = "a/000.flac.logits.npy"
    assert np.abs(found["keep"][short] - found["pad"][short]).max() > 1e-3
    assert short not in found["drop"]
    (failure, *_) = rows_of(tmp_path / "drop" / "2sec" / "logits" / "failed.csv")
    assert failure["key"] == "a/000.flac"
    assert "inference.tail=drop" in failure["reason"]


def test_patchout_at_inference(line, tmp_path):
    good("ex_maest.py", f"extract_logits {line} maest.s_patchout_t_interleaved=2", tmp_path)
    other = line.replace(f"out_dir={tmp_path}", "out_dir=all")
    good("ex_maest.py", f"extract_logits {other}", tmp_path)
    some, every = (arrays(tmp_path / f / "2sec" / "logits") for f in (".", "all"))
    for name, values in every.items():
        assert 0 < np.abs(some[name] - values).max() < 5
    said = bad("ex_maest.py", f"extract_logits {line}", tmp_path)
    assert "patchout" in said
    assert "inference.overwrite=True" in said


# ------------------------------------------------------------------ predict


def test_predictions(line, music, model, tmp_path):
    out = good("ex_maest.py", f"predict {line} inference.top=2 inference.plot=True", tmp_path)
    folder = tmp_path / "2sec" / "predictions"
    net = get_maest(checkpoint=model)
    for path in music.rglob("*.flac"):
        key = path.relative_to(music).as_posix()
        found = json.loads((folder / f"{key}.predictions.json").read_text("utf-8"))
        activations, labels = net.predict_labels(torch.from_numpy(read_audio(path)))
        order = activations.argsort()[::-1][:2]
        assert [entry["label"] for entry in found["labels"]] == [labels[i] for i in order]
        assert [entry["activation"] for entry in found["labels"]] == pytest.approx(
            activations[order].tolist(), abs=1e-4
        )
        assert found["track"] == key
        assert all(len(patch["labels"]) == 2 for patch in found["patches"])
        rows = rows_of(folder / f"{key}.predictions.csv")
        assert set(rows[0]) == {"scope", "start", "end", "rank", "label", "activation"}
        assert len(rows) == 2 * (1 + len(found["patches"]))
        picture = (folder / f"{key}.predictions.png").read_bytes()
        assert picture.startswith(b"\x89PNG")
    table = rows_of(folder / "tracks.csv")
    assert [row["track"] for row in table] == sorted(
        path.relative_to(music).as_posix() for path in music.rglob("*.flac")
    )
    assert str(folder / "tracks.csv") in out


def test_one_song_is_shown_as_a_table(line, music, tmp_path):
    song = next(iter(sorted(music.rglob("*.flac"))))
    arguments = f"predict {line.replace(str(music), str(song))} inference.top=3"
    out = good("ex_maest.py", arguments, tmp_path)
    assert song.name in out
    for label in LABELS:
        assert re.search(rf"{label} +0\.\d+", out)
    again = good("ex_maest.py", arguments, tmp_path)  # what is there is shown
    assert "1 there already" in again
    for label in LABELS:
        assert re.search(rf"{label} +0\.\d+", again)


# ------------------------------------------------------------------ a second run


def stamps(folder) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.npy")}


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


def test_another_model_does_not_mix_unless_told_to(line, model, tmp_path):
    good("ex_maest.py", f"extract_logits {line}", tmp_path)
    old = arrays(tmp_path / "2sec")
    torch.manual_seed(5)
    other = shutil.copytree(model, tmp_path / "other")
    weights = other / "model.safetensors"
    import safetensors.torch

    state = safetensors.torch.load_file(weights)
    state["head.1.bias"] += 1
    safetensors.torch.save_file(state, weights)
    line = line.replace(str(model), str(other))
    assert "model" in bad("ex_maest.py", f"extract_logits {line}", tmp_path)
    good("ex_maest.py", f"extract_logits {line} inference.overwrite=True", tmp_path)
    for name, values in arrays(tmp_path / "2sec").items():
        np.testing.assert_allclose(values, old[name] + 1, atol=1e-4)


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
    assert "1 tracks done" in out


# ------------------------------------------------------------------ audio and log-mel files


def test_audio_gives_what_its_log_mel_file_gives(line, music, model, tmp_path):
    """float16 rounding aside."""
    preprocess(music, tmp_path / "mels", num_workers=1, progress=False)
    keys = sorted(p.relative_to(tmp_path / "mels").as_posix() for p in tmp_path.rglob("*.mmap"))
    write_groundtruth(tmp_path / "all.pk", {key: np.array([1, 0, 0]) for key in keys})
    good("ex_maest.py", f"extract_embeddings {line} inference.transformer_block=[1,-1]", tmp_path)
    good(
        "ex_maest.py",
        f"extract_embeddings with maest.checkpoint={model} inference.transformer_block=[1,-1] "
        f"datamodule.groundtruth_predict={tmp_path}/all.pk datamodule.base_dir={tmp_path}/mels "
        f"inference.out_dir={tmp_path}/frommels",
        tmp_path,
    )
    for level in ("1", "final"):
        audio = arrays(tmp_path / "2sec" / level)
        mels = arrays(tmp_path / "frommels" / "2sec" / level)
        assert len(audio) == len(mels) == 6
        for name, values in audio.items():
            other = mels[name.replace(".flac.", ".mmap.")]
            assert np.abs(values - other).max() < 5e-3 * np.abs(values).max()


# ------------------------------------------------------------------ nothing is lost


@pytest.fixture
def bad_music(music, tmp_path):
    """All that a folder of music may hold beside music; and which of it can be done."""
    folder = tmp_path / "bad music"
    shutil.copytree(music, folder)
    done = {str(path.relative_to(folder)) for path in folder.rglob("*.flac")}
    failed = {"text.mp3", "empty.wav", "nan.wav", "truncated.wav", "loud.wav", "link.wav"}
    (folder / "text.mp3").write_bytes(b"no music at all" * 100)
    (folder / "empty.wav").touch()
    noise = tone(3, 7)[:, 0]
    noise[1000] = np.nan
    soundfile.write(folder / "nan.wav", noise, RATE, subtype="FLOAT")
    soundfile.write(folder / "truncated.wav", tone(5, 8), RATE)
    os.truncate(folder / "truncated.wav", 60_000)
    soundfile.write(folder / "loud.wav", tone(3, 9) * 30_000, RATE, subtype="FLOAT")
    (folder / "link.wav").symlink_to(folder / "nowhere.wav")
    # What can be done
    soundfile.write(folder / "silent.wav", np.zeros(3 * RATE), RATE)
    soundfile.write(folder / "one sample.wav", np.full(1, 0.5), RATE)
    soundfile.write(folder / "eight.wav", tone(3, 10, channels=8), RATE)
    soundfile.write(folder / "fast.wav", tone(3, 11, rate=192_000), 192_000)
    soundfile.write(folder / "two\nlines.wav", tone(3, 12), RATE)
    soundfile.write(folder / "same.wav", tone(3, 13), RATE)
    soundfile.write(folder / "same.flac", tone(3, 14), RATE)
    soundfile.write(folder / "UPPER.WAV", tone(3, 15), RATE, format="WAV")
    raw = os.fsencode(folder) + b"/b\xffytes.wav"
    shutil.copy(folder / "same.wav", raw)
    (folder / "folder.mp3").mkdir()
    soundfile.write(folder / "folder.mp3/inside.wav", tone(3, 16), RATE)
    (folder / "loop").symlink_to(folder)
    (folder / "b/loop").symlink_to("..")
    (folder / "notes.txt").write_text("no audio")
    (folder / ".hidden.wav").write_bytes(b"")
    done |= {"silent.wav", "one sample.wav", "eight.wav", "fast.wav", "two\nlines.wav"}
    done |= {"same.wav", "same.flac", "UPPER.WAV", os.fsdecode(b"b\xffytes.wav")}
    done |= {"folder.mp3/inside.wav"}
    return folder, done, failed


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_files_cost_themselves_and_nothing_else(bad_music, model, tmp_path, workers):
    folder, done, failed = bad_music
    (tmp_path / "bad").symlink_to(folder)  # without a space, as lines are split here
    line = (
        f"predict with maest.checkpoint={model} inference.audio={tmp_path}/bad "
        "inference.out_dir=out inference.transformer_block=1 "
        f"inference.outputs=[embeddings,predictions] datamodule.num_workers={workers} "
        "inference.plot=True"
    )
    ended = run("ex_maest.py", line, tmp_path)
    assert ended.code == 1, ended.out + ended.err
    assert "Traceback" not in ended.err
    assert f"{len(done)} tracks done" in ended.out
    assert f"{len(failed)} failed" in ended.out
    for level, end in (("1", ".embeddings.npy"), ("predictions", ".predictions.json")):
        results = tmp_path / "out/2sec" / level
        found = {str(p.relative_to(results)).removesuffix(end) for p in results.rglob(f"*{end}")}
        assert found == done
        reasons = {row["key"]: row["reason"] for row in rows_of(results / "failed.csv")}
        assert reasons.keys() == failed
        assert "NaN" in reasons["nan.wav"]
        assert "empty" in reasons["empty.wav"]
        assert "end is missing" in reasons["truncated.wav"]
        assert "link" in reasons["link.wav"]
    again = run("ex_maest.py", line, tmp_path)
    assert again.code == 1  # they are tried again
    assert f"{len(failed)} failed, {len(done)} there already" in again.out


def test_without_a_failure_the_list_goes(line, music, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(music, folder)
    (folder / "bad.wav").write_bytes(b"no")
    line = line.replace(str(music), str(folder))
    assert run("ex_maest.py", f"extract_logits {line}", tmp_path).code == 1
    failures = tmp_path / "2sec/logits/failed.csv"
    assert failures.is_file()
    soundfile.write(folder / "bad.wav", tone(3, 1), RATE)
    good("ex_maest.py", f"extract_logits {line}", tmp_path)
    assert not failures.exists()


def test_a_full_disk_is_told(line, tmp_path, monkeypatch):
    import errno

    save, calls = np.save, []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return save(*args, **kwargs)

    monkeypatch.setattr(np, "save", full)
    message = bad("ex_maest.py", f"extract_logits {line}", tmp_path)
    assert "disk is full" in message
    monkeypatch.undo()
    assert "2 there already" in good("ex_maest.py", f"extract_logits {line}", tmp_path)


# ------------------------------------------------------------------ many machines


def test_shards_together_are_one_run(line, model, tmp_path):
    line += " inference.transformer_block=[0,2] inference.outputs=[embeddings,logits]"
    good("ex_maest.py", f"extract_logits {line}", tmp_path)
    for shard in ("1/4", "2/4", "3/4", "4/4"):
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


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("extract_logits inference.audio=/no/such/folder", "no such file or folder"),
        ("extract_embeddings inference.transformer_block=3", "0, 1, 2"),
        ("extract_embeddings inference.transformer_block=[1,1]", "each once"),
        ("extract_embeddings inference.transformer_block=most", "most"),
        ("extract_embeddings inference.transformer_block=1.5", "1.5"),
        ("extract_embeddings inference.outputs=[embedding]", "Did you mean 'embeddings'?"),
        ("extract_embeddings inference.plot=True", "the command predict"),
        ("extract_embeddings inference.pool=median", "'mean', 'none'"),
        ("extract_embeddings inference.tail=cut", "'keep', 'drop', 'pad'"),
        ("extract_embeddings inference.quantize=int4", "'int8'"),
        ("extract_embeddings inference.shard=5/4", "K/N"),
        ("extract_embeddings inference.shard=half", "K/N"),
        ("extract_embeddings inference.patch_hop=0", "at least 0.016"),
        ("extract_embeddings inference.patches_per_pass=0", "at least 1"),
        ("predict inference.top=0", "at least 1"),
        ("predict maest.n_classes=7", "leave out maest.n_classes"),
        ("predict trainer.accelerator=tpus", "tpus"),
        ("predict trainer.precision=16-true", "'16-mixed'"),
    ],
)
def test_what_is_refused(line, tmp_path, arguments, said):
    command, _, rest = arguments.partition(" ")
    assert said in bad("ex_maest.py", f"{command} {line} {rest}", tmp_path)


def test_a_folder_without_audio(line, music, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("")
    line = line.replace(str(music), str(tmp_path / "texts"))
    assert "no audio in it" in bad("ex_maest.py", f"extract_logits {line}", tmp_path)


def test_random_weights_are_named_so(music, tmp_path, caplog):
    done = run(
        "ex_maest.py",
        f"extract_embeddings with maest.arch=maest_tiny inference.audio={music} "
        "datamodule.clip_length=2 inference.transformer_block=0",
        tmp_path,
    )
    assert done.code == 0
    assert "RANDOM weights" in caplog.text
    assert "which model?" in bad("ex_maest.py", f"predict with inference.audio={music}", tmp_path)

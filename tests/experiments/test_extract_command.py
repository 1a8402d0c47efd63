"""extract_embeddings, extract_logits and predict on a folder of music, as they are typed."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch
from command_line import good, refused, run, settings
from folders import read_json, rows
from music import LABELS, PATCH, RATE, arrays, assert_same_results, stamps, tone

from maest.datasets.groundtruth import read_groundtruth, write_groundtruth
from maest.datasets.melspectrograms import read_patches
from maest.datasets.preprocess import preprocess
from maest.helpers.audio.constants import n_frames
from maest.helpers.audio.log_mel import log_mel
from maest.helpers.audio.patches import cut, new_frames, times
from maest.helpers.audio.reading import read_audio
from maest.models import extraction, get_maest


def weights(waveform: np.ndarray, hop: int | None = None) -> list[int]:
    """The frames that each patch of a track newly covers."""
    return new_frames(cut(n_frames(len(waveform)), PATCH, hop))


@torch.no_grad()
def patch_outputs(net, waveform: np.ndarray, block: int = -1) -> list[torch.Tensor]:
    """Logits and embeddings of each patch of a track, of log-mel values in float16 as on disk."""
    return net(net.normalise(torch.from_numpy(log_mel(waveform).astype("f4")).T), block, True)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """But for 1e-5 of the largest value."""
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def extract(line: str, home: Path, command: str = "extract_logits", out: str | None = None) -> str:
    """Extract into a folder of this name, or else into the home itself."""
    if out is not None:
        line = line.replace(f"out_dir={home}", f"out_dir={out}")
    return good("ex_maest.py", f"{command} {line}", home)


# ---- what is written -----------------------------------------------------------------------------


def test_embeddings_of_a_folder(line, music, model, tmp_path):
    out = extract(f"{line} inference.transformer_block=1", tmp_path, "extract_embeddings")
    found, net = arrays(tmp_path / "2sec/1"), get_maest(checkpoint=model)
    tracks = [path.relative_to(music).as_posix() for path in sorted(music.rglob("*.flac"))]
    assert list(found) == [f"{track}.embeddings.npy" for track in tracks]
    assert {(e.shape, e.dtype) for e in found.values()} == {((3, 32), np.dtype(np.float32))}
    assert re.search(r"\b6 tracks done, 0 failed, 0 ", out)
    for track, own in zip(tracks, found.values(), strict=True):
        waveform = read_audio(music / track)
        patches = patch_outputs(net, waveform, 1)[1].view(-1, 3, 32).numpy()
        assert_close(own, np.average(patches, axis=0, weights=weights(waveform)))
    assert not (tmp_path / "2sec/1/failed.csv").exists()


@pytest.fixture
def computed(monkeypatch):
    """Patches that the network computes, and for which blocks at once."""
    counts, create = [], extraction.create

    def counting(net, **options):
        engine = create(net, **options)

        class Counting:
            device, name, similarity = engine.device, engine.name, None

            def __call__(self, mels):
                counts.append((len(mels), options["blocks"], options["logits"]))
                return engine(mels)

        return Counting()

    monkeypatch.setattr(extraction, "create", counting)
    return counts


def test_all_outputs_come_from_one_pass(line, music, tmp_path, computed):
    patches = sum(len(weights(read_audio(path))) for path in music.rglob("*.flac"))
    everything = "inference.transformer_block=all inference.outputs=[embeddings,logits,predictions]"
    extract(f"{line} {everything}", tmp_path)
    assert sum(count for count, *_ in computed) == patches
    assert {(blocks, logits) for _, blocks, logits in computed} == {((0, 1, 2), True)}
    levels = {path.name for path in (tmp_path / "2sec").iterdir()}
    assert levels == {"0", "1", "2", "logits", "predictions"}
    computed.clear()  # no more than is needed
    extract(f"{line} inference.transformer_block=1", tmp_path, "extract_embeddings", "alone")
    assert sum(count for count, *_ in computed) == patches
    assert {(blocks, logits) for _, blocks, logits in computed} == {((1,), False)}
    extract(line, tmp_path, out="alone")
    assert {path.name for path in (tmp_path / "alone/2sec").iterdir()} == {"1", "logits"}
    for level in ("1", "logits"):
        assert_same_results(tmp_path / "alone/2sec" / level, tmp_path / "2sec" / level)


def test_without_pooling_the_times_are_beside(line, music, tmp_path):
    line += " inference.pool=none inference.patch_hop=1 inference.transformer_block=1,-1"
    extract(line, tmp_path, "extract_embeddings")
    for name, values in arrays(tmp_path / "2sec/1").items():
        track = name.removesuffix(".embeddings.npy")
        spans = rows(tmp_path / f"2sec/1/{track}.times.csv")
        starts = np.arange(len(values)) * 62 / 62.5
        assert [float(row["start"]) for row in spans] == pytest.approx(starts, abs=1e-3)
        assert float(spans[-1]["end"]) <= soundfile.info(music / track).duration + 0.017
        assert values.shape[1:] == (3, 32)
    for values in arrays(tmp_path / "2sec/final").values():
        assert values.shape[1:] == (1, 32)


def test_an_overlapping_mean_is_weighted_by_what_is_new(line, music, tmp_path):
    line += " inference.patch_hop=0.8"  # 50 frames
    extract(line, tmp_path)
    extract(f"{line} inference.pool=none", tmp_path, out="patches")
    patches, means = (arrays(tmp_path / f / "2sec/logits") for f in ("patches", "."))
    for name, values in patches.items():
        new = weights(read_audio(music / name.removesuffix(".logits.npy")), 50)
        assert_close(means[name], np.average(values, axis=0, weights=new))
        if len(values) > 2:
            assert np.abs(means[name] - values.mean(axis=0)).max() > 1e-3


def test_tails(line, tmp_path):
    """Of a track of 0.5 s: unchanged, padded to a patch, or refused."""
    found, short = {}, "a/000.flac.logits.npy"
    for tail in ("keep", "pad", "drop"):
        typed = line.replace(f"out_dir={tmp_path}", f"out_dir={tail}")
        done = run("ex_maest.py", f"extract_logits {typed} inference.tail={tail}", tmp_path)
        found[tail] = arrays(tmp_path / tail / "2sec/logits")
        assert done.code == (tail == "drop")
    assert np.abs(found["keep"][short] - found["pad"][short]).max() > 1e-3
    assert short not in found["drop"]
    assert rows(tmp_path / "drop/2sec/logits/failed.csv")[0]["key"] == "a/000.flac"


def test_patchout_at_inference(line, music, model, tmp_path):
    extract(f"{line} maest.s_patchout_t_interleaved=2", tmp_path)
    fewer = get_maest(checkpoint=model, s_patchout_t_interleaved=2)
    every = get_maest(checkpoint=model)
    for name, values in arrays(tmp_path / "2sec/logits").items():
        waveform = read_audio(music / name.removesuffix(".logits.npy"))
        some, others = (
            np.average(patch_outputs(net, waveform)[0], axis=0, weights=weights(waveform))
            for net in (fewer, every)
        )
        assert_close(values, some)
        assert np.abs(values - others).max() > 1e-3


# ---- predict -------------------------------------------------------------------------------------


def test_predictions(line, music, model, tmp_path):
    extract(f"{line} inference.top=2 inference.plot=True", tmp_path, "predict")
    folder, net = tmp_path / "2sec/predictions", get_maest(checkpoint=model)

    def check(entries: list[dict], values: np.ndarray) -> None:
        best = values.argsort()[::-1][:2]
        assert [entry["label"] for entry in entries] == [LABELS[i] for i in best]
        activations = [entry["activation"] for entry in entries]
        np.testing.assert_allclose(activations, values[best], atol=1e-4)

    tracks = [path.relative_to(music).as_posix() for path in sorted(music.rglob("*.flac"))]
    for track in tracks:
        found, waveform = read_json(folder / f"{track}.predictions.json"), read_audio(music / track)
        patches = net.activations(patch_outputs(net, waveform)[0]).numpy()
        check(found["labels"], np.average(patches, axis=0, weights=weights(waveform)))
        for patch, values in zip(found["patches"], patches, strict=True):
            check(patch["labels"], values)
        assert found["track"] == track
        table = rows(folder / f"{track}.predictions.csv")
        columns = {"scope", "start", "end", "rank", "label", "activation", "warnings"}
        assert set(table[0]) == columns
        assert len(table) == 2 * (1 + len(patches))
        frames = n_frames(len(waveform))
        expected = [(start, end) for start, _, end in times(cut(frames, PATCH), frames)]
        spans = [(patch["start"], patch["end"]) for patch in found["patches"]]
        np.testing.assert_allclose(spans, expected, atol=6e-4)
        picture = matplotlib.image.imread(folder / f"{track}.predictions.png")
        height, width, _ = picture.shape
        assert 1200 < width < 1400  # 11 inches, 120 dots an inch, its margins cut off
        assert 350 < height < 700
        assert picture[..., :3].std() > 0.1
    assert [row["track"] for row in rows(folder / "tracks.csv")] == tracks


def test_one_song_is_shown_as_a_table(line, music, tmp_path):
    """Also where it was predicted before."""
    line = line.replace(str(music), str(min(music.rglob("*.flac"))))
    for _ in range(2):
        out = extract(f"{line} inference.top=3", tmp_path, "predict")
        for label in LABELS:
            assert re.search(rf"{label} +0\.\d+", out)


# ---- warnings ------------------------------------------------------------------------------------


@pytest.fixture
def doubtful(tmp_path) -> Path:
    """Files of which results can hardly mean much, but for one."""
    folder, sound = tmp_path / "doubtful", tone(3, 0)
    folder.mkdir()
    soundfile.write(folder / "fine.wav", sound, RATE)
    soundfile.write(folder / "silence.wav", np.zeros(3 * RATE), RATE)
    soundfile.write(folder / "antiphase.wav", np.concatenate((sound, -sound), 1), RATE)
    soundfile.write(folder / "short.wav", sound[: RATE // 10], RATE)
    return folder


def test_doubtful_audio_has_warnings_beside_its_results(line, music, doubtful, tmp_path):
    line = line.replace(str(music), str(doubtful)) + " inference.outputs=[logits,predictions]"
    level, listed = tmp_path / "2sec", tmp_path / "2sec/logits/warnings.csv"
    assert "3 with warnings" in extract(line, tmp_path, "predict")
    table = {row["track"]: row["warnings"] for row in rows(level / "predictions/tracks.csv")}
    assert {key for key, why in table.items() if not why} == {"fine.wav"}
    assert {row["key"]: row["warnings"] for row in rows(listed)} | {"fine.wav": ""} == table
    for key, why in table.items():
        found = read_json(level / f"predictions/{key}.predictions.json")
        assert found["warnings"] == ([why] if why else [])
    before = stamps(level)
    assert "with warnings" not in extract(line, tmp_path, "predict")  # none was written now
    assert rows(listed)
    assert before == stamps(level)
    song = line.replace("/doubtful", "/doubtful/silence.wav")
    assert table["silence.wav"] in extract(song, tmp_path, "predict", "one")


# ---- audio and log-mel files ---------------------------------------------------------------------


def from_mels(audio: Path, model: Path, home: Path) -> str:
    """Log-mel files of a folder of audio; what is typed to extract from them, into "out"."""
    preprocess(audio, home / "mels", num_workers=1, progress=False)
    keys = (path.relative_to(home / "mels").as_posix() for path in home.rglob("*.mmap"))
    write_groundtruth(home / "all.pk", {key: np.array([1, 0, 0]) for key in keys})
    return (
        f"with maest.checkpoint={model} inference.out_dir=out datamodule.base_dir=mels "
        "datamodule.groundtruth_predict=all.pk"
    )


def test_audio_gives_what_its_log_mel_file_gives(line, music, model, tmp_path):
    mels = from_mels(music, model, tmp_path)
    for typed in (line, mels):
        extract(f"{typed} inference.transformer_block=[1,-1]", tmp_path, "extract_embeddings")
    for level in ("1", "final"):
        audio, others = (arrays(tmp_path / f / "2sec" / level) for f in (".", "out"))
        assert len(audio) == len(others) == 6
        for name, values in audio.items():
            np.testing.assert_array_equal(values, others[name.replace(".flac.", ".mmap.")])


def test_log_mel_files_of_silence_have_warnings(doubtful, model, tmp_path):
    (doubtful / "antiphase.wav").unlink()  # nearly silent, but for rounding
    extract(from_mels(doubtful, model, tmp_path), tmp_path)
    found = rows(tmp_path / "out/2sec/logits/warnings.csv")
    assert {row["key"] for row in found} == {"silence.mmap", "short.mmap"}


def test_each_patch_in_the_order_of_time(toy, model, tmp_path):
    """Of log-mel files, in passes that hold fewer patches than a track has."""
    line = (
        f"with maest.checkpoint={model} {settings(toy)} inference.transformer_block=1 "
        f"inference.pool=none inference.patch_hop=0.4 inference.out_dir={tmp_path} "
        "inference.outputs=[embeddings,predictions] inference.patches_per_pass=2"
    )
    extract(line, tmp_path, "extract_embeddings")
    net, most = get_maest(checkpoint=model), 0
    keys = list(read_groundtruth(toy.groundtruth("test")).keys)
    found = arrays(tmp_path / "2sec/1")
    assert sorted(found) == sorted(f"{key}.embeddings.npy" for key in keys)
    for key in keys:
        (whole,) = read_patches(toy.mels, key, 1000)
        mel = net.normalise(torch.from_numpy(whole.astype(np.float32)).T)
        spans = cut(mel.shape[1], PATCH, 25)
        with torch.no_grad():
            patches = [net(mel[None, :, a:b], transformer_block=1)[1].view(3, 32) for a, b in spans]
        assert_close(found[f"{key}.embeddings.npy"], torch.stack(patches).numpy())
        most = max(most, len(patches))
    assert most > 4
    table = rows(tmp_path / "2sec/predictions/tracks.csv")
    assert [row["track"] for row in table] == keys


def test_a_missing_log_mel_file_is_listed(toy, model, tmp_path):
    """Also with on_error=raise, and in a shard."""
    keys = [*read_groundtruth(toy.groundtruth("test")).keys, "test/gone.mmap"]
    write_groundtruth(tmp_path / "all.pk", {key: np.array([1, 0, 0]) for key in keys})
    line = (
        f"with maest.checkpoint={model} datamodule.base_dir={toy.mels} inference.out_dir=out "
        f"datamodule.groundtruth_predict={tmp_path}/all.pk datamodule.on_error=raise"
    )
    assert run("ex_maest.py", f"extract_logits {line}", tmp_path).code == 1
    (failure,) = rows(tmp_path / "out/2sec/logits/failed.csv")
    assert failure["key"] == "test/gone.mmap"
    for shard in (1, 2, 3):
        part = line.replace("out_dir=out", f"out_dir=part{shard}") + f" inference.shard={shard}/3"
        assert run("ex_maest.py", f"extract_logits {part}", tmp_path).code == (shard == 1)
    names = [name for i in (1, 2, 3) for name in arrays(tmp_path / f"part{i}/2sec/logits")]
    assert sorted(names) == sorted(arrays(tmp_path / "out/2sec/logits"))
    assert len(names) == 12


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ("extract_logits inference.audio=/no/such/folder", "missing"),
        ("extract_embeddings inference.transformer_block=3", "invalid"),
        ("extract_embeddings inference.transformer_block=[1,1]", "invalid"),
        ("extract_embeddings inference.transformer_block=[]", "empty"),
        ("extract_embeddings inference.transformer_block=1.5", "invalid"),
        ("extract_embeddings inference.outputs=[logits,logits]", "invalid"),
        ("extract_embeddings inference.plot=True", "conflict"),
        ("extract_embeddings inference.shard=5/4", "invalid"),
        ("extract_embeddings inference.shard=half", "invalid"),
        ("predict maest.n_classes=7", "mismatch"),
        ("predict trainer.accelerator=tpus", "unknown"),
        ("predict trainer.precision=16-true", "unknown"),
    ],
)
def test_what_is_refused(line, tmp_path, arguments, kind):
    command, _, typed = arguments.partition(" ")
    setting = "maest.checkpoint" if "n_classes" in typed else typed.partition("=")[0]
    refused("ex_maest.py", f"{command} {line} {typed}", tmp_path, kind, setting)
    assert not list(tmp_path.glob("*sec"))


def test_a_folder_without_audio(line, music, tmp_path):
    (tmp_path / "texts").mkdir()
    line = line.replace(str(music), str(tmp_path / "texts"))
    refused("ex_maest.py", f"extract_logits {line}", tmp_path, "empty", "inference.audio", "texts")


def test_what_is_warned_of(line, tmp_path, caplog):
    """Patches far longer than the trained ones, and gaps between patches."""
    for typed, warnings in (
        ("datamodule.clip_length=6", 0),
        ("datamodule.clip_length=11", 1),
        ("inference.patch_hop=100", 1),
    ):
        caplog.clear()
        extract(f"{line} {typed}", tmp_path)
        found = (r for r in caplog.records if r.levelname == "WARNING")
        assert len([r for r in found if "resized" not in r.message]) == warnings


def test_random_weights_are_named_so(music, tmp_path, caplog):
    line = f"with inference.audio={music} datamodule.clip_length=2"
    good("ex_maest.py", f"extract_embeddings {line} maest.arch=maest_tiny", tmp_path)
    assert "RANDOM weights" in caplog.text
    refused("ex_maest.py", f"predict {line}", tmp_path, "missing", "maest.checkpoint")

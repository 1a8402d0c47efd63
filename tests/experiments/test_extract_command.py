"""extract_embeddings, extract_logits and predict on a folder of music, as they are typed."""

import json
import re

import matplotlib.image
import numpy as np
import pytest
import soundfile
import torch
from command_line import bad, good, run, settings
from folders import rows as rows_of
from music import (
    LABELS,
    PATCH,
    RATE,
    arrays,
    assert_same_results,
    stamps,
    tone,
)

from maest.datasets.groundtruth import read_groundtruth, write_groundtruth
from maest.datasets.melspectrograms import read_patches
from maest.datasets.preprocess import preprocess
from maest.helpers.audio.constants import n_frames
from maest.helpers.audio.log_mel import log_mel
from maest.helpers.audio.patches import cut, new_frames, times
from maest.helpers.audio.reading import read_audio
from maest.models import extraction, get_maest

pytestmark = pytest.mark.usefixtures("one_thread")


def weights(waveform: np.ndarray, hop: int | None = None) -> list[int]:
    """The frames that each patch of a track newly covers."""
    return new_frames(cut(n_frames(len(waveform)), PATCH, hop))


def stored(net, waveform: np.ndarray) -> torch.Tensor:
    """A track's log-mel as the network takes it, [F, T], of values in float16 as on disk."""
    return net.normalise(torch.from_numpy(log_mel(waveform).astype(np.float32)).T)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """But for 1e-5 of the largest value."""
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


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
        waveform = read_audio(path)
        with torch.no_grad():
            rows = net(stored(net, waveform), 1, True)[1].view(-1, 3, 32).numpy()
        own = found[f"{path.relative_to(music)}.embeddings.npy"]
        assert_close(own, np.average(rows, axis=0, weights=weights(waveform)))
    assert not (tmp_path / "2sec" / "1" / "failed.csv").exists()


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


def test_all_that_there_is_from_one_pass(line, music, tmp_path, computed):
    patches = sum(len(weights(read_audio(path))) for path in music.rglob("*.flac"))
    good(
        "ex_maest.py",
        f"extract_embeddings {line} inference.transformer_block=all "
        "inference.outputs=[embeddings,logits,predictions]",
        tmp_path,
    )
    assert sum(count for count, *_ in computed) == patches
    assert {(blocks, logits) for _, blocks, logits in computed} == {((0, 1, 2), True)}
    levels = sorted(path.name for path in (tmp_path / "2sec").iterdir())
    assert levels == ["0", "1", "2", "logits", "predictions"]
    single = line.replace(f"out_dir={tmp_path}", "out_dir=alone")
    for block in (0, 1):  # no more than is needed
        computed.clear()
        arguments = f"extract_embeddings {single} inference.transformer_block={block}"
        good("ex_maest.py", arguments, tmp_path)
        assert sum(count for count, *_ in computed) == patches
        assert {(blocks, logits) for _, blocks, logits in computed} == {((block,), False)}
        assert_same_results(tmp_path / f"alone/2sec/{block}", tmp_path / f"2sec/{block}")
    assert sorted(path.name for path in (tmp_path / "alone/2sec").iterdir()) == ["0", "1"]
    good("ex_maest.py", f"extract_logits {single}", tmp_path)
    assert_same_results(tmp_path / "alone/2sec/logits", tmp_path / "2sec/logits")


@pytest.mark.parametrize("typed", ["[2,0]", "[0, 2]", "2,0"])
def test_a_list_of_blocks(line, tmp_path, typed):
    arguments = f"extract_embeddings {line} inference.transformer_block={typed.replace(' ', '')}"
    good("ex_maest.py", arguments, tmp_path)
    assert sorted(path.name for path in (tmp_path / "2sec").iterdir()) == ["0", "2"]


def test_without_pooling_the_times_are_beside(line, music, tmp_path):
    arguments = f"extract_embeddings {line} inference.pool=none inference.patch_hop=1"
    good("ex_maest.py", f"{arguments} inference.transformer_block=[1,-1]", tmp_path)
    for name, values in arrays(tmp_path / "2sec" / "1").items():
        spans = rows_of(tmp_path / "2sec" / "1" / name.replace(".embeddings.npy", ".times.csv"))
        assert [float(row["start"]) for row in spans] == pytest.approx(
            np.arange(len(values)) * 62 / 62.5, abs=1e-3
        )
        assert (
            float(spans[-1]["end"])
            <= len(soundfile.read(music / name.removesuffix(".embeddings.npy"))[0]) / RATE + 0.017
        )
        assert values.shape[1:] == (3, 32)
    for values in arrays(tmp_path / "2sec" / "final").values():
        assert values.shape[1:] == (1, 32)


def test_an_overlapping_mean_is_weighted_by_what_is_new(line, music, tmp_path):
    hop = "inference.patch_hop=0.8"  # 50 frames
    good("ex_maest.py", f"extract_logits {line} {hop}", tmp_path)
    other = line.replace(f"out_dir={tmp_path}", "out_dir=patches")
    good("ex_maest.py", f"extract_logits {other} {hop} inference.pool=none", tmp_path)
    rows, means = (arrays(tmp_path / f / "2sec" / "logits") for f in ("patches", "."))
    for name, values in rows.items():
        new = weights(read_audio(music / name.removesuffix(".logits.npy")), 50)
        assert_close(means[name], np.average(values, axis=0, weights=new))
        if len(values) > 2:
            assert np.abs(means[name] - values.mean(axis=0)).max() > 1e-3


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
    assert "tail=drop" in failure["reason"]


def test_patchout_at_inference(line, music, model, tmp_path):
    good("ex_maest.py", f"extract_logits {line} maest.s_patchout_t_interleaved=2", tmp_path)
    fewer, every = (
        get_maest(checkpoint=model, s_patchout_t_interleaved=2),
        get_maest(checkpoint=model),
    )
    for name, values in arrays(tmp_path / "2sec/logits").items():
        waveform = read_audio(music / name.removesuffix(".logits.npy"))
        with torch.no_grad():
            some, all_of_them = (
                np.average(
                    net(stored(net, waveform), -1, True)[0], axis=0, weights=weights(waveform)
                )
                for net in (fewer, every)
            )
        assert_close(values, some)
        assert np.abs(values - all_of_them).max() > 1e-3
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
        waveform = read_audio(path)
        activations, labels = net.predict_labels(stored(net, waveform), True)
        order = activations.argsort()[::-1][:2]
        assert [entry["label"] for entry in found["labels"]] == [labels[i] for i in order]
        assert [entry["activation"] for entry in found["labels"]] == pytest.approx(
            activations[order].tolist(), abs=1e-4
        )
        assert found["track"] == key
        assert all(len(patch["labels"]) == 2 for patch in found["patches"])
        rows = rows_of(folder / f"{key}.predictions.csv")
        names = {"scope", "start", "end", "rank", "label", "activation", "warnings"}
        assert set(rows[0]) == names
        assert len(rows) == 2 * (1 + len(found["patches"]))
        frames = n_frames(len(waveform))
        expected = [(start, end) for start, _, end in times(cut(frames, PATCH), frames)]
        spans = [(patch["start"], patch["end"]) for patch in found["patches"]]
        np.testing.assert_allclose(spans, expected, atol=6e-4)
        with torch.no_grad():
            of_patches = net.activations(net(stored(net, waveform), -1, True)[0]).numpy()
        for patch, values in zip(found["patches"], of_patches, strict=True):
            best = values.argsort()[::-1][:2]
            assert [entry["label"] for entry in patch["labels"]] == [labels[i] for i in best]
            np.testing.assert_allclose(
                [entry["activation"] for entry in patch["labels"]], values[best], atol=1e-4
            )
        picture = matplotlib.image.imread(folder / f"{key}.predictions.png")
        height, width, _ = picture.shape
        assert 1200 < width < 1400  # 11 inches, 120 dots an inch, its margins cut off
        assert 350 < height < 700
        assert picture[..., :3].std() > 0.1
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


# ------------------------------------------------------------------ warnings


@pytest.fixture
def doubtful(tmp_path) -> dict[str, str]:
    """Files of which results can hardly mean much, in ``doubtful``, and what is said of them."""
    folder, sound = tmp_path / "doubtful", tone(3, 0)
    folder.mkdir()
    soundfile.write(folder / "fine.wav", sound, RATE)
    soundfile.write(folder / "silence.wav", np.zeros(3 * RATE), RATE)
    soundfile.write(folder / "antiphase.wav", np.concatenate((sound, -sound), 1), RATE)
    soundfile.write(folder / "short.wav", sound[: RATE // 10], RATE)
    names = {"silence.wav": "silent", "antiphase.wav": "channels cancel", "short.wav": "0.1 s only"}
    return {"fine.wav": "", **names}


def test_doubtful_audio_has_warnings_beside_its_results(line, music, doubtful, tmp_path):
    line = line.replace(str(music), str(tmp_path / "doubtful"))
    line += " inference.outputs=[logits,predictions]"
    out = good("ex_maest.py", f"predict {line}", tmp_path)
    assert "3 with warnings" in out
    level = tmp_path / "2sec"
    table = {row["track"]: row["warnings"] for row in rows_of(level / "predictions/tracks.csv")}
    assert table == doubtful
    listed = {row["key"]: row["warnings"] for row in rows_of(level / "logits/warnings.csv")}
    assert listed == {key: why for key, why in doubtful.items() if why}
    for key, why in doubtful.items():
        found = json.loads((level / f"predictions/{key}.predictions.json").read_text("utf-8"))
        assert found["warnings"] == ([why] if why else [])
    before = stamps(level)
    assert "with warnings" not in good("ex_maest.py", f"predict {line}", tmp_path)  # none made now
    assert rows_of(level / "logits/warnings.csv")
    assert before.keys() == stamps(level).keys()


@pytest.mark.parametrize("name", ["silence.wav", "antiphase.wav", "short.wav"])
def test_of_one_song_the_warning_is_shown(line, music, doubtful, tmp_path, name):
    song = tmp_path / "doubtful" / name
    out = good("ex_maest.py", f"predict {line.replace(str(music), str(song))}", tmp_path)
    assert doubtful[name] in out
    assert "1 with warnings" in out


def test_log_mel_files_of_silence_have_warnings(line, music, doubtful, model, tmp_path):
    (tmp_path / "doubtful/antiphase.wav").unlink()  # next to silent: rounding is heard there
    preprocess(tmp_path / "doubtful", tmp_path / "mels", num_workers=1, progress=False)
    keys = sorted(path.name for path in (tmp_path / "mels").glob("*.mmap"))
    write_groundtruth(tmp_path / "all.pk", {key: np.array([1, 0, 0]) for key in keys})
    good(
        "ex_maest.py",
        f"extract_logits with maest.checkpoint={model} inference.out_dir={tmp_path}/out "
        f"datamodule.groundtruth_predict={tmp_path}/all.pk datamodule.base_dir={tmp_path}/mels",
        tmp_path,
    )
    found = {
        row["key"]: row["warnings"] for row in rows_of(tmp_path / "out/2sec/logits/warnings.csv")
    }
    assert found["silence.mmap"] == "silent"
    assert found["short.mmap"].endswith("s only")
    assert len(found) == 2


# ------------------------------------------------------------------ audio and log-mel files


def test_audio_gives_what_its_log_mel_file_gives(line, music, model, tmp_path):
    """Bit for bit; also in the folder of the first, which goes on."""
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
            np.testing.assert_array_equal(values, other)


def test_each_patch_in_the_order_of_time(toy, model, tmp_path):
    """Of log-mel files, in passes that hold fewer patches than a track has."""
    line = (
        f"with maest.checkpoint={model} {settings(toy)} inference.transformer_block=1 "
        f"inference.pool=none inference.patch_hop=0.4 inference.out_dir={tmp_path} "
        "inference.outputs=[embeddings,predictions] inference.patches_per_pass=2"
    )
    good("ex_maest.py", f"extract_embeddings {line}", tmp_path)
    net = get_maest(checkpoint=model)
    keys = list(read_groundtruth(toy.groundtruth("test")).keys)
    found = arrays(tmp_path / "2sec/1")
    assert sorted(found) == sorted(f"{key}.embeddings.npy" for key in keys)
    most = 0
    for key in keys:
        (whole,) = read_patches(toy.mels, key, 1000)
        mel = torch.from_numpy(whole.astype(np.float32)).T
        values = found[f"{key}.embeddings.npy"]
        spans = cut(mel.shape[1], PATCH, 25)
        with torch.no_grad():
            rows = [
                net(net.normalise(mel[None, :, first:last]), transformer_block=1)[1].view(3, 32)
                for first, last in spans
            ]
        assert_close(values, torch.stack(rows).numpy())
        most = max(most, len(rows))
    assert most > 4
    table = rows_of(tmp_path / "2sec/predictions/tracks.csv")
    assert [row["track"] for row in table] == keys


def test_a_log_mel_file_that_is_not_there(toy, model, tmp_path):
    """It costs itself, also where training would end."""
    keys = [*read_groundtruth(toy.groundtruth("test")).keys, "test/gone.mmap"]
    write_groundtruth(tmp_path / "more.pk", {key: np.array([1, 0, 0]) for key in keys})
    line = (
        f"with maest.checkpoint={model} datamodule.base_dir={toy.mels} inference.out_dir=out "
        f"datamodule.groundtruth_predict={tmp_path}/more.pk datamodule.on_error=raise"
    )
    done = run("ex_maest.py", f"extract_logits {line}", tmp_path)
    assert done.code == 1
    assert "12 tracks done, 1 failed" in done.out
    (failure,) = rows_of(tmp_path / "out/2sec/logits/failed.csv")
    assert failure["key"] == "test/gone.mmap"
    assert "no such file" in failure["reason"]
    for shard in range(1, 6):
        part = line.replace("out_dir=out", f"out_dir=part{shard}") + f" inference.shard={shard}/5"
        assert run("ex_maest.py", f"extract_logits {part}", tmp_path).code == (shard == 3)
    names = [name for i in range(1, 6) for name in arrays(tmp_path / f"part{i}/2sec/logits")]
    assert sorted(names) == sorted(arrays(tmp_path / "out/2sec/logits"))
    assert len(names) == 12


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "arguments",
    [
        "extract_logits inference.audio=/no/such/folder",
        "extract_logits inference.audio=''",
        "extract_embeddings inference.transformer_block=3",
        "extract_embeddings inference.transformer_block=[1,1]",
        "extract_embeddings inference.transformer_block=[]",
        "extract_embeddings inference.transformer_block=most",
        "extract_embeddings inference.transformer_block=1.5",
        "extract_embeddings inference.outputs=[embedding]",
        "extract_embeddings inference.outputs=[logits,logits]",
        "extract_embeddings inference.plot=True",
        "extract_embeddings inference.pool=median",
        "extract_embeddings inference.tail=cut",
        "extract_embeddings inference.quantize=int4",
        "extract_embeddings inference.shard=5/4",
        "extract_embeddings inference.shard=half",
        "extract_embeddings inference.patch_hop=0",
        "extract_embeddings inference.patches_per_pass=0",
        "predict inference.top=0",
        "predict maest.n_classes=7",
        "predict trainer.accelerator=tpus",
        "predict trainer.precision=16-true",
    ],
)
def test_what_is_refused(line, tmp_path, arguments):
    command, _, typed = arguments.partition(" ")
    said = bad("ex_maest.py", f"{command} {line} {typed}", tmp_path)
    assert typed.partition("=")[0] in said
    assert not list(tmp_path.glob("*sec"))


def test_patchout_that_leaves_next_to_nothing_is_refused(line, tmp_path):
    typed = "datamodule.clip_length=8 maest.s_patchout_t_interleaved=99"
    assert "s_patchout" in bad("ex_maest.py", f"extract_logits {line} {typed}", tmp_path)


def test_patches_far_longer_than_the_trained_ones_are_told(line, tmp_path, caplog):
    good("ex_maest.py", f"extract_logits {line} datamodule.clip_length=6", tmp_path)
    assert "times as long" not in caplog.text
    good("ex_maest.py", f"extract_logits {line} datamodule.clip_length=11", tmp_path)
    assert caplog.text.count("times as long") == 1


def test_the_default_block_is_said(line, tmp_path):
    out = good("ex_maest.py", f"extract_embeddings {line}", tmp_path)
    assert "block 2 of 0-2, 3 tokens x 32" in out
    assert [path.name for path in (tmp_path / "2sec").iterdir()] == ["2"]


def test_gaps_between_patches_are_told(line, tmp_path, caplog):
    good("ex_maest.py", f"extract_logits {line} inference.patch_hop=100", tmp_path)
    assert "not heard" in caplog.text


def test_a_folder_without_audio(line, music, tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("")
    line = line.replace(str(music), str(tmp_path / "texts"))
    assert str(tmp_path / "texts") in bad("ex_maest.py", f"extract_logits {line}", tmp_path)


def test_random_weights_are_named_so(music, tmp_path, caplog):
    done = run(
        "ex_maest.py",
        f"extract_embeddings with maest.arch=maest_tiny inference.audio={music} "
        "datamodule.clip_length=2 inference.transformer_block=0",
        tmp_path,
    )
    assert done.code == 0
    assert "RANDOM weights" in caplog.text
    assert "maest.checkpoint" in bad(
        "ex_maest.py", f"predict with inference.audio={music}", tmp_path
    )

"""extract_embeddings, extract_logits and predict on a folder of music, as they are typed."""

import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import soundfile
from command_line import good, refused, run
from folders import read_json, rows
from music import LABELS, PATCH, RATE, arrays, assert_same_results, stamps, tone

from maest.datasets.groundtruth import read_groundtruth, write_groundtruth
from maest.datasets.preprocess import preprocess
from maest.helpers.audio.constants import n_frames
from maest.helpers.audio.patches import cut
from maest.helpers.audio.reading import read_audio
from maest.models import extraction, get_maest
from maest.models.extraction import Extractor


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """But for 1e-5 of the largest value."""
    assert np.abs(found - expected).max() <= 1e-5 * max(1, np.abs(expected).max())


def extract(line: str, home: Path, command: str = "extract_logits", out: str | None = None) -> str:
    """Extract into a folder of this name, or else into the home itself."""
    if out is not None:
        line = line.replace(f"out_dir={home}", f"out_dir={out}")
    return good("ex_maest.py", f"{command} {line}", home)


@pytest.mark.parametrize(
    ("typed", "options", "patchout"),
    [
        ("", {}, {}),
        ("inference.patch_hop=0.8", {"hop_seconds": 0.8}, {}),
        ("inference.tail=pad", {"tail": "pad"}, {}),
        ("inference.pool=none inference.patch_hop=1", {"pool": "none", "hop_seconds": 1}, {}),
        ("maest.s_patchout_t_interleaved=2", {}, {"s_patchout_t_interleaved": 2}),
    ],
)
def test_a_folder_gives_what_python_gives(line, music, model, tmp_path, typed, options, patchout):
    line += f" {typed} inference.transformer_block=1,-1 inference.outputs=[embeddings,logits]"
    out = extract(line, tmp_path, "extract_embeddings")
    assert re.search(r"\b6 tracks done, 0 failed, 0 ", out)
    net, found = get_maest(checkpoint=model, **patchout), arrays(tmp_path / "2sec")
    own = Extractor(net, blocks=[1, -1], logits=True, **options)
    assert len(found) == 3 * 6
    for path in music.rglob("*.flac"):
        track, result = path.relative_to(music).as_posix(), own(path)
        for name, values in (
            (f"1/{track}.embeddings.npy", result.embeddings[1]),
            (f"final/{track}.embeddings.npy", result.embeddings[-1]),
            (f"logits/{track}.logits.npy", result.logits),
        ):
            assert found[name].dtype == np.float32
            assert_close(found[name].reshape(values.shape), values)
        if "pool" in options:  # the times are beside
            spans = rows(tmp_path / f"2sec/1/{track}.times.csv")
            starts = [float(row["start"]) for row in spans]
            np.testing.assert_allclose(starts, result.times[:, 0], atol=1e-3)


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
    lengths = (n_frames(len(read_audio(path))) for path in music.rglob("*.flac"))
    patches = sum(len(cut(length, PATCH)) for length in lengths)
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


def test_predictions(line, music, model, tmp_path):
    extract(f"{line} inference.top=2 inference.plot=True", tmp_path, "predict")
    folder, own = tmp_path / "2sec/predictions", Extractor(model, activations=True)

    def check(entries: list[dict], values: np.ndarray) -> None:
        best = values.argsort()[::-1][:2]
        assert [entry["label"] for entry in entries] == [LABELS[i] for i in best]
        activations = [entry["activation"] for entry in entries]
        np.testing.assert_allclose(activations, values[best], atol=1e-4)

    tracks = [path.relative_to(music).as_posix() for path in sorted(music.rglob("*.flac"))]
    for track in tracks:
        found, result = read_json(folder / f"{track}.predictions.json"), own(music / track)
        check(found["labels"], result.activations)
        for patch, values in zip(found["patches"], result.patch_activations, strict=True):
            check(patch["labels"], values)
        assert found["track"] == track
        table = rows(folder / f"{track}.predictions.csv")
        columns = {"scope", "start", "end", "rank", "label", "activation", "warnings"}
        assert set(table[0]) == columns
        assert len(table) == 2 * (1 + len(result.times))
        spans = [(patch["start"], patch["end"]) for patch in found["patches"]]
        np.testing.assert_allclose(spans, result.times[:, [0, 2]], atol=6e-4)
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


@pytest.fixture
def doubtful(tmp_path) -> Path:
    """Files whose results mean little, except one."""
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


def test_a_missing_log_mel_file_is_listed(toy, model, tmp_path):
    """Also with on_error=raise."""
    keys = [*read_groundtruth(toy.groundtruth("test")).keys, "test/gone.mmap"]
    write_groundtruth(tmp_path / "all.pk", {key: np.array([1, 0, 0]) for key in keys})
    line = (
        f"with maest.checkpoint={model} datamodule.base_dir={toy.mels} inference.out_dir=out "
        f"datamodule.groundtruth_predict={tmp_path}/all.pk datamodule.on_error=raise"
    )
    assert run("ex_maest.py", f"extract_logits {line}", tmp_path).code == 1
    (failure,) = rows(tmp_path / "out/2sec/logits/failed.csv")
    assert failure["key"] == "test/gone.mmap"
    assert len(arrays(tmp_path / "out/2sec/logits")) == 12


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
    """Patches far longer than the trained ones."""
    for seconds, warnings in ((6, 0), (11, 1)):
        caplog.clear()
        extract(f"{line} datamodule.clip_length={seconds}", tmp_path)
        found = (r for r in caplog.records if r.levelname == "WARNING")
        assert len([r for r in found if "resized" not in r.message]) == warnings


def test_random_weights_are_named_so(music, tmp_path, caplog):
    line = f"with inference.audio={music} datamodule.clip_length=2"
    good("ex_maest.py", f"extract_embeddings {line} maest.arch=maest_tiny", tmp_path)
    assert "RANDOM weights" in caplog.text
    refused("ex_maest.py", f"predict {line}", tmp_path, "missing", "maest.checkpoint")

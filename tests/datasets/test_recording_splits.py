"""Splits of recordings by album, near copies, and tags of files."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from music import melody

from maest.datasets.melspectrograms import write_mel
from maest.datasets.recordings import copies
from maest.datasets.recordings.splits import Recording, album_name, split_recordings
from maest.helpers.audio.codecs import round_trip
from maest.helpers.audio.log_mel import log_mel
from maest.helpers.audio.packets import read_texts

RATE = 16_000


def test_albums_are_split_by_a_hash():
    everything = [Recording(f"{i}", f"album {i // 3}") for i in range(3_000)]
    splits, left_out = split_recordings(everything, [], seed=0)
    assert not left_out
    shares = Counter(splits.values())
    assert shares["train"] / 3_000 == pytest.approx(0.8, abs=0.04)
    assert shares["test"] / 3_000 == pytest.approx(0.1, abs=0.03)
    fewer, _ = split_recordings(everything[300:900], [], seed=0)
    assert fewer == {key: splits[key] for key in fewer}
    assert split_recordings(everything, [], seed=1)[0] != splits


def test_copies_join_their_albums():
    tracks = [Recording(f"{i}", f"album {i // 3}") for i in range(300)]
    splits, _ = split_recordings(tracks, [(f"{i}", f"{i + 30}") for i in range(0, 270, 30)], 0)
    assert len({splits[f"{i}"] for i in range(0, 300, 30)}) == 1
    fixed = [*tracks, Recording("x", "other", "test")]
    splits, left_out = split_recordings(fixed, [("x", "7")], seed=0)
    assert [splits[key] for key in ("x", "6", "7", "8")] == ["test"] * 4
    both = [*fixed, Recording("y", "third", "train", known=True)]
    splits, left_out = split_recordings(both, [("x", "7"), ("7", "y")], seed=0)
    assert (left_out.keys(), splits["y"]) == ({"x", "7"}, "train")


def test_names_of_albums():
    assert album_name("s", "a/1", "") == album_name("s", "a/2", "") != album_name("s", "b/3", "")
    assert album_name("s", "1", "") != album_name("s", "2", "")
    assert album_name("s", "a/1", "Best of") == album_name("s", "2", "Best of")
    assert album_name("s", "a/1", "Best of") != album_name("t", "a/1", "Best of")


def test_tags_of_any_format(tmp_path):
    import av

    for name, codec in (("a.mp3", "libmp3lame"), ("a.ogg", "libopus"), ("a.m4a", "aac")):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=48_000, layout="mono")
            (stream if name.endswith("ogg") else container).metadata["album"] = "Some Album"
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts = 48_000, 0
            container.mux([*stream.encode(frame), *stream.encode(None)])
        assert read_texts(tmp_path / name)["album"] == "Some Album", name
    (tmp_path / "b.mp3").write_bytes(b"no")
    assert read_texts(tmp_path / "b.mp3") == read_texts(tmp_path / "c.mp3") == {}


def prints_of(folder: Path, sounds: dict[str, np.ndarray]) -> list[np.ndarray | None]:
    for name, sound in sounds.items():
        write_mel(folder / f"{name}.mmap", log_mel(sound))
    return [copies.print_of(folder / f"{name}.mmap") for name in sounds]


def test_near_copies_are_found_and_others_are_not(tmp_path):
    sounds = {i: melody(40, i) for i in range(6)}
    changed = {
        "mp3": round_trip(sounds[0], "mp3", 32_000),
        "opus": round_trip(sounds[1], "opus", 16_000),
        "trimmed": sounds[2][2 * RATE + 4_000 :],
        "quiet": sounds[3] * 0.2,
        "excerpt": sounds[4][11 * RATE : 26 * RATE],
    }
    prints = prints_of(tmp_path, sounds | changed)
    pairs = copies.near_copies(prints, num_workers=1, progress=False)
    assert [(a, b) for a, b, _ in pairs] == [(i, 6 + i) for i in range(5)]
    none = {"silent": np.zeros(20 * RATE, np.float32), "short": melody(5, 0)}
    assert prints_of(tmp_path, none) == [None, None]


def test_noises_are_no_copies(tmp_path):
    rng = np.random.default_rng(0)
    sounds = {f"music {i}": melody(90, i) for i in range(4)}
    for i in range(4):
        noise = rng.standard_normal((2, 16 * RATE)).astype(np.float32)
        fall = np.exp(-np.arange(16 * RATE) / ((1 + i) * RATE)).astype(np.float32)
        sounds |= {f"explosion {i}": 0.3 * noise[0] * fall, f"hiss {i}": 0.1 * noise[1]}
    whole = [one for one in prints_of(tmp_path, sounds) if one is not None]
    assert len(whole) > 8
    assert copies.near_copies(whole, num_workers=1, progress=False) == []


@pytest.mark.parametrize(("rows", "alike", "found"), [(25, 0.89, 0), (25, 0.95, 1), (60, 0.89, 1)])
def test_short_tracks_must_be_more_alike(rows, alike, found):
    rng = np.random.default_rng(0)
    whole, other = rng.standard_normal((200, 16)), rng.standard_normal((rows, 16))
    part = alike * whole[50 : 50 + rows] + (1 - alike**2) ** 0.5 * other
    prints = [(one / np.linalg.norm(one)).astype(np.float32) for one in (whole, part)]
    pairs = copies.near_copies(prints, num_workers=1, progress=False)
    assert len(pairs) == found
    assert all(score == pytest.approx(alike, abs=0.02) for *_, score in pairs)

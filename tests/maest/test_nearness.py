"""Which tracks are near one another, and playlists of them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from libraries import MODEL, each, write_wav

from maest.helpers.errors import InputError
from maest.library import Analysis, Library, Track
from maest.nearness import Vectors, groups
from maest.playlist import write_m3u8


def track(path: str, **values) -> Track:
    rest = {"title": "", "artist": "", "album": "", "album_artist": "", **values}
    return Track(1, Path(path), 1, "00", 61.4, 1, 1, "here", **rest)


# ---- cosines -------------------------------------------------------------------------------------


def test_the_mean_is_taken_off():
    values = np.random.default_rng(0).normal(5, 1, (9000, 8)).astype(np.float16)
    centred = values.astype(np.float64) - values.astype(np.float64).mean(axis=0)
    lengths = np.linalg.norm(centred, axis=1)
    expected = centred @ centred[4321] / lengths / lengths[4321]
    cosines = Vectors(values).cosines(values[4321:4322])
    assert cosines == pytest.approx(expected, abs=1e-4)
    assert cosines.argmax() == 4321


def test_of_several_seeds_the_middle_counts():
    directions = np.eye(16, dtype=np.float16)[:9]  # fewer than ten: no mean
    cosines = Vectors(directions).cosines(np.stack([directions[2] * 7, directions[5]]))
    assert cosines[[2, 5, 0]] == pytest.approx([0.5**0.5, 0.5**0.5, 0], abs=1e-6)


def test_a_vector_without_direction_is_near_nothing():
    same = Vectors(np.ones((20, 4), np.float16))
    assert not same.cosines(same.values[:1]).any()
    assert not Vectors(np.zeros((2, 4), np.float16)).cosines(np.ones((1, 4))).any()


def test_pairs_are_near_by_cosine_and_length():
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, (1500, 24))
    values[[7, 1400]] = values[[900, 30]] * 1.01
    values[500] = values[501]
    seconds = rng.uniform(100, 300, 1500)
    seconds[7], seconds[1400], seconds[500] = seconds[900] + 2, seconds[30], seconds[501] + 9
    pairs = list(Vectors(values.astype(np.float16)).near_pairs(seconds, 0.98, 3.0))
    assert {frozenset(pair[:2]) for pair in pairs} == {frozenset((7, 900)), frozenset((30, 1400))}
    assert all(cosine == pytest.approx(1, abs=1e-3) for *_, cosine in pairs)


def test_pairs_that_share_a_member_are_one_group():
    assert groups([(5, 9), (1, 1), (2, 9), (4, 3), (7, 5)]) == [[1], [2, 5, 7, 9], [3, 4]]


# ---- of a library --------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path):
    """30 tracks in five folders, whose embeddings turn from one to the next."""
    for i in range(30):
        write_wav(tmp_path / f"music/{i % 5}/{i:02d}.wav", i)

    @each
    def turning(path: Path) -> Analysis:
        angle = int(path.stem) / 30 * 2 * np.pi
        return Analysis([], np.array([np.cos(angle), np.sin(angle)]) + 3, 60)

    with Library(tmp_path / "library.sqlite") as library:
        library.index(tmp_path / "music", MODEL, turning)
        yield library


def near(library, seed, *rest, **options) -> list[str]:
    return [found.path.stem for found, _ in library.similar(seed, *rest, **options)]


def test_similar_tracks(library, tmp_path):
    music = tmp_path / "music"
    assert sorted(near(library, music / "1/11.wav", 4)) == ["09", "10", "12", "13"]
    assert near(library, music / "1/11.wav", 1, also=[music / "3/13.wav"]) == ["12"]
    assert near(library, np.array([4, 3], np.float16), 1) == ["00"]
    assert len(near(library, music / "1/11.wav", 99)) == 29
    assert near(library, music / "1/11.wav", 99)[-1] == "26"


def test_the_album_of_a_seed_is_left_out(library, tmp_path):
    found = library.similar(tmp_path / "music/1/11.wav", 99, not_same_album=True)
    assert {track.path.parent.name for track, _ in found} == {"0", "2", "3", "4"}
    assert len(found) == 24


def test_the_album_of_another_file_is_left_out(library, tmp_path):
    """By its folder here, as none has tags."""
    other = (write_wav(tmp_path / "music/1/new.wav", 99), np.array([4, 3], np.float16))
    found = near(library, other, 99, not_same_album=True)
    assert (len(found), found[0]) == (24, "00")
    found = near(library, tmp_path / "music/2/02.wav", 99, also=[other], not_same_album=True)
    assert len(found) == 18
    with pytest.raises(InputError) as raised:
        library.similar(other[1], not_same_album=True)
    assert raised.value.kind == "conflict"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (track("/a/1"), track("/a/2"), True),
        (track("/a/1"), track("/b/2"), False),
        (track("/a/1", album="X"), track("/a/2", album="Y"), False),
        (track("/a/1", album="X", artist="M"), track("/b/2", album="x", artist="M"), True),
        (track("/a/1", album="X", artist="M"), track("/b/2", album="X", artist="N"), False),
        (track("/a/1", album="X", artist="M"), track("/a/2", album="X", artist="N"), True),
        (track("/a/1", album="X", artist="M", album_artist="V"),
         track("/b/2", album="X", artist="N", album_artist="V"), True),
        (track("/a/1", album="X"), track("/b/2", album="X"), False),
    ],
)  # fmt: skip
def test_same_album(first, second, same):
    assert first.same_album(second) is second.same_album(first) is same


def test_seeds_that_cannot_be_used(library, tmp_path):
    write_wav(tmp_path / "more/x.wav", 99)
    library.scan(tmp_path / "more")
    for seed, kind in (
        (tmp_path / "more/x.wav", "missing"),
        (tmp_path / "none.wav", "unknown"),
        (np.ones(3), "mismatch"),
    ):
        with pytest.raises(InputError) as raised:
            library.similar(seed)
        assert (raised.value.kind, bool(raised.value.hint)) == (kind, True)


def test_an_empty_library_has_no_neighbours(tmp_path):
    with Library(tmp_path / "library.sqlite") as library:
        assert library.duplicates() == []
        with pytest.raises(InputError) as raised:
            library.similar(np.ones(3))
        assert raised.value.kind == "missing"


def test_new_results_are_seen(library, tmp_path):
    seed = tmp_path / "music/1/11.wav"
    assert len(near(library, seed, 99)) == 29
    write_wav(tmp_path / "music/9/99.wav", 99)
    with Library(library.path) as writer:
        writer.index(tmp_path / "music", MODEL, each(lambda path: Analysis([], np.ones(2), 60)))
    assert len(near(library, seed, 99)) == 30


def test_near_copies(library, tmp_path):
    @each
    def like_11(path: Path) -> Analysis:
        return Analysis([], library.result(tmp_path / "music/1/11.wav").embedding, 61)

    write_wav(tmp_path / "more/x.wav", 99)
    write_wav(tmp_path / "more/y.wav", 5)  # the sound of 05
    library.index(tmp_path / "more", MODEL, like_11)
    found = [[track.path.stem for track in group] for group in library.duplicates(0.999)]
    assert sorted(found) == [["x", "11"], ["y", "05"]]


def test_of_few_tracks_only_equal_sounds_are_copies(tmp_path):
    with Library(tmp_path / "library.sqlite") as library:
        for i in range(9):
            write_wav(tmp_path / f"music/{i}.wav", max(1, i))
        library.index(tmp_path / "music", MODEL, each(lambda path: Analysis([], np.ones(2), 60)))
        found = [[track.path.stem for track in group] for group in library.duplicates()]
        assert found == [["0", "1"]]


# ---- playlists -----------------------------------------------------------------------------------


def test_a_playlist(tmp_path):
    songs = [
        track(f"{tmp_path}/music/x/a.mp3", title="A\nB", artist="C"),
        track(f"{tmp_path}/lists/#1 é.mp3"),
    ]
    assert write_m3u8(tmp_path / "lists" / "my.m3u8", songs) == 2
    assert (tmp_path / "lists" / "my.m3u8").read_bytes().decode().splitlines()[2:] == [
        "#EXTINF:61,C - A B",
        "../music/x/a.mp3",
        "#EXTINF:61,#1 é",
        "./#1 é.mp3",
    ]


@pytest.mark.parametrize("name", [b"\xff\xe9.mp3", b"a\nb.mp3", b"c.mp3 "])
def test_names_that_a_line_cannot_hold(tmp_path, name):
    path = tmp_path / "my.m3u8"
    write_m3u8(path, [track(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))])
    line = path.read_text("utf-8").splitlines()[-1]
    assert line.startswith("file:///")
    assert line.endswith({b"\xff": "%FF%E9.mp3", b"a": "a%0Ab.mp3", b"c": "c.mp3%20"}[name[:1]])


def test_only_playlists_of_ours_are_replaced(tmp_path):
    path = tmp_path / "my.m3u8"
    write_m3u8(path, [track("/a.mp3")])
    assert write_m3u8(path, []) == 0
    path.write_text("#EXTM3U\nmine.mp3\n")
    with pytest.raises(InputError) as raised:
        write_m3u8(path, [])
    assert raised.value.kind == "exists"
    assert path.read_text() == "#EXTM3U\nmine.mp3\n"

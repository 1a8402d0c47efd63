"""The embedded data set's parts: reading, labels, grouping, performing."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up import refuses
from tunes import NOT_ABC, tune, work

from maest.datasets.scores import corpus, labels, performance, reading
from maest.datasets.scores.corpus import Work
from maest.datasets.scores.performance import Arrangement, Voice
from maest.datasets.scores.tables import COLLECTIONS, ENSEMBLES, INSTRUMENTS, PACE

ROOT = Path(__file__).resolve().parents[2]
OTHER = "EFGA BcdB|AGFE D2E2|EFGA BcdB|AcBG E4|"
THIRD = "cegc' bgec|dfaf dBAF|cegc' bgec|dfaf c4|"
TWO_NOTES = np.array([[0, 1, 70, 90], [1, 1, 72, 90]], float)
VIOLIN = INSTRUMENTS["violin"]


def read_tunes(*texts: str, collection: str = "ryan"):
    works = [work(text, collection, f"t{i}", i) for i, text in enumerate(texts)]
    return works, {one.id: reading.read(one, Path()) for one in works}


def test_a_package_that_is_missing(tmp_path):
    with refuses("dependency", "no_such_package/corpus"):
        corpus.package_file("no_such_package", "corpus")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("X:1\nT:none\nK:C\n", "fewer than 8 notes"),
        ("X:1\nT:none\n", "No valid K"),
        (tune("x", NOT_ABC), "abc2midi"),
        (None, "music21"),
    ],
)
def test_unreadable_work_says_why(tmp_path, text, reason, capfd):
    (tmp_path / "broken.mxl").write_bytes(b"PK\x03\x04 not a score")
    one = work(text) if text else Work("bach/broken", "bach", "broken.mxl", None, 10)
    with pytest.raises(reading.Unreadable, match=reason):
        reading.read(one, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_each_tune_is_read_in_a_separate_folder(monkeypatch):
    """symusic names its temporary files alike in every process: one read another's tune."""
    import symusic

    folders = []

    class Reader:
        @staticmethod
        def from_abc(text: str) -> symusic.Score:
            folders.append(os.environ["TMPDIR"])
            assert os.listdir(folders[-1]) == []
            return original.from_abc(text)

    original = symusic.Score
    monkeypatch.setattr(symusic, "Score", Reader)
    monkeypatch.setenv("TMPDIR", "before")
    for _ in range(2):
        one = work(tune("x", "CDEF GABc|"))
        assert len(reading.read(one, Path()).notes) == 8
    assert len(set(folders)) == 2
    assert not any(Path(folder).exists() for folder in folders)
    assert os.environ["TMPDIR"] == "before"


@pytest.mark.parametrize(
    "variant",
    ["Miss MacLeod's", "The Miss McLeods -- Reel", "Miss McLeod's (2nd setting)", "miss mcleods 2"],
)
def test_variant_titles_are_one(variant):
    assert labels.normal_title(variant) == "missmcleods"


@pytest.mark.parametrize(
    ("collection", "tunes", "groups"),
    [
        # By title; by opening; alone
        (
            "ryan",
            [
                tune("Miss McLeod's -- Reel"),
                tune("The Miss MacLeods", OTHER),
                tune("A Quite Different Name", "GAAB cded|B2cB AGFE|DDGA BcdB|AcBG E4|"),
                tune("A Name of Its Own", THIRD),
            ],
            [0, 0, 0, 3],
        ),
        # The opening is the same in any key.
        ("ryan", [tune("First", OTHER), tune("Second", OTHER, K="G transpose=2")], [0, 0]),
        ("german", [tune("Eins", N="E0001"), tune("Zwei", THIRD, N="E0001B")], [0, 0]),
    ],
)
def test_groups_by_title_catalogue_and_opening(collection, tunes, groups):
    works, scores = read_tunes(*tunes, collection=collection)
    found = labels.group_works(works, scores, seed=0)
    assert [found[work.id].rank for work in works] == groups


@pytest.mark.parametrize(
    ("collection", "headers", "expected", "others"),
    [
        ("ryan", {"title": "The March -- Reel", "R": "reel"}, {"Dance---Reel"}, {"Dance---March"}),
        ("ryan", {"title": "Grand March"}, {"Dance---March"}, {"Dance---Reel"}),
        ("ryan", {"title": "Brandy", "R": "slip jig"}, {"Dance---Slip Jig"}, {"Dance---Jig"}),
        ("german", {"title": "Ein Tanz mit Jig im Titel"}, set(), {"Dance---Jig", "Mode---Major"}),
        (
            "german",
            {"title": "Ein Lied", "O": "Mitteleuropa, Deutschland / Frankreich, Lothringen"},
            {"Folk---German Song", "Folk---Lorraine Song"},
            set(),
        ),
    ],
)
def test_style_labels_come_from_the_headers(collection, headers, expected, others):
    (one,), scores = read_tunes(tune(**headers), collection=collection)
    found = set(labels.style_labels(one, scores[one.id]))
    assert expected | {"Metre---Quadruple", "Texture---Single Line"} <= found
    assert not others & found


def test_a_variant_of_works_in_different_splits_is_left_out(monkeypatch):
    monkeypatch.setattr(labels, "split_of", lambda work, seed: str(work.rank))
    works, scores = read_tunes(tune("Alpha"), tune("Beta", OTHER), tune("Alpha", OTHER))
    assert list(labels.group_works(works, scores, seed=0)) == ["ryan/t0", "ryan/t1"]


def test_labels_that_stay():
    clips = [("train", ["a", "common"])] * 280 + [("validation", ["a"])] * 60
    clips += [("test", ["a", "common"])] * 2 + [("test", ["b"])] * 58 + [("train", ["b"])] * 15
    clips += [("validation", ["b"])] * 4
    counts, dropped = labels.choose_labels(clips, 0.4, {"train": 15, "validation": 4, "test": 4})
    assert counts == {"b": {"train": 15, "validation": 4, "test": 58}}
    assert dropped.keys() == {"a", "common"}


def test_tables_fit_together():
    used = {name for table in ENSEMBLES.values() for _, e in table for layer in e for name in layer}
    assert used == INSTRUMENTS.keys()
    kinds = {collection.kind for collection in COLLECTIONS.values()} - {""}
    assert kinds <= ENSEMBLES.keys() <= PACE.keys()
    assert len({i.program for i in INSTRUMENTS.values()}) == len(INSTRUMENTS)


def test_every_instrument_sounds_in_all_of_its_range():
    for name, instrument in INSTRUMENTS.items():
        for pitch in (instrument.low, (instrument.low + instrument.high) // 2, instrument.high):
            note = np.array([[0, 0.3, pitch, 90]])
            audio = performance.synthesize([Voice(instrument, note)])
            level = np.sqrt(np.mean(audio[: int(0.3 * 16_000)] ** 2))
            assert 1e-3 < level < 3, (name, pitch)


def test_a_work_that_is_too_short():
    two_seconds = Arrangement([Voice(VIOLIN, TWO_NOTES)], 1.0, 0)
    rng = np.random.default_rng(1)
    with pytest.raises(performance.TooShort):
        performance.render_clip(two_seconds, 10.0, rng)
    assert len(performance.render_clip(two_seconds, 1.5, rng).audio) == 24_000


def test_a_broken_voice_of_the_font_is_an_error(monkeypatch):
    import symusic

    class Broken:
        def __init__(self, **_) -> None: ...

        def render(self, *_, **__) -> np.ndarray:
            return np.full((1, 10), np.nan)

    monkeypatch.setattr(symusic, "Synthesizer", Broken)
    with pytest.raises(RuntimeError, match="40"):
        performance.synthesize([Voice(VIOLIN, TWO_NOTES)])


def test_a_window_without_notes_is_silent():
    far = np.array([[0, 1, 70, 90], [1000, 1, 70, 90]], float)
    rests = Arrangement([Voice(VIOLIN, far)], 1.0, 0)
    clip = performance.render_clip(rests, 5.0, np.random.default_rng(1))
    assert clip.instruments == []
    assert not clip.audio.any()


PLAYED = """
import hashlib
import numpy as np
from maest.datasets.scores.tables import INSTRUMENTS, LONGEST_NOTES
from maest.datasets.scores.performance import Voice, synthesize

digest = hashlib.sha256()
for instrument in INSTRUMENTS.values():
    pitches, _ = LONGEST_NOTES.get(instrument.program, ([instrument.high], None))
    for pitch in pitches:
        digest.update(synthesize([Voice(instrument, np.array([[0.0, 4.0, pitch, 100]]))]))
print(digest.hexdigest())
"""


def test_what_is_played_does_not_depend_on_what_the_memory_held():
    """glibc fills what a program is given with the byte that the variable says."""
    found = set()
    for byte in ("17", "203"):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_PERTURB_": byte}
        done = subprocess.run(
            [sys.executable, "-c", PLAYED], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1

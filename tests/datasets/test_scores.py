"""The embedded data set: reading, grouping, performing, and the build as a whole."""

from __future__ import annotations

import csv
import errno
import functools
import json
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from maest.datasets.groundtruth import read_groundtruth, read_labels
from maest.datasets.melspectrograms import read_mel
from maest.datasets.scores import corpus, labels, performance, preprocess, reading, stages
from maest.datasets.scores.corpus import Work
from maest.datasets.scores.performance import assign, fold, octave_shift
from maest.datasets.scores.reading import Score
from maest.datasets.scores.tables import COLLECTIONS, ENSEMBLES, INSTRUMENTS, PACE
from maest.helpers.errors import InputError
from maest.helpers.work import parallel

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = preprocess.versions()
SETTINGS = {"works": 48, "clip_seconds": 6.0, "seed": 3, "progress": False}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One small build, in this process."""
    out_dir = tmp_path_factory.mktemp("scores")
    report = preprocess.build(out_dir, num_workers=1, **SETTINGS)
    return out_dir, report


def read_clips(out_dir: Path) -> list[dict[str, str]]:
    with (out_dir / "clips.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files_of(out_dir: Path) -> dict[str, bytes]:
    patterns = ("melspectrograms/*/*.mmap", "*/groundtruth-*.pk", "*/labels.json", "clips.csv")
    paths = [path for pattern in patterns for path in out_dir.glob(pattern)]
    return {str(path.relative_to(out_dir)): path.read_bytes() for path in paths}


def tune(title: str, body: str = "GABc dedB|cBAG FEDC|GABc dedB|cBAG G4|", **headers: str) -> str:
    fields = "".join(f"{name}:{value}\n" for name, value in headers.items() if name != "K")
    return f"X:1\nT:{title}\nM:4/4\nL:1/8\n{fields}K:{headers.get('K', 'G')}\n{body}\n"


def abc_work(text: str, collection: str = "ryan", name: str = "a", rank: int = 0) -> Work:
    return Work(f"{collection}/{name}", collection, f"{name}.abc", text, len(text), rank)


def read_tunes(*texts: str, collection: str = "ryan") -> tuple[list[Work], dict[str, Score]]:
    works = [abc_work(text, collection, f"t{i}", i) for i, text in enumerate(texts)]
    return works, {work.id: reading.read(work, Path()) for work in works}


# ---- reading -------------------------------------------------------------------------------------


def test_selection_is_nested_and_balanced():
    works = corpus.list_works()
    assert len(works) > 10_000
    assert len({work.id.lower() for work in works}) == len(works)
    assert works == corpus.list_works()
    shares = [sum(w.collection == c.name for w in works[:600]) for c in COLLECTIONS.values()]
    assert min(shares) >= 5
    assert max(shares) <= 75
    heavy = {c.name for c in COLLECTIONS.values() if c.weight >= 1.5}
    assert heavy <= {work.collection for work in works[:20]}


def test_abc_notes_are_those_of_the_text():
    text = tune("x", "C2 D- D|z2 [CE]2|(3EFG c'4|]", K="C")
    notes = reading.read(abc_work(text), Path()).notes
    quarter = reading.TICKS_PER_QUARTER
    assert notes[:, 3].tolist() == [60, 62, 60, 64, 64, 65, 67, 84]
    assert notes[0, 1:3].tolist() == [0, quarter]
    assert notes[1, 1:3].tolist() == [quarter, quarter]  # the tie joined two eighths
    assert notes[-1, 2] == 2 * quarter


def test_signs_that_are_no_notes_do_not_disturb_abc():
    ornate = tune("x", '"Am"uA."4"B (vc~d) {Hg} Tef|"1"e>.d c2 ``B2 HA2 | % end', R="hornpipe")
    plain = tune("x", "AB cd {g} ef|e>d c2 B2 A2 |")
    a, b = (reading.read(abc_work(text), Path()).notes for text in (ornate, plain))
    assert np.array_equal(a, b)


def test_abc_metadata():
    text = tune("Miss Gow -- Reel", K="A Dorian", R="reel", Q='1/2=100 "Allegro"', O="Irland")
    metadata = reading.abc_metadata(text, "ryan")
    assert metadata.titles == ["Miss Gow -- Reel"]
    assert (metadata.mode, metadata.metre, metadata.quarter_bpm) == ("dorian", "4/4", 200.0)
    assert reading.abc_metadata(tune("x", K="Am"), "ryan").mode == "minor"
    assert reading.abc_metadata(tune("x", K="D"), "ryan").mode == "major"
    # The Essen books name a tonic and no mode; their catalogue number groups variants.
    essen = reading.abc_metadata(tune("x", K="D", N="Q0001A"), "german")
    assert (essen.mode, essen.opus) == (None, "Q0001")


def test_kern_work_with_ties():
    works = {w.id: w for w in corpus.list_works() if w.collection == "palestrina"}
    score = reading.read(works["palestrina/Agnus_01"], corpus.corpus_folder())
    assert score.metadata.mode in {"major", "minor", "dorian", "mixolydian", "phrygian"}
    assert score.metadata.opus.startswith("Missa")
    assert score.n_parts == 5
    means = [score.notes[score.notes[:, 0] == i, 3].mean() for i in range(5)]
    assert means == sorted(means, reverse=True)
    text = (corpus.corpus_folder() / works["palestrina/Agnus_01"].path).read_text("latin-1")
    data = [line.split("\t") for line in text.splitlines() if line[:1] not in "*!=\t"]
    tokens = [token for line in data for token in line if token[-1:] not in "r." and token != "."]
    attacks = [token for token in tokens if "r" not in token and not set("]_") & set(token)]
    assert len(score.notes) == len(attacks)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("X:1\nT:none\nK:C\n", "fewer than 8 notes"),
        ("X:1\nT:none\n", "No valid K"),
        (tune("x", "ABc>d>e>| (3AB"), "abc2midi"),
    ],
)
def test_unreadable_tune_says_why(text, reason, capfd):
    with pytest.raises(reading.Unreadable, match=reason):
        reading.read(abc_work(text), Path())
    assert capfd.readouterr() == ("", "")


def test_damaged_file_is_unreadable(tmp_path):
    (tmp_path / "broken.mxl").write_bytes(b"PK\x03\x04 not a score")
    work = Work("bach/broken", "bach", "broken.mxl", None, 10)
    with pytest.raises(reading.Unreadable, match="music21"):
        reading.read(work, tmp_path)


# ---- labels, groups, splits ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant",
    ["Miss MacLeod's", "The Miss McLeods -- Reel", "Miss McLeod's (2nd setting)", "miss mcleods 2"],
)
def test_variant_titles_are_one(variant):
    assert labels.normal_title(variant) == "missmcleods"


def test_groups_by_title_catalogue_and_opening():
    other = "EFGA BcdB|AGFE D2E2|EFGA BcdB|AcBG E4|"
    third = "cegc' bgec|dfaf dBAF|cegc' bgec|dfaf c4|"
    works, scores = read_tunes(
        tune("Miss McLeod's -- Reel"),
        tune("The Miss MacLeods", other),  # the same title
        tune("A Quite Different Name", "GAAB cded|B2cB AGFE|DDGA BcdB|AcBG E4|"),
        tune("A Name of Its Own", third),
    )
    groups = labels.group_works(works, scores, seed=0)
    assert [groups[work.id].id for work in works] == ["ryan/t0", "ryan/t0", "ryan/t0", "ryan/t3"]
    # The opening is the same in any key.
    works, scores = read_tunes(
        tune("First Name", other), tune("Second Name", other, K="G transpose=2")
    )
    assert len({leader.id for leader in labels.group_works(works, scores, seed=0).values()}) == 1
    works, scores = read_tunes(
        tune("Eins eins", N="E0001"), tune("Zwei zwei", third, N="E0001B"), collection="german"
    )
    assert len({leader.id for leader in labels.group_works(works, scores, seed=0).values()}) == 1


def test_bach_variants_share_an_opus():
    paths = ("bach/bwv112.5.mxl", "bach/bwv112.5-sc.mxl", "bach/bwv120.8-a.mxl")
    found = [reading.opus_of(Work(path[:-4], "bach", path, None, 1)) for path in paths]
    assert found == ["bwv112.5", "bwv112.5", "bwv120.8"]


def test_style_labels_come_from_the_headers():
    works, scores = read_tunes(
        tune("The March -- Reel", K="Am", R="reel"), tune("Drops of Brandy", R="slip jig")
    )
    reel, slip_jig = (labels.style_labels(work, scores[work.id]) for work in works)
    assert reel == [
        "Folk---American Fiddle",
        "Dance---Reel",
        "Metre---Quadruple",
        "Mode---Minor",
        "Texture---Single Line",
    ]
    assert "Dance---Slip Jig" in slip_jig
    assert "Dance---Jig" not in slip_jig
    works, scores = read_tunes(
        tune("Ein Lied", O="Mitteleuropa, Deutschland / Frankreich, Lothringen"),
        tune("Ein Tanz mit Jig im Titel"),
        collection="german",
    )
    both, none = (labels.style_labels(work, scores[work.id]) for work in works)
    assert {"Folk---German Song", "Folk---Lorraine Song"} <= set(both)
    assert not [label for label in none if label.startswith(("Folk", "Dance", "Mode"))]


def test_labels_that_stay():
    clips = [("train", ["a", "common"])] * 280 + [("validation", ["a"])] * 60
    clips += [("test", ["a", "common"])] * 2 + [("test", ["b"])] * 58 + [("train", ["b"])] * 15
    clips += [("validation", ["b"])] * 4
    chosen = labels.choose_labels(clips, 0.4, {"train": 15, "validation": 4, "test": 4})
    assert chosen.names == ["b"]
    assert chosen.counts["b"] == {"train": 15, "validation": 4, "test": 58}
    assert "more than" in chosen.dropped["common"]


def test_splits_are_even_in_every_collection():
    for collection in ("ryan", "quartets"):
        sides = [
            labels.split_of(abc_work("", collection, rank=rank), seed)
            for rank in range(14)
            for seed in range(3)
        ]
        assert [sides.count(split) for split in labels.SPLITS] == [30, 6, 6]


# ---- performing ----------------------------------------------------------------------------------


def test_tables_fit_together():
    assert ENSEMBLES.keys() == PACE.keys()
    used = {name for table in ENSEMBLES.values() for _, e in table for layer in e for name in layer}
    assert used == INSTRUMENTS.keys()
    assert {collection.kind for collection in COLLECTIONS.values()} - {""} <= ENSEMBLES.keys()
    assert len({(i.program) for i in INSTRUMENTS.values()}) == len(INSTRUMENTS)


def test_every_instrument_sounds_in_all_of_its_range():
    for name, instrument in INSTRUMENTS.items():
        for pitch in (instrument.low, (instrument.low + instrument.high) // 2, instrument.high):
            notes = np.array([[0.0, 0.3, pitch, 90.0]])
            audio = performance.synthesize([performance.Voice(instrument, notes)])
            level = np.sqrt(np.mean(audio[: int(0.3 * 16_000)] ** 2))
            assert 1e-3 < level < 3, (name, pitch)


def test_ranges_and_parts():
    rng = np.random.default_rng(0)
    cello = INSTRUMENTS["cello"]
    pitches = np.array([72, 76, 79, 84, 100])
    shift = octave_shift(pitches, cello, rng)
    assert shift % 12 == 0
    folded = fold(pitches + shift, cello)
    assert folded.min() >= cello.low
    assert folded.max() <= cello.high
    assert ((folded - pitches) % 12 == 0).all()
    strings = ("violin", "violin", "viola", "cello")
    assert assign(strings, 4) == list(enumerate(strings))
    assert assign(strings, 2) == [(0, "violin"), (1, "cello")]
    assert [name for _, name in assign(("voice",), 3)] == ["voice"] * 3


def test_clip_window_and_instruments():
    violin, cello = INSTRUMENTS["violin"], INSTRUMENTS["cello"]
    # A note held over the whole, and another instrument that is heard for a moment only.
    voices = [
        performance.Voice(violin, np.array([[0.0, 40.0, 70, 90]])),
        performance.Voice(cello, np.array([[20.0, 0.2, 50, 90]])),
    ]
    arrangement = performance.Arrangement(voices, 100.0, 0)
    clip = performance.render_clip(arrangement, 10.0, np.random.default_rng(1))
    assert clip.audio.shape == (160_000,)
    assert clip.audio.dtype == np.float32
    assert clip.start > performance._LEAD_IN
    assert clip.instruments == ["Violin"]
    assert clip.programs == [40]
    assert np.abs(clip.audio).max() <= 0.98 + 1e-6
    # The note sounds from the window's first moment (its attack is before it) to its last.
    for piece in (clip.audio[800:2400], clip.audio[-2400:-800]):
        assert np.sqrt(np.mean(piece**2)) > 1e-3
    short = performance.Arrangement([performance.Voice(violin, np.array([[0, 2.0, 70, 90]]))], 1, 0)
    with pytest.raises(performance.TooShort, match=r"2\.0 s"):
        performance.render_clip(short, 10.0, np.random.default_rng(1))


def test_a_clip_does_not_depend_on_what_was_rendered_before():
    voices = [
        [performance.Voice(INSTRUMENTS[name], np.array([[0.0, 0.5, 62, 90], [0.3, 0.9, 69, 70]]))]
        for name in ("fiddle", "choir", "violin", "flute")
    ]
    forth = [performance.synthesize(notes) for notes in voices]
    back = [performance.synthesize(notes) for notes in reversed(voices)][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(forth, back, strict=True))


# ---- the build -----------------------------------------------------------------------------------


def test_build_is_whole_and_consistent(built):
    out_dir, report = built
    rows = {row["key"]: row for row in read_clips(out_dir)}
    for row in rows.values():
        instruments = [f"Instrument---{label}" for label in row["instrument"].split("; ") if label]
        row["tags"] = "; ".join([row["style"], *instruments])
    assert json.loads((out_dir / "report.json").read_text("utf-8")) == report
    assert report["works"] == SETTINGS["works"]
    assert report["done"] == len(rows) == sum(report["clips"].values())
    for name in ("style", "instrument", "tags"):
        names = read_labels(out_dir / name / "labels.json")
        assert names == sorted(names)
        everything = read_groundtruth(out_dir / name / "groundtruth-all.pk")
        assert sorted(everything.keys) == sorted(rows)
        parts = []
        for split in labels.SPLITS:
            part = read_groundtruth(out_dir / name / f"groundtruth-{split}.pk")
            assert {rows[key]["split"] for key in part.keys} == {split}
            parts += part.keys
        assert sorted(parts) == sorted(rows)
        assert list(report["labels"][name]) == names
        for key, target in zip(everything.keys, np.asarray(everything.targets), strict=True):
            own = set(rows[key][name].split("; ")) & set(names)
            assert {names[i] for i in np.flatnonzero(target)} == own
    for key, row in rows.items():
        mel = read_mel(out_dir / "melspectrograms" / key)
        samples = round(float(row["seconds"]) * 16_000)
        assert len(mel) == 1 + -(-samples // 256)
        assert 0 < float(np.mean(mel, dtype=np.float64)) < 5
    tags = read_labels(out_dir / "tags" / "labels.json")
    kinds = {tag.partition("---")[0] for tag in tags}
    assert "Instrument" in kinds
    assert len(kinds) > 2  # and some of style


def test_instrument_labels_are_the_programs_rendered(built):
    programs = {instrument.program: instrument.label for instrument in INSTRUMENTS.values()}
    for row in read_clips(built[0]):
        heard = {programs[int(program)] for program in row["programs"].split("; ") if program}
        assert heard == set(row["instrument"].split("; ")) - {""}


def test_splits_share_no_work_and_no_group(built):
    rows = read_clips(built[0])
    for column in ("work", "group"):
        sides: dict[str, set[str]] = {}
        for row in rows:
            sides.setdefault(row[column], set()).add(row["split"])
        assert all(len(side) == 1 for side in sides.values())


def test_second_call_skips_and_a_lost_clip_comes_back(built):
    out_dir, report = built
    before = files_of(out_dir)
    again = preprocess.build(out_dir, num_workers=1, **SETTINGS)
    assert (again["done"], again["skipped"], again["failed"]) == (
        0,
        report["done"],
        report["failed"],
    )
    lost, cut = [out_dir / name for name in sorted(before) if name.endswith(".mmap")][:2]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-192])
    resumed = preprocess.build(out_dir, num_workers=1, **SETTINGS)
    assert (resumed["done"], resumed["skipped"]) == (2, report["done"] - 2)
    after = files_of(out_dir)
    assert [name for name in before if before[name] != after.get(name)] == []


def differing(one: Path, other: Path) -> list[str]:
    """Names of files that only one of two folders has, or that differ (short, to be shown)."""
    a, b = files_of(one), files_of(other)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


@pytest.mark.slow
def test_workers_do_not_matter_and_the_script_runs_anywhere(built, tmp_path):
    """One process or two, as a script, from another folder: the same bytes.

    Both in processes of their own: libraries that other tests load change how a process rounds.
    """
    script = str(ROOT / "datasets" / "scores" / "preprocess.py")
    options = ["--works", "48", "--clip-seconds", "6", "--seed", "3", "--keep-audio"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for workers in ("1", "2"):
        run = subprocess.run(
            [sys.executable, script, *options, "--num-workers", workers, "--out-dir", workers],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert run.returncode == 0, run.stderr
        summary = run.stdout.strip().splitlines()
        assert len(summary) == 1
        assert (
            f"{built[1]['done']} clips done, 0 skipped, {built[1]['failed']} failed" in summary[0]
        )
    assert not differing(tmp_path / "1", tmp_path / "2")
    assert len(list(tmp_path.glob("2/audio/*/*.flac"))) == built[1]["done"]
    assert files_of(tmp_path / "1").keys() == files_of(built[0]).keys()


PLAYED = """
import hashlib, sys
import numpy as np
from maest.datasets.scores.tables import INSTRUMENTS, LONGEST_NOTES
from maest.datasets.scores.performance import Voice, synthesize

digest = hashlib.sha256()
for instrument in INSTRUMENTS.values():
    pitches, _ = LONGEST_NOTES.get(instrument.program, ({instrument.high}, None))
    for pitch in sorted(pitches):
        digest.update(synthesize([Voice(instrument, np.array([[0.0, 4.0, pitch, 100]]))]))
print(digest.hexdigest())
"""


def test_what_is_played_does_not_depend_on_what_the_memory_held():
    """glibc fills what a program is given with the byte that the variable says."""
    found = set()
    for byte in ("17", "203"):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_PERTURB_": byte}
        how = {"env": environment, "capture_output": True, "text": True, "timeout": 120}
        done = subprocess.run([sys.executable, "-c", PLAYED], **how)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


def test_each_tune_is_read_in_a_folder_of_its_own(monkeypatch):
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
    monkeypatch.setenv("TMPDIR", "as it was")
    for i in range(2):
        text = f"X:1\nT:{i}\nM:4/4\nL:1/8\nK:C\nCDEF GABc|\n"
        assert len(reading.read(Work(f"ryan/{i}", "ryan", "", text, len(text)), Path()).notes) == 8
    assert len(set(folders)) == 2
    assert not any(Path(folder).exists() for folder in folders)
    assert os.environ["TMPDIR"] == "as it was"


def test_more_works_and_renditions_extend(built, tmp_path):
    out_dir = tmp_path / "grown"
    shutil.copytree(built[0], out_dir)
    settings = {**SETTINGS, "works": 56, "renditions": 2}
    report = preprocess.build(out_dir, num_workers=1, **settings)
    assert report["skipped"] == built[1]["done"]
    before, after = files_of(built[0]), files_of(out_dir)
    mels = {name: data for name, data in before.items() if name.endswith(".mmap")}
    assert mels.items() <= after.items()
    first, second = (after[name.replace("-r0", f"-r{i}")] for i in (0, 1) for name in [min(mels)])
    assert first != second
    splits = {row["work"]: row["split"] for row in read_clips(built[0])}
    grown = {row["work"]: row["split"] for row in read_clips(out_dir)}
    assert splits.items() <= grown.items()


def test_unreadable_and_duplicate_works_are_counted(tmp_path, monkeypatch):
    bodies = ["GABc dedB|cBAG FEDC|", "EFGA BcdB|AGFE D2E2|", "cegc' bgec|dfaf dBAF|"]
    bodies += ["BdBd cece|dfdf g2G2|", "DEFD GABG|cdec d2D2|", "gfed cBAG|FGAB c2C2|"]
    texts = [tune(f"Reel No {'abcdefgh'[i]}", b * 4, R="reel") for i, b in enumerate(bodies)]
    texts += [texts[0].replace("Reel No", "Again"), tune("bad", "ABc>d>e>| (3AB")]
    names = ("ryan", "oneill", "aird", "german", "chinese", "lorraine", "luxembourg", "fife")
    works = [
        abc_work(text, name, f"w{i}")
        for i, (name, text) in enumerate(zip(names, texts, strict=True))
    ]
    monkeypatch.setattr(preprocess, "list_works", lambda folder: works)
    monkeypatch.setattr(
        preprocess, "split_of", lambda work, seed: labels.SPLITS[int(work.id[-1]) % 3]
    )
    monkeypatch.setattr(preprocess, "MAX_SHARE", {"style": 1.0, "instrument": 1.0})
    monkeypatch.setattr(performance, "choose_ensemble", lambda kind, rng: (("fiddle",),))
    report = preprocess.build(tmp_path, works=None, clip_seconds=4, num_workers=1, progress=False)
    assert (len(report["unreadable"]), len(report["duplicates"]), report["failed"]) == (1, 1, 1)
    written = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert written["duplicates"] == {works[6].id: works[0].id}
    assert list(written["unreadable"]) == [works[7].id]
    assert written["unreadable"][works[7].id].startswith("abc2midi")


@pytest.fixture
def copied(built, tmp_path) -> Path:
    """A copy of the small build, to be changed."""
    shutil.copytree(built[0], tmp_path / "copy")
    return tmp_path / "copy"


def rebuild(out_dir: Path, **changes) -> dict:
    return preprocess.build(out_dir, **{**SETTINGS, "num_workers": 1, **changes})


@pytest.mark.parametrize("changed", ["music21", "symusic", "SoundFont", "front end", "performer"])
def test_what_other_versions_made_does_not_mix(copied, monkeypatch, changed):
    before = files_of(copied)
    monkeypatch.setattr(preprocess, "versions", lambda: VERSIONS | {changed: "newer"})
    with pytest.raises(InputError) as caught:
        rebuild(copied, works=60)
    assert (caught.value.kind, caught.value.path) == ("mismatch", copied)
    assert changed in caught.value.message
    assert files_of(copied) == before


def as_version_0_1(out_dir: Path, **others) -> None:
    """Take away what version 0.1 did not write, and put its versions into the report."""
    connection = sqlite3.connect(out_dir / "notes.sqlite")
    connection.execute("DROP TABLE versions")
    connection.commit()
    connection.close()
    report = json.loads((out_dir / "report.json").read_text("utf-8"))
    names = ("music21", "symusic", "pretty_midi", "torch")
    report["versions"] = {name: metadata.version(name) for name in names}
    report["versions"] |= {"reader": 1, "performer": 4} | others
    (out_dir / "report.json").write_text(json.dumps(report), "utf-8")


def test_a_build_of_version_0_1_is_kept_where_its_libraries_are_the_present_ones(
    built, copied, caplog
):
    as_version_0_1(copied)
    for said in (1, 0):
        caplog.clear()
        again = rebuild(copied)
        assert (again["done"], again["skipped"]) == (0, built[1]["done"])
        assert len(caplog.records) == said
    assert not differing(built[0], copied)


@pytest.mark.parametrize("unknown", ["other", "no report"])
def test_a_build_of_version_0_1_with_other_libraries_is_refused(copied, unknown):
    as_version_0_1(copied, pretty_midi="0.1")
    if unknown == "no report":
        (copied / "report.json").unlink()
    with pytest.raises(InputError) as caught:
        rebuild(copied)
    assert (caught.value.kind, caught.value.path) == ("mismatch", copied)
    assert "pretty_midi" in caught.value.message


def test_a_work_that_hangs_or_crashes_is_counted_and_tried_again_the_next_time(
    built, copied, monkeypatch
):
    """symusic is known to do both."""
    rows = read_clips(copied)
    crashing = rows[0]["work"]  # and the other hangs
    for row in rows[:2]:
        (copied / "melspectrograms" / row["key"]).unlink()

    def arrange(work, score, rng):
        if work.id == crashing:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            signal.pause()

    monkeypatch.setattr(stages, "arrange", arrange)
    limited = functools.partial(parallel.process_map, time_limit=0.5)
    monkeypatch.setattr(parallel, "process_map", limited)
    report = rebuild(copied, num_workers=2)
    assert (report["done"], report["failed"]) == (0, built[1]["failed"] + 2)
    written = json.loads((copied / "report.json").read_text("utf-8"))["failed_clips"]
    assert {row["key"] for row in rows[:2]} <= written.keys()
    assert {row["work"] for row in read_clips(copied)} == {row["work"] for row in rows[2:]}
    monkeypatch.undo()
    assert rebuild(copied)["done"] == 2
    assert not differing(built[0], copied)


@pytest.mark.parametrize("stage", ["read", "arrange"])
def test_a_full_disk_ends_the_build_and_is_no_fault_of_a_work(built, copied, monkeypatch, stage):
    lost = read_clips(copied)[0]["key"]
    (copied / "melspectrograms" / lost).unlink()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stages, stage, full)
    with pytest.raises(InputError) as caught:
        rebuild(copied, works=60 if stage == "read" else 48)
    assert (caught.value.kind, caught.value.path) == ("access", copied)
    monkeypatch.undo()
    assert rebuild(copied)["done"] == 1
    assert not differing(built[0], copied)


def test_another_build_is_waited_for_and_said(copied, monkeypatch, caplog):
    lock = FileLock(copied / ".lock")
    lock.acquire()

    class Said(logging.Handler):
        def emit(self, record):
            lock.release()

    handler = Said()
    preprocess.log.addHandler(handler)
    try:
        assert rebuild(copied)["done"] == 0
    finally:
        preprocess.log.removeHandler(handler)
        lock.release()
    assert len(caplog.records) == 1
    assert str(copied) in caplog.text


@pytest.mark.parametrize(
    ("wrong", "setting"),
    [
        ({"works": 0}, "--works"),
        ({"renditions": 0}, "--renditions"),
        ({"clip_seconds": 0.0}, "--clip-seconds"),
        ({"clip_seconds": float("nan")}, "--clip-seconds"),
        ({"num_workers": 0}, "--num-workers"),
        ({"works": 2}, "--works"),  # a split would be empty
    ],
)
def test_settings_that_cannot_be_used_are_refused(wrong, setting, tmp_path):
    with pytest.raises(InputError) as caught:
        preprocess.build(tmp_path, progress=False, **{"num_workers": 1, **wrong})
    assert caught.value.setting == setting
    assert caught.value.hint


def test_the_command_says_in_one_line_what_a_user_can_mend(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    assert preprocess.main(["--out-dir", str(tmp_path / "file" / "below")]) == 1
    assert preprocess.main(["--works", "0", "--out-dir", str(tmp_path)]) == 1
    *lines, last = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert str(tmp_path / "file") in lines[0]
    assert "--works" in last
    with pytest.raises(SystemExit):
        preprocess.main(["--works", "x"])
    assert "'x'" in capsys.readouterr().err.splitlines()[-1]

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(preprocess, "list_works", stop)
    assert preprocess.main(["--out-dir", str(tmp_path)]) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_programming_error_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(preprocess, "list_works", lambda folder: int("not a number"))
    with pytest.raises(ValueError, match="not a number"):
        preprocess.main(["--out-dir", str(tmp_path)])

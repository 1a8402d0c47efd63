"""The embedded data set: reading, grouping, performing, and the build as a whole."""

from __future__ import annotations

import errno
import functools
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
from folders import read_json, rows, tree
from made_up import refuses

from maest.datasets.groundtruth import read_groundtruth, read_labels
from maest.datasets.melspectrograms import read_mel
from maest.datasets.scores import corpus, labels, performance, preprocess, reading, stages
from maest.datasets.scores.corpus import Work
from maest.datasets.scores.performance import Arrangement, Voice
from maest.datasets.scores.tables import COLLECTIONS, ENSEMBLES, INSTRUMENTS, PACE
from maest.helpers.files.atomic import write_json
from maest.helpers.work import parallel

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = preprocess.versions()
SETTINGS = {"works": 48, "clip_seconds": 6.0, "seed": 3, "progress": False, "num_workers": 1}
SCALE = "GABc dedB|cBAG FEDC|GABc dedB|cBAG G4|"
OTHER = "EFGA BcdB|AGFE D2E2|EFGA BcdB|AcBG E4|"
THIRD = "cegc' bgec|dfaf dBAF|cegc' bgec|dfaf c4|"


def build(out_dir: Path, **changes) -> dict:
    return preprocess.build(out_dir, **SETTINGS | changes)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One small build, by its command in this process."""
    out_dir = tmp_path_factory.mktemp("scores")
    line = f"--works 48 --clip-seconds 6 --seed 3 --keep-audio --num-workers 1 --out-dir {out_dir}"
    assert preprocess.main(line.split()) == 0
    return out_dir, read_json(out_dir / "report.json")


@pytest.fixture
def copied(built, tmp_path) -> Path:
    shutil.copytree(built[0], tmp_path / "copy")
    return tmp_path / "copy"


def results_of(out_dir: Path) -> dict[str, bytes]:
    kept = (".mmap", ".pk", "labels.json", "clips.csv")
    return {name: data for name, data in tree(out_dir).items() if name.endswith(kept)}


def differing(one: Path, other: Path) -> list[str]:
    """Names of files that only one of two folders has, or that differ (short, to be shown)."""
    a, b = results_of(one), results_of(other)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def tune(title: str, body: str = SCALE, K: str = "G", **headers: str) -> str:
    fields = "".join(f"{name}:{value}\n" for name, value in headers.items())
    return f"X:1\nT:{title}\nM:4/4\nL:1/8\n{fields}K:{K}\n{body}\n"


def work(text: str, collection: str = "ryan", name: str = "a", rank: int = 0) -> Work:
    return Work(f"{collection}/{name}", collection, f"{name}.abc", text, len(text), rank)


def notes_of(text: str) -> np.ndarray:
    return reading.read(work(text), Path()).notes


def read_tunes(*texts: str, collection: str = "ryan"):
    works = [work(text, collection, f"t{i}", i) for i, text in enumerate(texts)]
    return works, {one.id: reading.read(one, Path()) for one in works}


# ---- reading -------------------------------------------------------------------------------------


def test_a_package_that_is_missing(tmp_path):
    with refuses("dependency", "no_such_package/corpus"):
        corpus.package_file("no_such_package", "corpus")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("X:1\nT:none\nK:C\n", "fewer than 8 notes"),
        ("X:1\nT:none\n", "No valid K"),
        (tune("x", "ABc>d>e>| (3AB"), "abc2midi"),
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
        assert len(notes_of(tune("x", "CDEF GABc|"))) == 8
    assert len(set(folders)) == 2
    assert not any(Path(folder).exists() for folder in folders)
    assert os.environ["TMPDIR"] == "before"


# ---- labels, groups, splits ----------------------------------------------------------------------


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


# ---- performing ----------------------------------------------------------------------------------


def test_tables_fit_together():
    used = {name for table in ENSEMBLES.values() for _, e in table for layer in e for name in layer}
    assert used == INSTRUMENTS.keys()
    kinds = {collection.kind for collection in COLLECTIONS.values()} - {""}
    assert kinds <= ENSEMBLES.keys() <= PACE.keys()
    assert len({i.program for i in INSTRUMENTS.values()}) == len(INSTRUMENTS)


def voice(name: str, *notes: tuple[float, float, float, float]) -> Voice:
    return Voice(INSTRUMENTS[name], np.array(notes, float))


def test_every_instrument_sounds_in_all_of_its_range():
    for name, instrument in INSTRUMENTS.items():
        for pitch in (instrument.low, (instrument.low + instrument.high) // 2, instrument.high):
            audio = performance.synthesize([voice(name, (0, 0.3, pitch, 90))])
            level = np.sqrt(np.mean(audio[: int(0.3 * 16_000)] ** 2))
            assert 1e-3 < level < 3, (name, pitch)


@pytest.mark.parametrize(("seconds", "samples"), [(10.0, None), (1.5, 24_000)])
def test_a_work_that_is_too_short(seconds, samples):
    two_seconds = Arrangement([voice("violin", (0, 1, 70, 90), (1, 1, 72, 90))], 1.0, 0)
    rng = np.random.default_rng(1)
    if samples is None:
        with pytest.raises(performance.TooShort):
            performance.render_clip(two_seconds, seconds, rng)
    else:
        assert len(performance.render_clip(two_seconds, seconds, rng).audio) == samples


def test_a_broken_voice_of_the_font_is_an_error(monkeypatch):
    import symusic

    class Broken:
        def __init__(self, **_) -> None: ...

        def render(self, *_, **__) -> np.ndarray:
            return np.full((1, 10), np.nan)

    monkeypatch.setattr(symusic, "Synthesizer", Broken)
    with pytest.raises(RuntimeError, match="40"):
        performance.synthesize([voice("violin", (0, 1, 70, 90))])


def test_a_window_without_notes_is_silent():
    rests = Arrangement([voice("violin", (0, 1, 70, 90), (1000, 1, 70, 90))], 1.0, 0)
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


# ---- the build -----------------------------------------------------------------------------------


def test_build_is_whole_and_consistent(built):
    out_dir, report = built
    clips = {row["key"]: row for row in rows(out_dir / "clips.csv")}
    programs = {instrument.program: instrument.label for instrument in INSTRUMENTS.values()}
    for key, row in clips.items():
        instruments = [name for name in row["instrument"].split("; ") if name]
        row["tags"] = "; ".join([row["style"], *(f"Instrument---{name}" for name in instruments)])
        played = [int(program) for program in row["programs"].split("; ") if program]
        assert {programs[program] for program in played} == set(instruments)
        mel = read_mel(out_dir / "melspectrograms" / key)
        assert len(mel) == 1 + -(-round(float(row["seconds"]) * 16_000) // 256)
        assert 0 < float(np.mean(mel, dtype=np.float64)) < 5
    assert report["works"] == SETTINGS["works"]
    assert report["done"] == len(clips) == sum(report["clips"].values())
    assert len(list(out_dir.glob("audio/*/*.flac"))) == len(clips)
    for name in ("style", "instrument", "tags"):
        names = read_labels(out_dir / name / "labels.json")
        assert names == sorted(names) == list(report["labels"][name])
        everything = read_groundtruth(out_dir / name / "groundtruth-all.pk")
        assert sorted(everything.keys) == sorted(clips)
        parts = []
        for split in labels.SPLITS:
            part = read_groundtruth(out_dir / name / f"groundtruth-{split}.pk")
            assert {clips[key]["split"] for key in part.keys} == {split}
            parts += part.keys
        assert sorted(parts) == sorted(clips)
        for key, target in zip(everything.keys, np.asarray(everything.targets), strict=True):
            of_clip = set(clips[key][name].split("; ")) & set(names)
            assert {names[i] for i in np.flatnonzero(target)} == of_clip
    assert {"Instrument", "Metre"} <= {tag.partition("---")[0] for tag in names}
    for column in ("work", "group"):
        splits = {(row[column], row["split"]) for row in clips.values()}
        assert len({row[column] for row in clips.values()}) == len(splits)


def test_second_call_skips_and_a_lost_or_truncated_clip_comes_back(built, copied):
    again, report = build(copied), built[1]
    assert (again["done"], again["skipped"]) == (0, report["done"])
    assert again["failed"] == report["failed"]
    lost, cut = sorted(copied.rglob("*.mmap"))[:2]
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-192])
    again = build(copied)
    assert (again["done"], again["skipped"]) == (2, report["done"] - 2)
    assert not differing(built[0], copied)


def test_codecs_change_a_share_of_the_clips_and_nothing_else(built, copied):
    report = build(copied, codec_share=0.5)
    assert report["done"] == built[1]["done"]
    clips, plain = rows(copied / "clips.csv"), rows(built[0] / "clips.csv")
    codecs = {row.pop("key"): row.pop("codec") for row in clips}
    assert [row.pop("key") for row in plain] == list(codecs)
    assert clips == plain
    for key, codec in codecs.items():
        mels = [read_mel(folder / "melspectrograms" / key) for folder in (built[0], copied)]
        assert mels[0].shape == mels[1].shape
        assert np.array_equal(*mels) == (codec == "")
    assert 0.3 < np.mean([codec == "" for codec in codecs.values()]) < 0.7
    assert {codec.split()[0] for codec in codecs.values() if codec} == {"mp3", "aac", "opus"}
    assert build(copied, codec_share=0.5)["skipped"] == report["done"]


@pytest.mark.slow
def test_workers_do_not_matter_and_the_script_runs_anywhere(built, tmp_path):
    """Both in processes of their own: libraries that other tests load change how one rounds."""
    script = str(ROOT / "datasets" / "scores" / "preprocess.py")
    options = ["--works", "48", "--clip-seconds", "6", "--seed", "3", "--keep-audio"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for workers in ("1", "2"):
        line = [sys.executable, script, *options, "--num-workers", workers, "--out-dir", workers]
        run = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        assert len(run.stdout.strip().splitlines()) == 1
        assert read_json(tmp_path / workers / "report.json")["done"] == built[1]["done"]
    assert not differing(tmp_path / "1", tmp_path / "2")
    assert len(list(tmp_path.glob("2/audio/*/*.flac"))) == built[1]["done"]
    assert results_of(tmp_path / "1").keys() == results_of(built[0]).keys()


def test_more_works_and_renditions_extend(built, copied):
    report = build(copied, works=56, renditions=2)
    assert report["skipped"] == built[1]["done"]
    before, after = results_of(built[0]), results_of(copied)
    mels = {name: data for name, data in before.items() if name.endswith(".mmap")}
    assert mels.items() <= after.items()
    assert after[min(mels)] != after[min(mels).replace("-r0", "-r1")]
    splits, grown = (
        {row["work"]: row["split"] for row in rows(folder / "clips.csv")}
        for folder in (built[0], copied)
    )
    assert splits.items() <= grown.items()


def test_a_collection_is_left_out(copied):
    before = {row["key"]: row["split"] for row in rows(copied / "clips.csv")}
    build(copied, works=40, leave_out=["ryan"])
    after = {row["key"]: row["split"] for row in rows(copied / "clips.csv")}
    assert {row["collection"] for row in rows(copied / "clips.csv")} >= {"oneill", "aird"}
    assert not any(key.startswith("ryan/") for key in after)
    assert all(before[key] == split for key, split in after.items() if key in before)


def test_unreadable_and_duplicate_works_are_counted(tmp_path, monkeypatch):
    bodies = ["GABc dedB|cBAG FEDC|", "EFGA BcdB|AGFE D2E2|", "cegc' bgec|dfaf dBAF|"]
    bodies += ["BdBd cece|dfdf g2G2|", "DEFD GABG|cdec d2D2|", "gfed cBAG|FGAB c2C2|"]
    texts = [tune(f"Reel No {'abcdefgh'[i]}", b * 4, R="reel") for i, b in enumerate(bodies)]
    texts += [texts[0].replace("Reel No", "Again"), tune("bad", "ABc>d>e>| (3AB")]
    names = ("ryan", "oneill", "aird", "german", "chinese", "lorraine", "luxembourg", "fife")
    works = [work(text, names[i], f"w{i}") for i, text in enumerate(texts)]
    monkeypatch.setattr(preprocess, "list_works", lambda folder: works)
    monkeypatch.setattr(labels, "split_of", lambda one, seed: labels.SPLITS[int(one.id[-1]) % 3])
    monkeypatch.setattr(labels, "MAX_SHARE", {"style": 1.0, "instrument": 1.0})
    monkeypatch.setattr(performance, "choose_ensemble", lambda kind, rng: (("fiddle",),))
    report = build(tmp_path, works=None, clip_seconds=4)
    assert report["duplicates"] == {works[6].id: works[0].id}
    assert list(report["unreadable"]) == [works[7].id]
    assert report["failed"] == 1


@pytest.mark.parametrize("changed", ["music21", "symusic", "SoundFont", "front end", "performer"])
def test_what_other_versions_made_does_not_mix(copied, monkeypatch, changed):
    before = results_of(copied)
    monkeypatch.setattr(preprocess, "versions", lambda: VERSIONS | {changed: "newer"})
    with refuses("mismatch", str(copied)) as caught:
        build(copied, works=60)
    assert changed in caught.value.message
    assert results_of(copied) == before


def as_version_0_1(out_dir: Path, **others) -> None:
    """Take away what version 0.1 did not write, and put its versions into the report."""
    with sqlite3.connect(out_dir / "notes.sqlite") as connection:
        connection.execute("DROP TABLE versions")
    connection.close()
    report = read_json(out_dir / "report.json")
    versions = {name: metadata.version(name) for name in ("music21", "symusic", "pretty_midi")}
    report["versions"] = versions | {"reader": 1, "performer": 4} | others
    write_json(out_dir / "report.json", report)


def test_a_build_of_version_0_1_is_kept_with_the_same_libraries(built, copied, caplog):
    as_version_0_1(copied)
    for warnings in (1, 0):
        caplog.clear()
        assert build(copied)["skipped"] == built[1]["done"]
        assert len(caplog.records) == warnings
    assert not differing(built[0], copied)


@pytest.mark.parametrize("has_report", [True, False])
def test_a_build_of_version_0_1_with_other_libraries_is_refused(copied, has_report):
    as_version_0_1(copied, pretty_midi="0.1")
    if not has_report:
        (copied / "report.json").unlink()
    with refuses("mismatch", str(copied)) as caught:
        build(copied)
    assert "pretty_midi" in caught.value.message


def test_a_work_that_hangs_or_crashes_is_counted_and_tried_again_the_next_time(
    built, copied, monkeypatch
):
    """symusic is known to do both."""
    clips = rows(copied / "clips.csv")
    for row in clips[:2]:
        (copied / "melspectrograms" / row["key"]).unlink()

    def arrange(work, score, rng):
        if work.id == clips[0]["work"]:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            signal.pause()

    monkeypatch.setattr(stages, "arrange", arrange)
    limited = functools.partial(parallel.process_map, time_limit=0.5)
    monkeypatch.setattr(parallel, "process_map", limited)
    report = build(copied, num_workers=2)
    assert (report["done"], report["failed"]) == (0, built[1]["failed"] + 2)
    assert {row["key"] for row in clips[:2]} <= report["failed_clips"].keys()
    assert {row["work"] for row in rows(copied / "clips.csv")} == {r["work"] for r in clips[2:]}
    monkeypatch.undo()
    assert build(copied)["done"] == 2
    assert not differing(built[0], copied)


@pytest.mark.parametrize("stage", ["read", "arrange"])
def test_a_full_disk_ends_the_build_and_is_no_fault_of_a_work(built, copied, monkeypatch, stage):
    (copied / "melspectrograms" / rows(copied / "clips.csv")[0]["key"]).unlink()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stages, stage, full)
    with refuses("access", str(copied)):
        build(copied, works=60 if stage == "read" else 48)
    monkeypatch.undo()
    assert build(copied)["done"] == 1
    assert not differing(built[0], copied)


def test_another_build_is_waited_for(copied, monkeypatch):
    lock = FileLock(copied / ".lock")
    lock.acquire()
    monkeypatch.setattr(preprocess.log, "warning", lambda *_: lock.release())
    assert build(copied)["done"] == 0


@pytest.mark.parametrize(
    ("wrong", "kind", "setting"),
    [
        ({"works": 0}, "invalid", "--works"),
        ({"renditions": 0}, "invalid", "--renditions"),
        ({"clip_seconds": float("nan")}, "invalid", "--clip-seconds"),
        ({"num_workers": 0}, "invalid", "--num-workers"),
        ({"codec_share": 1.1}, "invalid", "--codec-share"),
        ({"works": 2}, "empty", "--works"),  # a split would have no clip
    ],
)
def test_settings_that_cannot_be_used_are_refused(wrong, kind, setting, tmp_path):
    with refuses(kind, setting=setting):
        build(tmp_path, **wrong)


def test_works_without_a_label_that_stays_are_too_few(copied, monkeypatch):
    monkeypatch.setattr(labels, "MAX_SHARE", {"style": 0.0})
    with refuses("empty", setting="--works"):
        build(copied)


def test_the_command_says_in_one_line_what_a_user_can_mend(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    assert preprocess.main(["--out-dir", str(tmp_path / "file" / "below")]) == 1
    assert preprocess.main(["--works", "0", "--out-dir", str(tmp_path)]) == 1
    first, last = capsys.readouterr().err.splitlines()
    assert str(tmp_path / "file") in first
    assert "--works" in last
    with pytest.raises(SystemExit):
        preprocess.main(["--works", "x"])
    assert "'x'" in capsys.readouterr().err.splitlines()[-1]

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(preprocess, "list_works", stop)
    assert preprocess.main(["--out-dir", str(tmp_path)]) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1

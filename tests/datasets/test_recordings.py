"""A set of recordings: what is made, resumed, labelled, and which split it goes to."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import teachers
from folders import killed_at, read_json, rows, tree
from made_up import refuses
from music import melody

from maest.datasets import preprocess as mels
from maest.datasets.groundtruth import (
    read_groundtruth,
    read_labels,
    write_groundtruth,
    write_labels,
)
from maest.datasets.melspectrograms import read_mel
from maest.datasets.recordings.preprocess import build, load_teacher, main
from maest.datasets.splitting import SPLITS
from maest.helpers.audio.log_mel import log_mel
from maest.helpers.audio.reading import read_audio

RATE = 16_000
NAN = np.nan


def shifted(heard: np.ndarray) -> np.ndarray:
    """MusiCNN's 0.2 becomes 0.5."""
    odds = heard.astype(np.float64) / (1 - heard.astype(np.float64)) * 4
    return odds / (1 + odds)


def put(path: Path, sound: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, RATE)
    return path


@pytest.fixture
def audio(tmp_path) -> Path:
    """Two sources: 24 tracks in 12 albums, and four in one folder."""
    for i in range(24):
        put(tmp_path / f"audio/many/{i // 2:02d}/{i}.flac", melody(3.2, i))
    for i in range(4):
        put(tmp_path / f"audio/few/{i}.wav", melody(2.6, 100 + i))
    return tmp_path / "audio"


def make(audio: Path, *sources: str, **options):
    options = {"teacher": "stand-in", "load": teachers.load, "num_workers": 1} | options
    options = {"min_positives": 0} | options
    options = {"progress": False, "out_dir": audio.parent / "set", "seed": 1} | options
    return build([audio / source for source in sources or ("many", "few")], **options)


def targets(folder: Path) -> dict[str, tuple[str, np.ndarray]]:
    """key → split and targets."""
    found = {}
    for split in SPLITS:
        truth = read_groundtruth(folder / f"tags/groundtruth-{split}.pk")
        values = truth.targets.astype(np.float32)
        found |= {key: (split, row) for key, row in zip(truth.keys, values, strict=True)}
    return found


def test_a_set_of_two_sources(audio, tmp_path):
    outcome = make(audio, hold_out=["few"])
    out = tmp_path / "set"
    assert (outcome.done, outcome.skipped, outcome.failed) == (28, 0, {})
    found = targets(out)
    assert len(found) == 28
    assert {found[key][0] for key in found if key.startswith("few/")} == {"test"}
    albums = {(key.split("/")[1], found[key][0]) for key in found if key.startswith("many/")}
    assert len(albums) == 12  # whole

    key = "many/03/7.mmap"
    sound = read_audio(audio / "many/03/7.flac")
    assert (out / "melspectrograms" / key).read_bytes() == log_mel(sound).tobytes()
    heard = np.load(out / f"teacher/{key}.npy")
    assert heard.dtype == np.float16
    np.testing.assert_array_equal(heard, teachers.Stand()(sound).astype(np.float16))

    names = read_labels(out / "tags/labels.json")
    assert names == ["Genre---Techno", "Instrument---Guitar"]
    ours = np.load(out / f"windows/{key}.npy")
    np.testing.assert_allclose(ours, shifted(heard[:, [2, 1]]), atol=1e-3)
    np.testing.assert_allclose(found[key][1], ours.astype(np.float64).mean(axis=0), atol=1e-6)
    recipe = read_json(out / "windows/recipe.json")
    assert (recipe["window_seconds"], recipe["labels"]) == (1.0, names)

    table = {row["key"]: row for row in rows(out / "tracks.csv")}
    assert table.keys() == found.keys()
    assert (table[key]["source"], table[key]["split"]) == ("many", found[key][0])
    assert float(table[key]["seconds"]) == pytest.approx(3.2, abs=0.02)
    report = read_json(out / "report.json")
    assert report["tracks"] == Counter(split for split, _ in found.values())
    assert report["sources"]["few"] == {"test": 4}
    assert report["labels_of_teacher"] == names
    assert "mtt/weird" in report["teacher_tags_left_out"]
    assert not (out / "failed.csv").exists()


def test_a_link_gives_a_source_another_name(audio, tmp_path):
    (audio / "linked").symlink_to(audio / "few")
    make(audio, "many", "linked")
    assert {"linked/0.mmap", "linked/3.mmap"} <= targets(tmp_path / "set").keys()


def test_a_second_call_and_labels_alone_change_nothing(audio, tmp_path):
    make(audio)
    before = tree(tmp_path / "set")
    again = make(audio)
    assert (again.done, again.skipped) == (0, 28)
    stay = {name for name in before if name != "report.json"}
    assert {name: tree(tmp_path / "set")[name] for name in stay} == {n: before[n] for n in stay}
    shutil.rmtree(audio)
    make(audio, labels_only=True, load=teachers.load_none)
    assert {name: tree(tmp_path / "set")[name] for name in stay} == {n: before[n] for n in stay}


def test_processes_make_the_same(audio, tmp_path):
    make(audio)
    make(audio, num_workers=2, out_dir=tmp_path / "two")
    one, two = tree(tmp_path / "set"), tree(tmp_path / "two")
    assert one.keys() == two.keys()
    assert {n: one[n] for n in one if "preprocess" not in n} == {
        n: two[n] for n in two if "preprocess" not in n
    }


def test_what_is_missing_is_made_and_what_is_damaged(audio, tmp_path):
    out = tmp_path / "set"
    with killed_at(9, mels, "write_mel"):
        make(audio)
    assert len(list(out.rglob("*.mmap"))) == 9
    outcome = make(audio)
    assert (outcome.done, outcome.skipped) == (19, 9)
    whole = tree(out)
    (out / "teacher/few/0.mmap.npy").unlink()
    (out / "teacher/few/1.mmap.npy").write_bytes(b"")
    assert make(audio).done == 2
    assert tree(out, "*.npy") == {n: whole[n] for n in whole if n.endswith(".npy")}


def test_a_file_that_cannot_be_read_costs_that_file_only(audio, tmp_path):
    (audio / "few/2.wav").write_bytes(b"RIFF")
    outcome = make(audio)
    assert (outcome.done, list(outcome.failed)) == (27, ["few/2.wav"])
    assert [row["path"] for row in rows(tmp_path / "set/failed.csv")] == ["few/2.wav"]
    assert "few/2.mmap" not in targets(tmp_path / "set")
    make(audio, labels_only=True)
    assert (tmp_path / "set/failed.csv").exists()


def test_another_teacher_needs_another_folder(audio):
    make(audio)
    with refuses("mismatch", "teacher/recipe.json"):
        make(audio, load=teachers.load_newer)


def test_the_script_knows_the_teachers_of_models(audio, tmp_path, capsys):
    assert load_teacher("maest-tiny-music").name == "maest-tiny-music"
    out = ["--out-dir", str(tmp_path / "set"), "--num-workers", "1"]
    assert main([str(audio / "many"), "--teacher", "musicn", *out]) == 1
    assert "musicnn" in capsys.readouterr().err


def test_settings_that_do_not_fit(audio, tmp_path):
    for setting, option in (("--hold-out", "hold_out"), ("--no-music", "no_music")):
        with refuses("unknown", setting=setting):
            make(audio, **{option: ["fewer"]})
    put(tmp_path / "other/few/0.wav", melody(2, 0))
    with refuses("conflict", "few", "AUDIO_DIR"):
        make(tmp_path, "audio/few", "other/few")
    with refuses("invalid", setting="--codec-share"):
        make(audio, codec_share=2)
    with refuses("missing", "recipe.json"):
        make(audio, labels_only=True)
    with refuses("empty", setting="--seed"):
        make(audio, "few", hold_out=["few"])


def test_a_call_that_would_drop_a_source_is_refused(audio, tmp_path):
    make(audio)
    before = tree(tmp_path / "set")
    for labels_only in (False, True):
        with refuses("conflict", "melspectrograms", "AUDIO_DIR"):
            make(audio, "few", labels_only=labels_only)
    assert tree(tmp_path / "set") == before
    shutil.rmtree(tmp_path / "set/melspectrograms/few")
    make(audio, "many")
    assert all(key.startswith("many/") for key in targets(tmp_path / "set"))


def test_changed_labels_need_no_teacher(audio, tmp_path):
    make(audio)
    table = tmp_path / "labels.toml"
    table.write_text(
        '[labels]\n"Mood---Odd" = { teacher = ["mtt/weird", "mtt/techno"] }\n', "utf-8"
    )
    outcome = make(audio, labels=table, labels_only=True, load=teachers.load_none)
    assert read_labels(tmp_path / "set/tags/labels.json") == ["Mood---Odd"]
    assert len(outcome.notes) == 1  # of tags that the table does not name
    heard = np.load(tmp_path / "set/teacher/few/0.mmap.npy")
    ours = np.load(tmp_path / "set/windows/few/0.mmap.npy")
    np.testing.assert_array_equal(ours[:, 0], heard[:, 2])


def known_set(folder: Path, prefix: str = "") -> Path:
    """Of the source "few": 0 and 1 to train, one each for the others; guitar known in some."""
    splits = {"train": {"0": [1, NAN], "1": [0, 1]}, "validation": {"2": [NAN, 0]}}
    splits["test"] = {"3": [1, 0]}
    for split, tracks in splits.items():
        truth = {f"{prefix}{key}.mmap": np.array(row) for key, row in tracks.items()}
        write_groundtruth(folder / f"groundtruth-{split}.pk", truth)
    write_labels(folder / "labels.json", ["Instrument---Guitar", "Instrument---Oboe"])
    return folder


@pytest.mark.parametrize("prefix", ["", "few/"])
def test_known_labels_win_and_known_splits_stay(audio, tmp_path, prefix):
    put(audio / "few/4.wav", melody(2, 99))  # in no split
    make(audio, known=[known_set(tmp_path / "known", prefix)])
    out, found = tmp_path / "set", targets(tmp_path / "set")
    names = read_labels(out / "tags/labels.json")
    assert names == ["Genre---Techno", "Instrument---Guitar", "Instrument---Oboe"]
    sides = [found[f"few/{i}.mmap"][0] for i in range(4)]
    assert sides == ["train", "train", "validation", "test"]
    assert "few/4.mmap" in read_json(out / "report.json")["left_out"]
    heard = shifted(np.load(out / "teacher/few/2.mmap.npy")[:, 1]).mean()
    guitar = [found[f"few/{i}.mmap"][1][1] for i in range(4)]
    np.testing.assert_allclose(guitar, [1, 0, heard, 1], atol=1e-3)
    np.testing.assert_array_equal(np.load(out / "windows/few/1.mmap.npy")[:, 1:], [[0, 1]] * 3)
    oboe = [found[f"few/{i}.mmap"][1][2] for i in range(4)]
    assert oboe[1:] == [1, 0, 0]


def test_labels_of_few_tracks_are_left_out(audio, tmp_path):
    make(audio)
    out = tmp_path / "set"
    every, counts = read_labels(out / "tags/labels.json"), read_json(out / "report.json")["labels"]
    positives = {name: counts[name]["train"]["positive"] for name in every}
    assert positives[every[0]] != positives[every[1]]
    make(audio, labels_only=True, min_positives=max(positives.values()))
    kept = [name for name in every if positives[name] == max(positives.values())]
    assert read_labels(out / "tags/labels.json") == kept
    rare = {name: n for name, n in positives.items() if name not in kept}
    assert read_json(out / "report.json")["labels_too_rare"] == rare
    key = next(iter(targets(out)))
    assert np.load(out / f"windows/{key}.npy").shape[1] == len(kept)
    with refuses("empty", setting="--min-positives"):
        make(audio, labels_only=True, min_positives=1000)


def test_a_source_without_music_has_no_label(audio, tmp_path):
    make(audio, no_music=["few"])
    found = targets(tmp_path / "set")
    assert all(not row.any() for key, (_, row) in found.items() if key.startswith("few/"))
    assert any(row.any() for key, (_, row) in found.items() if not key.startswith("few/"))
    assert not np.load(tmp_path / "set/windows/few/1.mmap.npy").any()


def test_known_sets_that_fit_no_source(audio, tmp_path):
    known = known_set(tmp_path / "known", "nowhere/")
    with refuses("missing", "known", "--known"):
        make(audio, known=[known])
    (known / "labels.json").unlink()
    with refuses("missing", "groundtruth-train.pk", "--known"):
        make(audio, known=[known])
    with refuses("missing", "groundtruth-train.pk", "--known"):
        make(audio, known=[tmp_path / "none"])


def test_more_music_moves_no_other(audio, tmp_path):
    make(audio)
    before = targets(tmp_path / "set")
    put(audio / "few/more/4.wav", melody(2.6, 99))
    put(audio / "many/4.wav", melody(2.6, 98))
    make(audio)
    after = targets(tmp_path / "set")
    assert after.keys() - before.keys() == {"few/more/4.mmap", "many/4.mmap"}
    assert all(after[key][0] == before[key][0] for key in before)


def test_duplicates_are_kept_once(audio, tmp_path):
    shutil.copy(audio / "many/00/0.flac", audio / "many/11/copy.flac")
    put(audio / "few/same.wav", soundfile.read(audio / "many/05/10.flac", dtype="float32")[0])
    make(audio, hold_out=["few"])
    report, found = read_json(tmp_path / "set/report.json"), targets(tmp_path / "set")
    expected = {"many/11/copy.mmap": "many/00/0.mmap", "many/05/10.mmap": "few/same.mmap"}
    assert report["duplicates"] == expected
    assert not found.keys() & expected.keys()


def test_what_is_no_music_has_no_near_copies(audio, tmp_path):
    put(audio / "few/long.wav", melody(12, 50))
    put(audio / "many/long/quiet.wav", melody(12, 50) * 0.3)
    make(audio)
    (pair,) = read_json(tmp_path / "set/report.json")["copies"]
    assert pair[:2] == ["few/long.mmap", "many/long/quiet.mmap"]
    make(audio, no_music=["few"])
    assert read_json(tmp_path / "set/report.json")["copies"] == []


def test_a_share_of_the_tracks_goes_through_a_codec(audio, tmp_path):
    make(audio)
    make(audio, out_dir=tmp_path / "coded", codec_share=0.5)
    heard = [tree(tmp_path / folder, "teacher/**/*.npy") for folder in ("set", "coded")]
    assert heard[0] == heard[1]
    plain, coded = (tree(tmp_path / folder, "*.mmap") for folder in ("set", "coded"))
    share = np.mean([plain[key] != coded[key] for key in plain])
    assert 0.2 < share < 0.8
    for key in plain:
        one, other = (read_mel(tmp_path / f / key) for f in ("set", "coded"))
        assert len(one) == len(other)

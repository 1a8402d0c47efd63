"""SoundFonts by name: checking, drawing and playing them, and a build with them."""

import contextlib
import json
import os
import sqlite3
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from folders import read_json, rows, tree
from made_up import refuses
from tiny_soundfont import write_soundfont

from maest.datasets.scores import performance, preprocess, soundfonts, stages
from maest.datasets.scores.performance import Voice
from maest.datasets.scores.soundfonts import SoundFont
from maest.datasets.scores.tables import INSTRUMENTS

EVERY = {instrument.program for instrument in INSTRUMENTS.values()}
FIDDLE, FLUTE = INSTRUMENTS["fiddle"], INSTRUMENTS["flute"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """``dull.sf2`` and ``bright.sf2`` have all instruments, ``fiddle.sf2`` has one."""
    folder = tmp_path_factory.mktemp("soundfonts")
    write_soundfont(folder / "dull.sf2", dict.fromkeys(EVERY, 1))
    write_soundfont(folder / "bright.sf2", dict.fromkeys(EVERY, 8))
    write_soundfont(folder / "fiddle.sf2", {FIDDLE.program: 8})
    return folder


def test_what_a_soundfont_can_play(folder, tmp_path):
    low_only = {FIDDLE.program: 8, INSTRUMENTS["tuba"].program: 8}
    write_soundfont(tmp_path / "low.sf2", low_only, keys=(0, 60))
    paths = [folder / "fiddle.sf2", folder / "dull.sf2", tmp_path / "low.sf2"]
    found = soundfonts.read_soundfonts(paths)
    assert {font.name: font.programs for font in found} == {
        "fiddle": {FIDDLE.program},
        "dull": EVERY,
        "low": {INSTRUMENTS["tuba"].program},  # a fiddle would be silent in its upper range
    }
    assert found == soundfonts.read_soundfonts(paths[::-1])
    assert (
        FIDDLE.program
        not in found[[f.name for f in found].index("fiddle")].facts["programs_missing"]
    )
    assert soundfonts.read_soundfonts([]) == ()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("missing.sf2", "missing"),
        ("text.sf2", "invalid"),
        ("truncated.sf2", "corrupt"),
        ("no-presets.sf2", "corrupt"),
        ("drums.sf2", "unsupported"),
    ],
)
def test_a_soundfont_that_cannot_be_used_is_refused_before_any_work(folder, tmp_path, name, kind):
    whole = (folder / "fiddle.sf2").read_bytes()
    (tmp_path / "text.sf2").write_text("not a SoundFont, but long enough")
    (tmp_path / "truncated.sf2").write_bytes(whole[:-100])
    (tmp_path / "no-presets.sf2").write_bytes(whole.replace(b"phdr", b"none"))
    write_soundfont(tmp_path / "drums.sf2", {120: 8})
    with refuses(kind, name, setting="--soundfont"):
        preprocess.build(tmp_path / "out", soundfonts=[folder / "dull.sf2", tmp_path / name])
    assert not (tmp_path / "out").exists()


def test_a_soundfont_that_crashes_the_library(folder, monkeypatch):
    monkeypatch.setattr(soundfonts, "load", lambda path: os._exit(139))
    with refuses("corrupt", "dull.sf2", setting="--soundfont"):
        soundfonts.read_soundfonts([folder / "dull.sf2"])


def test_two_soundfonts_of_one_name(folder):
    with refuses("conflict", "dull.sf2", setting="--soundfont"):
        soundfonts.read_soundfonts([folder / "dull.sf2", folder / "." / "dull.sf2"])


def test_a_soundfont_of_compressed_samples_sounds_alike(folder, tmp_path):
    write_soundfont(tmp_path / "small.sf3", {FIDDLE.program: 8})
    [font] = soundfonts.read_soundfonts([tmp_path / "small.sf3"])
    assert font.programs == {FIDDLE.program}
    compressed, whole = (
        np.abs(np.fft.rfft(soundfonts.synthesize(path, [note(69, 1.0)])[2000:14_000]))
        for path in (font.path, folder / "fiddle.sf2")
    )
    assert compressed.argmax() == whole.argmax() == round(441 * 12_000 / 16_000)
    assert np.corrcoef(compressed, whole)[0, 1] > 0.99


def test_a_soundfont_is_drawn_among_those_that_have_all_instruments():
    fonts = [
        SoundFont(Path("a.sf2"), "a", frozenset({1, 2})),
        SoundFont(Path("b.sf2"), "b", frozenset({1})),
        SoundFont(Path("c.sf2"), "c", frozenset({1, 2, 3})),
    ]

    def drawn(programs: set[int]) -> set[str]:
        rngs = map(np.random.default_rng, range(30))
        return {soundfonts.draw(fonts, programs, rng).name for rng in rngs}

    assert drawn({1}) == {"a", "b", "c"}
    assert drawn({1, 2}) == {"a", "c"}
    assert drawn({3}) == {"c"}
    with pytest.raises(soundfonts.NoInstrument, match="4"):
        drawn({1, 4})


def note(pitch: float, seconds: float = 0.5, instrument=FIDDLE, start: float = 0.0) -> Voice:
    return Voice(instrument, np.array([[start, seconds, pitch, 90.0]]))


def test_notes_sound_at_their_pitch_and_time_without_aliasing(folder):
    audio = soundfonts.synthesize(folder / "bright.sf2", [note(105, 1.0, start=0.25)])
    assert audio.dtype == np.float32
    assert len(audio) == round((1.25 + performance.RING) * 16_000)
    assert not audio[:3900].any() or np.abs(audio[:3900]).max() < 1e-4
    power = np.abs(np.fft.rfft(audio[6000:18_000] * np.hanning(12_000))) ** 2
    hertz = np.fft.rfftfreq(12_000, 1 / 16_000)
    harmonic = np.minimum(hertz % 3528, -hertz % 3528) < 10  # 441 Hz is pitch 69
    assert power[harmonic & (hertz > 10)].sum() > 0.999 * power.sum()


def test_voices_end_by_themselves_and_leave_nothing_behind(folder):
    path = folder / "bright.sf2"
    long, short = note(69, 1.0), note(69, 0.2, FLUTE)
    both = soundfonts.synthesize(path, [long, short])
    assert np.abs(both[8000:15_000]).max() > 1e-3  # the other's end does not end it
    again = soundfonts.synthesize(path, [long, short])
    assert np.array_equal(both, again)
    assert len(soundfonts.synthesize(path, [])) == 0


def test_the_shortest_note_ends(folder):
    audio = soundfonts.synthesize(folder / "bright.sf2", [note(69, 0.4 / 48_000)])
    assert np.abs(audio).max() > 1e-4
    assert np.abs(audio[8000:]).max() < 1e-4


def test_a_render_beyond_its_time_limit(folder):
    with pytest.raises(soundfonts.TooSlow, match="dull"):
        soundfonts.synthesize(folder / "dull.sf2", [note(69)], time_limit=0.0)


SETTINGS = {"works": None, "clip_seconds": 4.0, "progress": False, "num_workers": 1}


def mels(out_dir: Path) -> dict[str, bytes]:
    return tree(out_dir, "*.mmap")


def build(out_dir: Path, *fonts: Path, **changes) -> dict:
    return preprocess.build(out_dir, soundfonts=fonts, **SETTINGS | changes)


def test_a_build_draws_a_soundfont_for_each_clip(folder, tmp_path, reels):
    fonts = folder / "dull.sf2", folder / "bright.sf2"
    report = build(tmp_path / "a", *fonts, renditions=3, keep_audio=True)
    assert report["done"] == 18
    assert len(list(tmp_path.glob("a/audio/*/*.flac"))) == 18
    clips = rows(tmp_path / "a" / "clips.csv")
    assert list(clips[0])[-1] == "soundfont"
    assert {clip["soundfont"] for clip in clips} == {"dull", "bright"}
    settings = read_json(tmp_path / "a" / "report.json")["settings"]["soundfonts"]
    assert {font["name"]: font["programs_missing"] for font in settings} == {
        "dull": [],
        "bright": [],
    }
    assert all(len(font["sha256"]) == 64 for font in settings)
    assert build(tmp_path / "a", *fonts[::-1], renditions=3)["skipped"] == 18

    # Without names: the same performances, another sound, and no column.
    build(tmp_path / "b", renditions=3)
    named = [{k: v for k, v in clip.items() if k != "soundfont"} for clip in clips]
    assert rows(tmp_path / "b" / "clips.csv") == named
    own, others = mels(tmp_path / "a"), mels(tmp_path / "b")
    assert own.keys() == others.keys()
    assert not any(own[name] == others[name] for name in own)


def test_other_soundfonts_do_not_mix(folder, tmp_path, reels):
    build(tmp_path / "named", folder / "dull.sf2")
    build(tmp_path / "default")
    for name, fonts in (
        ("named", ["bright.sf2"]),
        ("named", ["dull.sf2", "bright.sf2"]),
        ("named", []),
        ("default", ["dull.sf2"]),
    ):
        before = tree(tmp_path / name)
        with refuses("mismatch", name) as caught:
            build(tmp_path / name, *(folder / font for font in fonts))
        assert "SoundFont" in caught.value.message
        assert mels(tmp_path / name).items() <= before.items()


def test_a_build_of_a_version_without_soundfonts_goes_on(tmp_path, reels):
    build(tmp_path)
    older = {"seed": 0, "clip_seconds": 4.0, "performer": stages.PERFORMER_VERSION}
    with contextlib.closing(sqlite3.connect(tmp_path / "notes.sqlite")) as cache, cache:
        recipe = json.dumps(older | {"symusic": version("symusic")})
        cache.execute("UPDATE clips SET recipe = ?", [recipe])
    assert build(tmp_path)["skipped"] == 6


def test_clips_that_no_soundfont_can_play_fail(folder, tmp_path, reels, monkeypatch):
    def ensemble(kind, rng):
        return (("fiddle",),) if rng.random() < 0.7 else (("flute",),)

    monkeypatch.setattr(performance, "choose_ensemble", ensemble)
    report = build(tmp_path, folder / "fiddle.sf2", renditions=4)
    assert 0 < len(report["failed_clips"]) < 24
    assert report["failed"] == len(report["failed_clips"])
    assert all(str(FLUTE.program) in why for why in report["failed_clips"].values())
    assert {clip["instrument"] for clip in rows(tmp_path / "clips.csv")} == {"Violin"}


def test_a_clip_that_takes_too_long_is_listed_and_made_the_next_time(
    folder, tmp_path, reels, monkeypatch
):
    whole, calls = soundfonts.synthesize, iter(range(100))

    def synthesize(path, voices):
        is_clip = len(voices[0].notes) > 1  # no note of the check
        return whole(path, voices, 0.0 if is_clip and next(calls) == 1 else None)

    monkeypatch.setattr(soundfonts, "synthesize", synthesize)
    report = build(tmp_path, folder / "dull.sf2", renditions=3)
    assert (report["done"], report["failed"], len(report["failed_clips"])) == (17, 1, 1)
    assert build(tmp_path, folder / "dull.sf2", renditions=3)["done"] == 1


def test_the_command_plays_several(folder, tmp_path, reels):
    line = f"--soundfont {folder}/dull.sf2 --soundfont {folder}/bright.sf2 --out-dir {tmp_path}"
    line += " --works all --renditions 3 --clip-seconds 4 --num-workers 1"
    assert preprocess.main(line.split()) == 0
    assert {clip["soundfont"] for clip in rows(tmp_path / "clips.csv")} == {"dull", "bright"}

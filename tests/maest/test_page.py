"""The page of `maest tag --page`: its text, and what it does in a browser."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from browser import Browser, browser  # noqa: F401
from PIL import Image
from sounds import sweep, write

from maest import page
from maest.helpers.errors import InputError
from maest.page import PageSummary, PageTrack, write_page

LABELS = ("Genre---Électro", "Genre---Folk", "Mood---Sad", "Voice---Choir")
SCRIPT = "</script><script>alert(1)</script><!-- <b>&amp;"
SECONDS = 20


def track(path: Path, title: str = "A song", tags=((LABELS[0], 0.9), (LABELS[2], 0.2)), **changed):
    rng = np.random.default_rng(0)
    given = {
        "seconds": SECONDS,
        "mel": rng.random((round(SECONDS * 62.5), 96)).astype(np.float16),
        "times": np.array([2.5, 7.5, 12.5, 17.5]),
        "values": np.array([[0.9, 0, 0.2, 0.1]] * 3 + [[0.9, 0, 0.2, 0.8]]),
        "labels": LABELS,
    }
    return PageTrack(path, title, tags=tags, **given | changed)


def elements(path: Path, name: str) -> list[Any]:
    """The JSON of a page's elements."""
    pattern = rf'<script type="application/json" class="{name}">(.*)</script>'
    return [json.loads(text) for text in re.findall(pattern, path.read_text("utf-8"))]


# ---- the file -------------------------------------------------------------------------------


def test_a_page_holds_its_tracks(tmp_path):
    tracks = [track(tmp_path / "a/b.mp3"), track(tmp_path / "c.mp3", "Another")]
    assert write_page(tmp_path / "page.html", iter(tracks), "Mine") == PageSummary(2, 0)
    first, second = elements(tmp_path / "page.html", "track")
    assert first["title"] == "A song"
    assert first["path"] == first["link"] == "a/b.mp3"
    assert first["tags"] == [[LABELS[0], 0.9], [LABELS[2], 0.2]]
    assert second["title"] == "Another"


def test_the_heat_map_has_the_tags_then_the_highest_peaks(tmp_path):
    write_page(tmp_path / "page.html", [track(tmp_path / "a.mp3")], "Mine")
    (picture,) = elements(tmp_path / "page.html", "picture")
    assert picture["rows"] == [LABELS[0], LABELS[2], LABELS[3], LABELS[1]]
    assert picture["times"] == [2.5, 7.5, 12.5, 17.5]
    heat = np.frombuffer(base64.b64decode(picture["heat"]), np.uint8).reshape(4, 4)
    assert heat[:, 3].tolist() == [230, 51, 204, 0]


def test_the_picture_shows_low_bands_below(tmp_path):
    mel = np.zeros((500, 96), np.float16)
    mel[:, :20] = 3
    write_page(tmp_path / "page.html", [track(tmp_path / "a.mp3", mel=mel)], "Mine")
    (picture,) = elements(tmp_path / "page.html", "picture")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture["mel"]))).convert("L"))
    assert image.shape == (96, 500)
    assert image[-15:].min() > 240
    assert image[:70].max() < 15


@pytest.mark.parametrize("folder", ["a", "日本" * 40 + "/" + "日本" * 40])
def test_a_track_takes_at_most_30_kb(tmp_path, folder):
    """An hour of noise, 400 labels and 5000 windows, which compress worst."""
    rng = np.random.default_rng(0)
    labels = [f"Genre---A style of music, number {i}" for i in range(400)]
    long = track(
        tmp_path / folder / "a.mp3",
        mel=rng.random((225_000, 96), np.float32).astype(np.float16),
        seconds=3600,
        times=np.linspace(1, 3599, 5000),
        values=rng.random((5000, 400), np.float32),
        labels=labels,
        tags=[(label, 0.5) for label in labels[:20]],
    )
    sizes = []
    for tracks in ([], [long]):
        write_page(tmp_path / "page.html", tracks, "Mine")
        sizes.append((tmp_path / "page.html").stat().st_size)
    assert sizes[1] - sizes[0] <= page.BYTES_A_TRACK
    (picture,) = elements(tmp_path / "page.html", "picture")
    assert picture["mel"]
    assert len(picture["times"]) == 200
    assert len(picture["rows"]) == 12


def test_no_windows_no_heat_map(tmp_path):
    empty = track(tmp_path / "a.mp3", times=np.zeros(0), values=np.zeros((0, 4)))
    write_page(tmp_path / "page.html", [empty], "Mine")
    (picture,) = elements(tmp_path / "page.html", "picture")
    assert picture["times"] == []
    assert picture["heat"] == ""


def test_titles_and_tags_are_escaped(tmp_path):
    plain, odd = tmp_path / "plain.html", tmp_path / "odd.html"
    write_page(plain, [track(tmp_path / "a.mp3")], "Mine")
    tags = [(SCRIPT, 0.5), ("Mood---\ud800", 0.5)]
    write_page(odd, [track(tmp_path / "a.mp3", SCRIPT, tags)], SCRIPT)
    assert odd.read_text("utf-8").count("<script") == plain.read_text("utf-8").count("<script")
    (shown,) = elements(odd, "track")
    assert shown["title"] == shown["tags"][0][0] == SCRIPT
    assert shown["tags"][1][0] == "Mood---\\ud800"


@pytest.mark.parametrize(
    "name",
    [b"a b/c.mp3", b"50%?#1.mp3", "ü.mp3".encode(), b"caf\xe9.mp3", b"a:b.mp3", b"\"<&'.mp3"],
)
def test_links_are_percent_encoded_and_relative_to_the_page(tmp_path, name):
    song = tmp_path / "my music" / os.fsdecode(name)
    write_page(tmp_path / "pages/page.html", [track(song)], "Mine")
    (shown,) = elements(tmp_path / "pages/page.html", "track")
    assert unquote_to_bytes(shown["link"]) == b"../my music/" + name
    assert re.fullmatch(r"[\w%./~-]+", shown["link"], re.ASCII)
    assert shown["path"].startswith("my music/")


def test_audio_is_embedded_while_there_is_room(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "EMBEDDED_BYTES", 25)
    names = ["a.mp3", "larger.mp3", "b.mp3", "missing.mp3"]
    for name, size in zip(names[:3], (10, 20, 15), strict=True):
        (tmp_path / name).write_bytes(bytes(size))
    tracks = [track(tmp_path / name) for name in names]
    assert write_page(tmp_path / "page.html", tracks, "Mine", True) == PageSummary(4, 2)
    shown = elements(tmp_path / "page.html", "track")
    assert [one.get("audio") for one in shown] == ["audio/mpeg", None, "audio/mpeg", None]


def test_another_file_stays(tmp_path):
    song = tmp_path / "song.mp3"
    song.write_bytes(b"music")

    def no_tracks():
        raise AssertionError
        yield

    with pytest.raises(InputError) as error:
        write_page(song, no_tracks(), "Mine")
    assert error.value.kind == "exists"
    assert error.value.path == song
    assert song.read_bytes() == b"music"


def test_a_page_is_replaced_when_it_is_whole(tmp_path):
    path = tmp_path / "page.html"
    write_page(path, [track(tmp_path / "a.mp3", "Before")], "Mine")

    def failing():
        yield track(tmp_path / "a.mp3", "After")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_page(path, failing(), "Mine")
    assert [one["title"] for one in elements(path, "track")] == ["Before"]
    write_page(path, [track(tmp_path / "a.mp3", "After")], "Mine")
    assert [one["title"] for one in elements(path, "track")] == ["After"]
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_folder_is_no_place_for_a_page(tmp_path):
    with pytest.raises(InputError) as error:
        write_page(tmp_path, [], "Mine")
    assert error.value.kind == "access"
    assert error.value.path == tmp_path


# ---- in a browser ---------------------------------------------------------------------------


@pytest.fixture(params=["linked", "embedded"])
def opened(browser: Browser, tmp_path, request) -> Browser:  # noqa: F811
    return show(browser, tmp_path, request.param == "embedded")


@pytest.fixture
def linked(browser: Browser, tmp_path) -> Browser:  # noqa: F811
    return show(browser, tmp_path)


def show(browser: Browser, folder: Path, embed_audio: bool = False) -> Browser:  # noqa: F811
    """Open a page of three songs whose names are hard; the second's title is a script."""
    names = [b"1 #?%.wav", "zwei ü.wav".encode(), b"3 \xe9.wav"]
    songs = [folder / "my music" / os.fsdecode(name) for name in names]
    songs[0].parent.mkdir()
    sound = write(folder / "song.wav", sweep(SECONDS, 8000, 1), 8000)
    for song in songs:
        song.write_bytes(sound)
    tracks = [
        track(songs[0], "First", [(LABELS[0], 0.5), (LABELS[3], 0.1)]),
        track(songs[1], SCRIPT, [(LABELS[3], 0.7)]),
        track(songs[2], "Another", [(LABELS[2], 0.9), (LABELS[0], 0.6)], seconds=10.0),
    ]
    write_page(folder / "page.html", tracks, SCRIPT, embed_audio)
    if embed_audio:
        for song in songs:
            song.unlink()
    browser.errors()
    browser.open(folder / "page.html")
    return browser


def titles(opened: Browser) -> list[str]:
    return opened.texts("li .title")


def wait_for(opened: Browser, condition: str) -> None:
    """Wait until a condition holds, as asked at each frame."""
    opened.run(
        f"new Promise(r => {{ (function ask() {{ {condition} ? r() : setTimeout(ask, 20) }})() }})"
    )


def cursor(opened: Browser) -> float:
    """Where the cursor stands, in percent."""
    return opened.run("parseFloat(find('.cursor').style.left)")


def test_it_loads_and_survives_a_title_that_is_a_script(linked):
    assert titles(linked) == ["First", SCRIPT, "Another"]
    assert linked.run("document.title") == SCRIPT
    assert linked.texts("h1") == [SCRIPT]
    assert linked.texts("#groups span") == ["Genre", "Voice", "Mood"]
    assert linked.errors() == []


def test_a_click_in_the_picture_seeks(opened):
    opened.click("li:nth-child(3) .open")
    wait_for(opened, "audio.readyState")
    opened.click(".seek", across=0.76)
    assert opened.run("audio.currentTime") == pytest.approx(7.6, abs=0.1)
    assert cursor(opened) == pytest.approx(76, abs=1)
    assert opened.run("find('.seek').ariaValueText") == "0:07 of 0:10"
    values = opened.texts(".heat .name"), opened.texts(".heat output")
    assert dict(zip(*values, strict=True))["Choir"] == "10%"
    assert opened.errors() == []


def test_the_cursor_follows_the_music(opened):
    opened.click("li:nth-child(1) .play")
    wait_for(opened, "parseFloat(find('.cursor').style.left) > 1")
    assert opened.run("find('.opened .play').ariaLabel") == "Pause First"
    opened.click(".opened .play")
    assert opened.run("audio.paused")
    wait_for(opened, "find('.opened .play').ariaLabel === 'Play First'")
    assert cursor(opened) == pytest.approx(opened.run("audio.currentTime") * 100 / SECONDS, abs=2)
    assert opened.errors() == []


def test_pictures_are_drawn_when_opened(linked):
    def pixel(canvas, x, y):
        place = f"getContext('2d').getImageData({x}, {y}, 1, 1).data"
        return linked.run(f"[...find({canvas!r}).{place}]")

    assert linked.run("document.querySelectorAll('canvas').length") == 0
    linked.click("li:nth-child(2) .open")
    linked.run("draw()")
    light = pixel(".mel", 500, 90)
    assert light[3] == 255
    assert linked.errors() == []  # before Chromium warns of reading pixels, as only tests do here
    linked.colours("dark")
    linked.run("draw()")
    assert pixel(".mel", 500, 90) != light
    assert linked.texts(".heat .name") == ["Choir", "Électro", "Folk", "Sad"]
    # of Choir, which begins in the last of four windows
    assert [pixel(".heat canvas", x, 0)[3] for x in (5, 890, 910)] == [26, 26, 204]
    linked.click("li:nth-child(2) .open")
    assert linked.run("document.querySelectorAll('canvas').length") == 0


def test_it_sorts(linked):
    def sort_by(value):
        linked.run(f"void (sort.value = {value!r}, sort.onchange())")
        return titles(linked)

    assert sort_by("title") == [SCRIPT, "Another", "First"]
    assert sort_by("seconds")[0] == "Another"
    assert sort_by("tag:" + LABELS[0]) == ["Another", "First", SCRIPT]
    assert linked.texts("[aria-pressed=true]") == ["Électro", "Électro"]
    linked.click("li:nth-child(3) .tags button")  # Choir
    assert titles(linked) == [SCRIPT, "First", "Another"]
    linked.click("li:nth-child(1) .tags button")
    assert titles(linked) == ["First", SCRIPT, "Another"]


def test_it_finds(linked):
    linked.press("/")
    linked.press(*"electro")
    assert titles(linked) == ["First", "Another"]
    linked.press(*" sad")
    assert titles(linked) == ["Another"]
    linked.press(*"x")
    assert titles(linked) == []
    linked.click("#none button")
    assert len(titles(linked)) == 3
    linked.press(*"zwei")
    assert titles(linked) == [SCRIPT]


def test_it_is_played_by_keyboard(linked):
    linked.press("Down", "Down", "Enter")
    assert linked.run("opened.title") == SCRIPT
    linked.press("Right", "Right", "Left")
    assert linked.run("position") == 5
    linked.press(" ")
    wait_for(linked, "position > 5.1")
    linked.press(" ")
    assert linked.run("audio.paused")
    linked.press("Enter")
    assert linked.run("opened") is None
    linked.press("Up")
    assert linked.run("document.activeElement.textContent").strip().startswith("First")


def test_the_next_track_follows(linked):
    linked.click("li:nth-child(1) .play")
    linked.run("void audio.onended()")
    assert linked.run("opened.title") == SCRIPT


def test_music_that_is_gone_is_told(linked, tmp_path):
    for song in (tmp_path / "my music").iterdir():
        song.unlink()
    linked.click("li:nth-child(1) .open")
    wait_for(linked, "!find('.problem').hidden")
    linked.click(".seek", across=0.25)
    assert linked.run("position") == pytest.approx(SECONDS / 4, abs=0.2)


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_it_fits_the_screen(browser, tmp_path, width):  # noqa: F811
    show(browser, tmp_path)
    browser.open(tmp_path / "page.html", width, 800)
    browser.click("li:nth-child(1) .open")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.run("find('.seek').clientWidth") > width / 2

"""Large downloads: they resume where they stopped, and leave whole files only."""

import hashlib
import shutil
import sys
import time
from collections import namedtuple

import numpy as np
import pytest
from folders import full_disk
from http_server import Reply
from made_up import refuses

from maest.helpers.files import download as module
from maest.helpers.files.download import download

CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(250_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = "file.001"


@pytest.fixture
def serve(http_server):
    """What the file's address answers from now on."""

    def serve(content: bytes = CONTENT, **options) -> None:
        http_server.replies[NAME] = Reply(content, **options)
        http_server.requests.clear()

    serve()
    return serve


@pytest.fixture
def ranges(http_server):
    """The Range of each request since the last `serve`."""
    return lambda: [wanted for _, wanted in http_server.requests]


@pytest.fixture
def fetch(serve, http_server, tmp_path, monkeypatch):
    """Download the file with options; its content."""

    def fetch(tries: int = 6, **options) -> bytes:
        monkeypatch.setattr(module, "TRIES", tries)
        return download(f"{http_server.url}/{NAME}", tmp_path / "in" / NAME, **options).read_bytes()

    return fetch


@pytest.fixture
def left(tmp_path):
    """The sizes of the files in the folder."""
    return lambda: {path.name: path.stat().st_size for path in (tmp_path / "in").iterdir()}


def disk_with(monkeypatch, free: int) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10, 10, free))


def test_a_file_comes_whole_and_once(fetch, ranges, left):
    assert fetch() == fetch() == CONTENT
    assert ranges() == [None]
    assert left() == {NAME: 300_000}


@pytest.mark.parametrize(
    ("options", "expected", "asked"),
    [
        ({"drops": [100_000, 50_000, 70_000]}, CONTENT, [None, 100_000, 150_000, 220_000]),
        ({"drops": [100_000], "statuses": [200, 503, 503]}, CONTENT, [None, *[100_000] * 3]),
        ({"statuses": [429, 500]}, CONTENT, [None] * 3),
        ({"drops": [100_000], "ranges": False}, CONTENT, [None, 100_000]),
        ({"drops": [100_000], "etags": None}, CONTENT, [None] * 2),
        (
            {"drops": [100_000], "etags": ['W/"weak"'], "dated": "Sat, 01 Jan 2022 00:00:00 GMT"},
            CONTENT,
            [None, 100_000],
        ),
        # another version by now: the server says so, or its tag, or its length
        ({"drops": [100_000], "etags": '"1"', "later": OTHER}, OTHER, [None, 100_000]),
        (
            {"drops": [100_000], "etags": ['"1"', '"2"'], "later": OTHER, "if_range": False},
            OTHER,
            [None, 100_000, None],
        ),
        (
            {"drops": [9], "etags": ['"1"', '"2"'], "later": CONTENT[::-1], "if_range": False},
            CONTENT[::-1],
            [None, 9, None],
        ),
        ({"drops": [280_000], "later": OTHER, "if_range": False}, OTHER, [None, 280_000, None]),
    ],
)
def test_bad_connections_make_no_difference(serve, fetch, ranges, left, options, expected, asked):
    serve(**options)
    assert fetch() == expected
    assert ranges() == [start and f"bytes={start}-" for start in asked]
    assert left() == {NAME: len(expected)}


def test_many_drops_are_no_failure_as_long_as_it_goes_on(serve, fetch):
    serve(drops=[10_000] * 25)
    assert fetch(tries=2) == CONTENT


def test_a_server_that_packs_what_was_not_to_be(serve, fetch):
    content = bytes(400_000) + CONTENT
    serve(content, packed=True, drops=[90_000])
    assert fetch() == content


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(serve, fetch, ranges, left):
    serve(drops=[120_000, *[0] * 3])
    with refuses("network", NAME):
        fetch(tries=3)
    assert left()[f"{NAME}.part"] == 120_000
    serve(b"<html>please log in</html>", ranges=False, kind="text/html; charset=utf-8")
    with refuses("network", NAME):
        fetch()
    serve()
    assert fetch() == CONTENT
    assert ranges() == ["bytes=120000-"]


def test_a_complete_part_left_by_a_kill_is_used(serve, fetch, ranges, tmp_path):
    """The part is complete, and has not been renamed yet."""
    serve(drops=[120_000, 0])
    with refuses("network", NAME):
        fetch(tries=1)
    (tmp_path / "in" / f"{NAME}.part").write_bytes(CONTENT)
    serve()
    assert fetch() == CONTENT
    assert not ranges()


def test_a_part_of_another_address_is_not_used(serve, fetch, http_server, tmp_path):
    serve(drops=[100_000, 0])
    with refuses("network", NAME):
        fetch(tries=1)
    http_server.replies["other"] = Reply(OTHER)
    assert download(f"{http_server.url}/other", tmp_path / "in" / NAME).read_bytes() == OTHER


def test_fetched_again_the_old_one_stays_until_the_new_one_is_whole(serve, fetch, left):
    fetch()
    serve(OTHER, drops=[1000, *[0] * 2], etags=['"two"'])
    with refuses("network", NAME):
        fetch(again=True, tries=2)
    assert left()[NAME] == 300_000
    assert fetch(again=True) == OTHER


@pytest.mark.parametrize("url", ["example.org/file.001", "gopher://example.org/f", "http://"])
def test_an_invalid_address_is_refused_at_once(tmp_path, monkeypatch, url):
    monkeypatch.setattr(time, "sleep", lambda _seconds: pytest.fail("waits"))
    with refuses("invalid", url):
        download(url, tmp_path / NAME)


@pytest.mark.parametrize(
    "options",
    [
        *({"status": status} for status in (401, 403, 404, 410)),
        {"length": None, "drops": [1000]},  # a broken connection would look like the file's end
        {"content": b"<html>", "kind": "text/html"},
    ],
)
def test_a_permanent_error_is_not_retried(serve, fetch, ranges, left, options):
    serve(**options)
    with refuses("network", NAME):
        fetch()
    assert len(ranges()) == 1
    assert left() == {}


@pytest.mark.parametrize(
    ("options", "requests"),
    [
        ({"status": 503}, 4),
        # It begins again each time; now a little more comes, now a little less.
        ({"drops": [90_000, 80_000] * 50, "ranges": False}, 5),
        ({"drops": [9] * 50, "etags": [f'"{i}"' for i in range(50)], "if_range": False}, 8),
        ({"length": len(CONTENT) + 10}, 8),
    ],
)
def test_a_server_that_never_gets_further_is_given_up(
    serve, fetch, ranges, left, options, requests
):
    serve(**options)
    with refuses("network", NAME):
        fetch(tries=4)
    assert len(ranges()) <= requests
    assert NAME not in left()


def test_nobody_there(fetch, http_server):
    http_server.close()
    with refuses("network", NAME):
        fetch(tries=2)


def test_another_content_than_is_known_is_refused(serve, fetch, left):
    assert fetch(sha256=SHA256) == CONTENT
    serve(OTHER)
    with refuses("network", NAME):
        fetch(sha256=SHA256, again=True)
    assert left()[NAME] == 300_000
    serve(length=None, drops=[1000])  # the checksum shows where the file ends
    assert fetch(sha256=SHA256, again=True) == CONTENT
    assert left() == {NAME: 300_000}


def test_free_space_is_needed_for_the_rest_only(serve, fetch, ranges, monkeypatch):
    disk_with(monkeypatch, 299_999)
    with refuses("access", "in"):
        fetch()
    serve(drops=[200_000, 0])
    disk_with(monkeypatch, 300_000)
    with refuses("network", NAME):
        fetch(tries=1)
    disk_with(monkeypatch, 100_000)
    assert fetch() == CONTENT


def test_a_full_disk(serve, fetch, ranges, left):
    """The downloaded part is kept, and resumed when there is room."""
    with full_disk(100_000), refuses("access", f"{NAME}.part"):
        fetch()
    assert left()[f"{NAME}.part"] == 100_000
    assert fetch() == CONTENT
    assert ranges()[-1] == "bytes=100000-"


def test_progress_is_shown_to_a_terminal(serve, fetch, monkeypatch, capsys):
    fetch()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    serve(drops=[100_000])
    fetch(again=True)
    assert f"{NAME}: 100%" in capsys.readouterr().err

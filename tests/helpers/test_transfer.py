"""Large downloads: they go on where they stopped, and are whole or not there."""

from __future__ import annotations

import hashlib
import resource
import shutil
import sys
import time
from collections import namedtuple

import numpy as np
import pytest
from miniature_mtt import Reply, Server, no_waiting  # noqa: F401

from maest.helpers.errors import InputError
from maest.helpers.files import download as transfer
from maest.helpers.files.download import download

CONTENT = np.random.default_rng(0).bytes(300_000)
OTHER = np.random.default_rng(1).bytes(250_000)


@pytest.fixture
def server():
    with Server({"file.001": CONTENT}) as server:
        yield server


@pytest.fixture
def fetch(server, tmp_path, monkeypatch):
    """Download the file with options; its content."""

    def fetch(tries: int = 6, **options) -> bytes:
        monkeypatch.setattr(transfer, "TRIES", tries)
        return download(
            f"{server.url}/file.001", tmp_path / "in" / "file.001", **options
        ).read_bytes()

    return fetch


def serve(server: Server, content: bytes = CONTENT, **options) -> Reply:
    server.replies["file.001"] = Reply(content, **options)
    return server.replies["file.001"]


def left(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "in").iterdir())


def test_a_web_page_instead_of_the_rest_loses_nothing(server, fetch, tmp_path):
    serve(server, drops=[200_000], ranges=True).statuses = [200, 404]
    with pytest.raises(InputError):
        fetch()
    serve(server, b"<html>please log in</html>", ranges=False, kind="text/html; charset=utf-8")
    with pytest.raises(InputError) as error:
        fetch()
    assert (error.value.kind, error.value.path) == ("network", f"{server.url}/file.001")
    assert (tmp_path / "in" / "file.001.part").stat().st_size == 200_000
    serve(server, kind="application/octet-stream")
    server.requests.clear()
    assert fetch() == CONTENT
    assert server.requests == [("file.001", "bytes=200000-")]


@pytest.mark.parametrize("url", ["example.org/file.001", "gopher://example.org/f", "http://"])
def test_what_is_no_address_is_told_at_once(tmp_path, monkeypatch, url):
    monkeypatch.setattr(time, "sleep", lambda _seconds: pytest.fail("waits"))
    with pytest.raises(InputError) as error:
        download(url, tmp_path / "file.001")
    assert (error.value.kind, error.value.path) == ("invalid", url)


def test_a_file_comes_whole_and_once(server, fetch, tmp_path):
    assert fetch() == CONTENT
    assert left(tmp_path) == ["file.001"]
    assert fetch() == fetch() == CONTENT
    assert server.requests == [("file.001", None)]


def test_a_dropped_connection_costs_no_byte_twice(server, fetch, tmp_path):
    serve(server, drops=[100_000, 50_000, 70_000])
    assert fetch() == CONTENT
    ranges = [wanted for _, wanted in server.requests]
    assert ranges == [None, "bytes=100000-", "bytes=150000-", "bytes=220000-"]
    assert left(tmp_path) == ["file.001"]


def test_many_drops_are_no_failure_as_long_as_it_goes_on(server, fetch):
    serve(server, drops=[10_000] * 25)
    assert fetch(tries=2) == CONTENT


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(server, fetch, tmp_path):
    serve(server, drops=[120_000, *[0] * 3])
    with pytest.raises(InputError, match="120000 bytes") as error:
        fetch(tries=3)
    assert error.value.kind == "network"
    assert left(tmp_path) == ["file.001.part", "file.001.part.json"]
    server.requests.clear()
    assert fetch() == CONTENT
    assert server.requests == [("file.001", "bytes=120000-")]


def test_what_came_just_before_a_kill_is_used(server, fetch, tmp_path):
    """All of it was there, and had not got its name."""
    serve(server, drops=[120_000, 0])
    with pytest.raises(InputError):
        fetch(tries=1)
    (tmp_path / "in" / "file.001.part").write_bytes(CONTENT)
    server.requests.clear()
    assert fetch() == CONTENT
    assert not server.requests


def test_a_server_that_ignores_ranges_gives_it_whole(server, fetch):
    serve(server, drops=[100_000], ranges=False)
    assert fetch() == CONTENT
    assert server.requests == [("file.001", None), ("file.001", "bytes=100000-")]


def test_a_server_that_never_gets_further_is_given_up(server, fetch):
    """It begins again each time; now a little more comes, now a little less."""
    serve(server, drops=[90_000, 80_000] * 50, ranges=False)
    with pytest.raises(InputError):
        fetch(tries=4)
    assert len(server.requests) == 5


@pytest.mark.parametrize("if_range", [True, False], ids=["told", "found out"])
def test_another_version_is_not_joined_to_the_first(server, fetch, if_range):
    serve(server, drops=[100_000], etags=['"one"', '"two"'], later=OTHER, if_range=if_range)
    assert fetch() == OTHER
    assert len(server.requests) == (2 if if_range else 3)


def test_another_version_of_the_same_size_is_told_by_its_tag(server, fetch):
    later = OTHER + CONTENT[len(OTHER) :]
    serve(server, drops=[100_000], etags=['"one"', '"two"'], later=later, if_range=False)
    assert fetch() == later


def test_a_tag_that_changes_each_time_is_no_reason_to_go_on_forever(server, fetch):
    serve(server, drops=[100_000] * 50, etags=[f'"{i}"' for i in range(50)], if_range=False)
    with pytest.raises(InputError):
        fetch(tries=3)
    assert len(server.requests) < 10


def test_a_date_tells_versions_too(server, fetch):
    serve(server, drops=[100_000], etags=['W/"weak"'], dated="Sat, 01 Jan 2022 00:00:00 GMT")
    assert fetch() == CONTENT
    assert server.requests[-1] == ("file.001", "bytes=100000-")


def test_without_tag_and_date_it_begins_again(server, fetch):
    serve(server, drops=[100_000], etags=None)
    assert fetch() == CONTENT
    assert server.requests == [("file.001", None)] * 2


def test_a_part_of_another_address_is_not_used(server, fetch, tmp_path):
    serve(server, drops=[100_000, 0])
    with pytest.raises(InputError):
        fetch(tries=1)
    server.replies["other"] = Reply(OTHER)
    path = tmp_path / "in" / "file.001"
    assert download(f"{server.url}/other", path).read_bytes() == OTHER


def test_a_file_that_became_shorter_is_fetched_from_its_start(server, fetch):
    serve(server, drops=[280_000], later=OTHER, if_range=False)
    assert fetch() == OTHER


# ---- sizes ---------------------------------------------------------------------------------------


def test_a_server_that_promises_more_than_it_has(server, fetch, tmp_path):
    serve(server, length=len(CONTENT) + 10)
    with pytest.raises(InputError):
        fetch(tries=3)
    assert not (tmp_path / "in" / "file.001").exists()
    assert len(server.requests) < 8
    serve(server)
    assert fetch() == CONTENT


SHA256 = hashlib.sha256(CONTENT).hexdigest()


def test_a_server_that_does_not_say_how_much(server, fetch, tmp_path):
    """What is known of the file tells where it ends; else a broken connection would."""
    serve(server, length=None, drops=[1000])
    with pytest.raises(InputError):
        fetch()
    assert left(tmp_path) == []
    assert fetch(sha256=SHA256) == CONTENT


def test_a_short_answer_without_a_length_is_no_file(server, fetch, tmp_path):
    serve(server, length=None, drops=[1000] * 9)
    for known in ({}, {"sha256": SHA256}):
        with pytest.raises(InputError):
            fetch(tries=2, **known)
        assert not (tmp_path / "in" / "file.001").exists()


def test_another_content_than_is_known_is_refused(server, fetch, tmp_path):
    assert fetch(sha256=SHA256) == CONTENT
    serve(server, OTHER)
    with pytest.raises(InputError, match=SHA256) as error:
        fetch(sha256=SHA256, again=True)
    assert (error.value.kind, error.value.path) == ("network", f"{server.url}/file.001")
    assert (tmp_path / "in" / "file.001").read_bytes() == CONTENT
    serve(server)
    assert fetch(sha256=SHA256, again=True) == CONTENT
    assert left(tmp_path) == ["file.001"]


def test_a_server_that_packs_what_was_not_to_be(server, fetch):
    content = bytes(400_000) + CONTENT
    serve(server, content, packed=True, drops=[90_000])
    assert fetch() == content


def test_fetched_again_the_old_one_stays_until_the_new_one_is_whole(server, fetch, tmp_path):
    fetch()
    serve(server, OTHER, drops=[1000, *[0] * 2], etags=['"two"'])
    with pytest.raises(InputError):
        fetch(again=True, tries=2)
    assert (tmp_path / "in" / "file.001").read_bytes() == CONTENT
    assert fetch(again=True) == OTHER


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_told_at_once(server, fetch, tmp_path, status):
    serve(server, status=status)
    with pytest.raises(InputError) as caught:
        fetch()
    assert (caught.value.kind, caught.value.path) == ("network", f"{server.url}/file.001")
    assert str(status) in caught.value.message
    assert str(tmp_path / "in" / "file.001") in caught.value.hint
    assert len(server.requests) == 1
    assert left(tmp_path) == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_at_its_limit_is_asked_again(server, fetch, status):
    serve(server, statuses=[status, status])
    assert fetch() == CONTENT
    assert len(server.requests) == 3
    serve(server, status=status)
    with pytest.raises(InputError, match=str(status)):
        fetch(again=True)


def test_trouble_in_the_middle_loses_nothing(server, fetch):
    serve(server, statuses=[200, 503, 503], drops=[100_000])
    assert fetch() == CONTENT
    assert server.requests[-1] == ("file.001", "bytes=100000-")


def test_nobody_there(fetch, server):
    server.close()
    with pytest.raises(InputError) as error:
        fetch(tries=2)
    assert error.value.kind == "network"


def test_no_room_is_told_before_anything_comes(server, fetch, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10, 10, 1234))
    with pytest.raises(InputError, match=r"\b300000\b.*\b1234\b") as error:
        fetch()
    assert error.value.kind == "access"
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10, 10, 300_000))
    assert fetch() == CONTENT


def test_room_is_needed_only_for_the_rest(server, fetch, monkeypatch):
    serve(server, drops=[200_000, 0])
    with pytest.raises(InputError):
        fetch(tries=1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10, 10, 100_000))
    assert fetch() == CONTENT


def test_a_disk_that_takes_no_more(server, fetch, tmp_path):
    """What it took is kept, and used when there is room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InputError) as error:
            fetch()
        assert (error.value.kind, error.value.path) == (
            "access",
            tmp_path / "in" / "file.001.part",
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "in" / "file.001.part").read_bytes() == CONTENT[:100_000]
    assert fetch() == CONTENT
    assert server.requests[-1] == ("file.001", "bytes=100000-")


def test_progress_is_shown_to_a_terminal(server, fetch, monkeypatch, capsys):
    fetch()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    serve(server, drops=[100_000])
    fetch(again=True)
    shown = capsys.readouterr().err
    assert "file.001: 100%" in shown
    assert "300k/300k" in shown

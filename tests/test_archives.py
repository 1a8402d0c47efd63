"""Archives in parts: read as one, unpacked part by part, whatever is wrong with them."""

from __future__ import annotations

import errno
import io
import os
import shutil
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from miniature_mtt import in_parts

from datasets import archives as module
from datasets.archives import (
    ArchiveError,
    Parts,
    in_order,
    known_absent,
    lacking_parts,
    unpack,
)

FILES = {f"{i % 4}/{i:02d}.mp3": np.random.default_rng(i).bytes(500 + 40 * i) for i in range(24)}
QUIET = {"progress": False}


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", method) as file:
        for name, content in files.items():
            file.writestr(zipfile.ZipInfo(name), content, method)
    return whole.getvalue()


def write_parts(folder: Path, archive: bytes) -> list[Path]:
    folder.mkdir(exist_ok=True)
    parts = [folder / f"all.zip.00{i}" for i in (1, 2, 3)]
    for path, content in zip(parts, in_parts(archive), strict=True):
        path.write_bytes(content)
    return parts


@pytest.fixture
def parts(tmp_path) -> list[Path]:
    return write_parts(tmp_path / "in", zipped(FILES))


@pytest.fixture
def unpacked(parts, tmp_path):
    """Unpack them with options."""
    archive = tmp_path / "in" / "all.zip"

    def unpacked(**options) -> module.Unpacked:
        return unpack(archive, parts, tmp_path / "out", **QUIET, **options)

    unpacked.archive = archive
    return unpacked


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def there(parts: list[Path]) -> list[int]:
    """The numbers of the parts that are there."""
    return [i for i, path in enumerate(parts, 1) if path.exists()]


def offset(name: str) -> int:
    """Where the bytes of a file begin in the archive."""
    with zipfile.ZipFile(io.BytesIO(zipped(FILES))) as whole:
        return whole.getinfo(name).header_offset + 30 + len(name)


def first_in(part: int, skip: int = 1) -> str:
    """The name of a file that lies in one part only, the first or a later one there."""
    size = len(in_parts(zipped(FILES))[0])
    inside = [
        name
        for name, content in FILES.items()
        if (part - 1) * size < offset(name) - 30 - len(name)
        and offset(name) + len(content) < part * size
    ]
    return inside[skip]


def change_byte(parts: list[Path], position: int) -> None:
    for path in parts:
        content = bytearray(path.read_bytes())
        if position < len(content):
            content[position] ^= 0x55
            path.write_bytes(content)
            return
        position -= len(content)


# ---- parts ---------------------------------------------------------------------------------------


def test_parts_are_in_the_order_of_their_numbers():
    names = [Path(f"a.zip.{i}") for i in (10, 2, 1, 9, 3, 8, 7, 4, 6, 5)]
    assert in_order(names) == [Path(f"a.zip.{i}") for i in range(1, 11)]
    assert in_order([Path("a.010"), Path("a.009")]) == [Path("a.009"), Path("a.010")]


@pytest.mark.parametrize(
    "names", [[], ["a.zip.001", "a.zip.003"], ["a.zip.001", "a.zip.1"], ["a.zip"], ["a.zip.x01"]]
)
def test_parts_that_are_no_sequence_are_refused(names):
    with pytest.raises(ArchiveError, match="expected"):
        in_order([Path(name) for name in names])


def test_parts_are_read_as_the_whole(tmp_path):
    rng = np.random.default_rng(0)
    contents = [rng.bytes(size) for size in (1000, 0, 1, 700)]
    paths = [tmp_path / f"a.{i}" for i in range(4)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    whole = b"".join(contents)
    with io.BufferedReader(Parts(paths, [1000, 0, 1, 700]), 64) as joined:
        assert joined.read() == whole
        for _ in range(300):
            start, length = int(rng.integers(0, 1800)), int(rng.integers(0, 1200))
            assert joined.seek(start) == start
            assert joined.read(length) == whole[start : start + length]
        assert joined.seek(-5, io.SEEK_END) == len(whole) - 5
        assert joined.read() == whole[-5:]


# ---- unpacking -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_all_files_come_out_and_the_parts_go(tmp_path, method):
    parts = write_parts(tmp_path / "in", zipped(FILES, method))
    found = unpack(tmp_path / "in" / "all.zip", parts, tmp_path / "out", **QUIET)
    assert (found.done, found.skipped, found.failed, found.absent) == (24, 0, {}, [])
    assert tree(tmp_path / "out") == FILES
    assert there(parts) == []


def test_the_disk_is_never_needed_twice(unpacked, parts, tmp_path, monkeypatch):
    """At no time is there more than the archive, one part, and the file on its way."""
    archive, part = sum(path.stat().st_size for path in parts), parts[0].stat().st_size
    largest, most = max(map(len, FILES.values())), []
    write, seen = module._write, []

    def watched(*arguments):
        write(*arguments)
        seen.append(there(parts))
        used = [path for path in tmp_path.rglob("*") if path.is_file()]
        most.append(sum(path.stat().st_size for path in used if path.suffix != ".json"))

    monkeypatch.setattr(module, "_write", watched)
    unpacked()
    assert max(most) <= archive + part + largest < 1.5 * archive
    assert [1, 2, 3] in seen
    assert [2, 3] in seen
    assert [3] in seen
    assert tree(tmp_path / "out") == FILES


def test_parts_are_kept_on_request(unpacked, parts, tmp_path):
    before = [path.read_bytes() for path in parts]
    assert unpacked(keep=True).done == 24
    assert [path.read_bytes() for path in parts] == before
    found = unpacked(keep=True)
    assert (found.done, found.skipped) == (0, 24)
    (tmp_path / "out" / "1" / "01.mp3").write_bytes(b"")
    (tmp_path / "out" / "2" / "02.mp3").unlink()
    found = unpacked(keep=True)
    assert (found.done, found.skipped) == (2, 22)
    assert tree(tmp_path / "out") == FILES
    assert unpacked(keep=True, again=True).done == 24


@pytest.mark.parametrize("files", [0, 1, 5, 13, 22, 23])
def test_what_was_interrupted_goes_on(unpacked, parts, tmp_path, monkeypatch, files):
    write, count = module._write, 0

    def until_interrupted(*arguments):
        nonlocal count
        if count == files:
            raise KeyboardInterrupt
        count += 1
        write(*arguments)

    monkeypatch.setattr(module, "_write", until_interrupted)
    with pytest.raises(KeyboardInterrupt):
        unpacked()
    assert len(tree(tmp_path / "out")) == files
    monkeypatch.setattr(module, "_write", write)
    assert lacking_parts(unpacked.archive, parts) == []
    found = unpacked()
    assert (found.done, found.skipped, found.failed) == (24 - files, files, {})
    assert tree(tmp_path / "out") == FILES
    assert there(parts) == []


def test_names_are_chosen_and_others_left_alone(unpacked, tmp_path):
    found = unpacked(
        name_of=lambda member: f"x{member[1:]}" if member[0] == "1" else None,
        wanted=["x/01.mp3", "x/77.mp3"],
    )
    assert found.absent == ["x/77.mp3"]
    assert known_absent(unpacked.archive) == {"x/77.mp3"}
    assert tree(tmp_path / "out") == {f"x{n[1:]}": c for n, c in FILES.items() if n[0] == "1"}


def test_of_two_files_of_one_name_the_first_is_taken(tmp_path):
    parts = write_parts(tmp_path / "in", zipped({"a/1": b"first" * 30, "b/1": b"second" * 30}))
    unpack(tmp_path / "in" / "all.zip", parts, tmp_path / "out", lambda _name: "1", **QUIET)
    assert tree(tmp_path / "out") == {"1": b"first" * 30}


def test_an_archive_in_one_part(tmp_path):
    path = tmp_path / "all.zip.001"
    path.write_bytes(zipped(FILES))
    assert unpack(tmp_path / "all.zip", [path], tmp_path / "out", **QUIET).done == 24
    assert tree(tmp_path / "out") == FILES
    assert not path.exists()


def test_progress_is_shown_to_a_terminal(parts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    unpack(tmp_path / "in" / "all.zip", parts, tmp_path / "out")
    assert "unpack: 100%" in capsys.readouterr().err


# ---- hostile names -------------------------------------------------------------------------------

HOSTILE = [
    *("../out.mp3", "0/../../out.mp3", "a/b/../../../out.mp3", "/absolute.mp3", "//net/x.mp3"),
    *("..", "a/..", "..\\out.mp3", "C:\\out.mp3", "c:out.mp3", "\\absolute.mp3"),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    parts = write_parts(tmp_path / "in", zipped({"0/good.mp3": b"good" * 50, name: b"bad" * 50}))
    around = tree(tmp_path).keys()
    found = unpack(tmp_path / "in" / "all.zip", parts, tmp_path / "out", keep=True, **QUIET)
    assert tree(tmp_path / "out") == {"0/good.mp3": b"good" * 50}
    assert found.done == 1
    assert list(found.failed) == [name]
    assert "leads out of the folder" in found.failed[name]
    assert tree(tmp_path).keys() - around == {"out/0/good.mp3", "in/all.zip.parts.json"}
    assert not Path("/absolute.mp3").exists()


def test_nor_does_a_name_that_was_chosen(unpacked, tmp_path):
    found = unpacked(name_of=lambda member: f"../{member}")
    assert (found.done, len(found.failed)) == (0, 24)
    assert {path.name for path in tmp_path.iterdir()} == {"in", "out"}


def test_a_link_in_the_archive_leads_nowhere(tmp_path):
    """It comes out as a small file."""
    link = zipfile.ZipInfo("0/link")
    link.external_attr = 0o120777 << 16
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as file:
        file.writestr(link, "../../secret")
        file.writestr("0/good", b"good" * 50)
    parts = write_parts(tmp_path / "in", whole.getvalue())
    unpack(tmp_path / "in" / "all.zip", parts, tmp_path / "out", **QUIET)
    assert not (tmp_path / "out" / "0" / "link").is_symlink()


# ---- damage --------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [1, 2])
def test_a_damaged_file_costs_itself_only(unpacked, parts, tmp_path, part):
    name = first_in(part)
    change_byte(parts, offset(name) + 5)
    for _ in range(2):
        found = unpacked()
        assert list(found.failed) == [name]
        assert "damaged in the archive: Bad CRC-32" in found.failed[name]
        assert found.damaged == [parts[part - 1]]
        assert tree(tmp_path / "out") == {n: c for n, c in FILES.items() if n != name}
        assert there(parts) == list(range(part, 4))
        assert found.absent == []
    # Delete it, as one is told to, get it again, and go on.
    parts[part - 1].unlink()
    assert lacking_parts(unpacked.archive, parts) == [parts[part - 1]]
    with pytest.raises(ArchiveError, match=rf"all\.zip\.00{part}: no such file"):
        unpacked()
    parts[part - 1].write_bytes(in_parts(zipped(FILES))[part - 1])
    found = unpacked()
    assert (found.done, found.skipped, found.failed) == (1, 23, {})
    assert tree(tmp_path / "out") == FILES
    assert there(parts) == []


def test_a_damaged_file_across_two_parts_keeps_both(unpacked, parts):
    size = parts[0].stat().st_size
    change_byte(parts, size - 1)
    found = unpacked()
    (name,) = found.failed
    assert offset(name) < size < offset(name) + len(FILES[name])
    assert found.damaged == parts[:2]
    assert there(parts) == [1, 2, 3]


@pytest.mark.parametrize("where", [-4, -20, -40])
def test_a_damaged_header_costs_its_file_only(unpacked, parts, tmp_path, where):
    name = first_in(2)
    change_byte(parts, offset(name) + where)
    found = unpacked()
    assert len(tree(tmp_path / "out")) >= 22
    assert len(found.failed) + len(tree(tmp_path / "out")) == 24
    assert not found.failed or there(parts) == [2, 3]


def test_a_locked_file_is_told(tmp_path):
    archive = bytearray(zipped({"a": b"a" * 100, "b": b"b" * 100}))
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):
        archive[archive.index(mark) + (6 if mark[2] == 3 else 8)] |= 1
    parts = write_parts(tmp_path / "in", bytes(archive))
    found = unpack(tmp_path / "in" / "all.zip", parts, tmp_path / "out", **QUIET)
    assert "encrypted" in found.failed["a"]
    assert tree(tmp_path / "out") == {"b": b"b" * 100}


@pytest.mark.parametrize(
    "broken",
    [
        lambda whole: whole[:-30],
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-22] + bytes(22),
        lambda whole: whole.replace(b"PK\x01\x02", b"xxxx", 1),
        lambda whole: b"<html>log in</html>" * 50,
        lambda whole: bytes(5000),
        lambda whole: b"",
    ],
    ids=["cut", "half", "no end", "first entry", "a page", "zeros", "nothing"],
)
def test_without_its_list_it_is_no_archive(unpacked, parts, tmp_path, broken):
    """Clear, and nothing is lost."""
    write_parts(tmp_path / "in", broken(zipped(FILES)))
    before = [path.read_bytes() for path in parts]
    with pytest.raises(
        ArchiveError, match=r"all\.zip\.\*: no zip archive together \(.+\)\. Delete"
    ):
        unpacked()
    assert [path.read_bytes() for path in parts] == before


def test_any_changed_byte_of_the_list_is_met_with_a_clear_word(unpacked, parts, tmp_path):
    """No traceback, no wrong bytes under a right name, and nothing deleted that lacks a file."""
    files = {name: FILES[name] for name in list(FILES)[:4]}
    whole = zipped(files)
    for position in range(whole.index(b"PK\x01\x02"), len(whole), 3):
        write_parts(tmp_path / "in", whole)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        change_byte(parts, position)
        try:
            found = unpacked(wanted=files)
        except ArchiveError:
            assert there(parts) == [1, 2, 3]
            continue
        right = files.keys() & tree(tmp_path / "out").keys()
        assert all((tmp_path / "out" / name).read_bytes() == files[name] for name in right)
        damaged = [r for r in found.failed.values() if r.startswith("damaged")]
        assert bool(damaged) == bool(found.damaged)
        assert all(path.exists() for path in found.damaged)
        assert set(files) - right <= {*found.failed, *found.absent}


@pytest.mark.parametrize("part", [1, 2])
def test_a_part_that_is_too_short_is_told(unpacked, parts, part):
    content = parts[part - 1].read_bytes()
    parts[part - 1].write_bytes(content[:-100])
    wanted = r"100 bytes are missing.*one of the parts is too short.*all\.zip\.001: \d+ bytes"
    with pytest.raises(ArchiveError, match=wanted):
        unpacked()
    assert there(parts) == [1, 2, 3]


@pytest.mark.parametrize("part", [1, 2])
def test_a_part_that_is_too_long_is_told(unpacked, parts, part):
    parts[part - 1].write_bytes(parts[part - 1].read_bytes() + b"12345")
    with pytest.raises(ArchiveError, match=r"5 bytes too many.*one of the parts is too long"):
        unpacked()
    assert there(parts) == [1, 2, 3]


def test_parts_in_the_wrong_order_are_no_archive(parts, tmp_path):
    with pytest.raises(ArchiveError):
        unpack(tmp_path / "in" / "all.zip", parts[::-1], tmp_path / "out", **QUIET)
    assert there(parts) == [1, 2, 3]


# ---- what is not there ---------------------------------------------------------------------------


@pytest.mark.parametrize("part", [1, 2, 3])
def test_a_missing_part_is_named(unpacked, parts, part):
    parts[part - 1].unlink()
    assert lacking_parts(unpacked.archive, parts) == [parts[part - 1]]
    with pytest.raises(
        ArchiveError, match=rf"all\.zip\.00{part}: no such file\. Download it first"
    ):
        unpacked()


def test_when_all_is_done_all_parts_would_be_needed_again(unpacked, parts):
    unpacked()
    assert lacking_parts(unpacked.archive, parts) == parts
    with pytest.raises(ArchiveError, match="no such file"):
        unpacked()


def test_a_file_of_a_part_that_is_gone_is_told(unpacked, parts, tmp_path):
    """Somebody deleted it between an interrupted call and the next."""
    change_byte(parts, offset(first_in(2)))
    unpacked()
    lost = first_in(1)
    (tmp_path / "out" / lost).unlink()
    found = unpacked()
    assert "all.zip.001, which it is in, is used and deleted" in found.failed[lost]
    assert found.absent == []
    assert there(parts) == [2, 3]
    assert lacking_parts(unpacked.archive, parts) == [parts[0]]
    with pytest.raises(ArchiveError, match=r"all\.zip\.001: no such file"):
        unpacked(again=True)


def test_another_folder_for_the_rest_costs_no_other_part(parts, tmp_path, monkeypatch):
    """What an interrupted call had out is in the first folder, and its part is gone."""
    archive = tmp_path / "in" / "all.zip"
    change_byte(parts, offset(first_in(2)))
    unpack(archive, parts, tmp_path / "out", **QUIET)
    parts[1].write_bytes(in_parts(zipped(FILES))[1])
    found = unpack(archive, parts, tmp_path / "other", **QUIET)
    assert found.failed
    assert there(parts) == [2, 3]
    assert lacking_parts(archive, parts) == [parts[0]]
    parts[0].write_bytes(in_parts(zipped(FILES))[0])
    assert unpack(archive, parts, tmp_path / "other", **QUIET).failed == {}
    assert tree(tmp_path / "other") == FILES
    assert there(parts) == []


def test_a_name_that_the_disk_refuses_keeps_its_part(unpacked, parts, tmp_path, monkeypatch):
    refused, write = first_in(2), module._write

    def picky(whole, member, target):
        if member.filename == refused:
            raise OSError(errno.ENAMETOOLONG, "File name too long", str(target))
        write(whole, member, target)

    monkeypatch.setattr(module, "_write", picky)
    for _ in range(2):
        assert unpacked().failed == {refused: "cannot be written: File name too long"}
        assert there(parts) == [2, 3]
        assert lacking_parts(unpacked.archive, parts) == []


def test_a_damaged_last_part_alone_is_needed_again(unpacked, parts):
    change_byte(parts, offset(first_in(3)) + 5)
    assert unpacked().damaged == [parts[2]]
    assert there(parts) == [3]
    parts[2].unlink()
    assert lacking_parts(unpacked.archive, parts) == [parts[2]]
    parts[2].write_bytes(in_parts(zipped(FILES))[2])
    assert unpacked().failed == {}
    assert there(parts) == []


def test_somebodys_own_files_stay_unless_it_is_said_otherwise(unpacked, tmp_path):
    name = first_in(2)
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"of another size")
    found = unpacked(keep=True)
    assert (found.done, found.other) == (23, [name])
    assert path.read_bytes() == b"of another size"
    assert unpacked(again=True).other == []
    assert tree(tmp_path / "out") == FILES


def test_parts_on_another_disk_make_no_room(unpacked, parts, tmp_path, monkeypatch):
    """Unlike those on the same one: `test_room_for_a_part_is_enough`."""
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(len(zipped(FILES)) - 5000))
    real = Path.stat

    def stat(path, **options):
        found = real(path, **options)
        device = 1 if path in parts else 2
        return os.stat_result([*found[:2], device, *found[3:]])

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(ArchiveError, match="unpacking needs room"):
        unpacked()
    monkeypatch.setattr(Path, "stat", real)
    assert unpacked().done == 24


@pytest.mark.parametrize("content", ["", "{", "[]", '{"sizes": 3}', '{"used": ["all.zip.001"]}'])
def test_a_damaged_record_of_what_was_done_does_no_harm(unpacked, tmp_path, content):
    (tmp_path / "in" / "all.zip.parts.json").write_text(content)
    assert unpacked().done == 24
    assert tree(tmp_path / "out") == FILES


# ---- room ----------------------------------------------------------------------------------------


def test_room_for_a_part_is_enough(unpacked, parts, tmp_path, monkeypatch):
    """While parts go; to keep them, all of it is needed."""
    usage = namedtuple("usage", "total used free")
    free = parts[0].stat().st_size + max(map(len, FILES.values()))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(0, 0, free))
    total = sum(map(len, FILES.values()))
    with pytest.raises(ArchiveError, match=rf"needs room for {total} bytes, .* room for {free}\."):
        unpacked(keep=True)
    assert tree(tmp_path / "out") == {}
    assert unpacked().done == 24


def test_a_disk_that_takes_no_more_ends_it_and_nothing_is_lost(
    unpacked, parts, tmp_path, monkeypatch
):
    write = module._write

    def full(whole, member, target):
        if len(tree(tmp_path / "out")) == 12:
            raise OSError(28, "No space left on device")
        write(whole, member, target)

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(ArchiveError, match=r"the disk is full.*run the same again"):
        unpacked()
    monkeypatch.setattr(module, "_write", write)
    assert unpacked().failed == {}
    assert tree(tmp_path / "out") == FILES

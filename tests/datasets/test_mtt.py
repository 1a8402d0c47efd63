"""MagnaTagATune, from a server's split archive and table to log-mel files and ground truths."""

from __future__ import annotations

import io
import os
import resource
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from miniature_mtt import (  # noqa: F401
    EMPTY,
    PARTS,
    SPLITS,
    TABLE,
    Miniature,
    Reply,
    Server,
    in_parts,
    miniature,
    no_waiting,
    zipped,
)

from maest.datasets.collection import mel_key
from maest.datasets.groundtruth import read_groundtruth, read_labels
from maest.datasets.melspectrograms import read_mel
from maest.datasets.mtt import preprocess as module
from maest.datasets.mtt.preprocess import main, read_annotations
from maest.helpers.audio.reading import read_audio
from maest.helpers.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
FILES = {"train": 24, "validation": 2, "test": 6}


@pytest.fixture(scope="module")
def mtt() -> Miniature:
    return miniature()


@pytest.fixture
def server(mtt):
    with Server(mtt.files()) as server:
        yield server


@dataclass
class Place:
    """Folders of a run of one's own, and the command line."""

    root: Path
    url: str

    def arguments(self) -> list[str]:
        folders = {"download": "download", "audio": "audio", "melspec": "mels", "out": "out"}
        own = [f"--{name}-dir={self.root / folder}" for name, folder in folders.items()]
        return [*own, f"--url={self.url}", "--num-workers=1"]

    def run(self, *arguments: str) -> int:
        return main([*arguments, *self.arguments()])

    def tree(self, folder: str) -> dict[str, bytes]:
        paths = (path for path in (self.root / folder).rglob("*") if path.is_file())
        return {str(path.relative_to(self.root / folder)): path.read_bytes() for path in paths}

    def state(self) -> dict[str, tuple[int, int]]:
        """Each file's time of change and number: what is written again has others."""
        files = (path for path in self.root.rglob("*") if path.is_file())
        found = {str(path.relative_to(self.root)): path.stat() for path in files}
        return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in found.items()}


@pytest.fixture
def place(tmp_path, server) -> Place:
    return Place(tmp_path, server.url)


@pytest.fixture(scope="module")
def finished(mtt, tmp_path_factory) -> Path:
    """The folders after a whole run."""
    with Server(mtt.files()) as server:
        place = Place(tmp_path_factory.mktemp("finished"), server.url)
        assert place.run() == 0
    return place.root


@pytest.fixture
def done(finished, tmp_path, server) -> Place:
    """A copy of them."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)  # with the times of change
    return Place(tmp_path, server.url)


def check(place: Place, mtt: Miniature, without: tuple[str, ...] = ()) -> None:
    """All that the steps make is there, and right."""
    expected = {split: {} for split in SPLITS}
    for clip in mtt.sounding():
        if clip not in without:
            expected[mtt.split(clip)][mel_key(clip)] = mtt.target(clip)
    everything = {key: row for rows in expected.values() for key, row in rows.items()}
    for split, rows in {**expected, "all": everything}.items():
        groundtruth = read_groundtruth(place.root / "out" / f"groundtruth-{split}.pk")
        assert dict(zip(groundtruth.keys, groundtruth.targets.tolist(), strict=True)) == rows
    assert read_labels(place.root / "out" / "labels.json") == mtt.labels
    mels = {name for name in place.tree("mels") if name.endswith(".mmap")}
    assert mels == everything.keys()


def check_audio(place: Place, mtt: Miniature, without: tuple[str, ...] = ()) -> None:
    wanted = {clip: content for clip, content in mtt.audio.items() if clip not in without}
    assert place.tree("audio") == wanted


# ---- the whole way -------------------------------------------------------------------------------


def test_everything_from_nothing(mtt, finished, server):
    place = Place(finished, server.url)
    check(place, mtt)
    check_audio(place, mtt)
    assert {split: len(read_groundtruth(finished / "out" / f"groundtruth-{split}.pk"))
            for split in SPLITS} == FILES  # fmt: skip
    assert sorted(place.tree("download")) == [TABLE, "mp3.zip.json"]
    clip = mtt.sounding()[3]
    mel = read_mel(finished / "mels" / mel_key(clip))
    assert mel.shape == (1 + -(-len(read_audio(finished / "audio" / clip)) // 256), 96)


def test_as_typed_in_its_folder(mtt, server, tmp_path):
    """`cd datasets/mtt && python preprocess.py`, but for where to."""
    place = Place(tmp_path, server.url)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    arguments = [a for a in place.arguments() if not a.startswith("--url")]
    done = subprocess.run(
        [sys.executable, "preprocess.py", *arguments[:-1], "--num-workers=2"],
        cwd=ROOT / "datasets" / "mtt",
        env=environment | {"MTT_URL": server.url},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    check(place, mtt)
    check_audio(place, mtt)
    assert "unpacked 35 clips" in done.stdout
    assert "50 labels" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_second_run_does_nothing_and_asks_nobody(done, server, capsys):
    """The archives are deleted by then."""
    before = done.state()
    assert done.run() == 0
    assert done.state() == before
    assert server.requests == []
    assert "0 done" in capsys.readouterr().out


def test_archives_are_kept_on_request(mtt, place, server, capsys):
    assert place.run("--keep-archives", "download", "unpack") == 0
    assert {name: place.tree("download")[name] for name in (TABLE, *PARTS)} == mtt.files()
    check_audio(place, mtt)
    for name in PARTS:  # and may be deleted then
        (place.root / "download" / name).unlink()
    server.requests.clear()
    before = place.state()
    assert place.run("download", "unpack") == 0
    assert place.state() == before
    assert server.requests == []


def test_what_differs_from_the_published_data_set_is_told(mtt, place, capsys):
    assert place.run() == 0
    out = capsys.readouterr().out
    assert all(repr(clip) in out for clip in EMPTY)
    assert "| train      |     24 |    18,706 |" in out
    assert "25,863" in out
    assert "18,706, 1,825, 5,329" in out


def test_the_known_counts_are_no_matter_for_a_warning(done, monkeypatch, capsys):
    monkeypatch.setattr(module, "PUBLISHED", FILES)
    monkeypatch.setattr(module, "N_CLIPS", 35)
    monkeypatch.setattr(module, "N_TAGS", 64)
    assert done.run("groundtruth") == 0
    assert "warning" not in capsys.readouterr().out


def test_the_published_numbers():
    assert sum(module.PUBLISHED.values()) + 3 == module.N_CLIPS == 25_863
    assert module.PUBLISHED == {"train": 18_706, "validation": 1_825, "test": 5_329}
    assert (module.N_TAGS, module.N_LABELS) == (188, 50)
    assert module.URL == "https://mirg.city.ac.uk/datasets/magnatagatune"


# ---- clips that are broken -----------------------------------------------------------------------


def test_broken_clips_are_told_and_cost_themselves_only(done, mtt, capsys):
    page, cut = mtt.sounding()[5], mtt.sounding()[9]
    (done.root / "audio" / page).write_bytes(b"<html>not found</html>")
    (done.root / "audio" / cut).unlink()
    for clip in (page, cut):
        (done.root / "mels" / mel_key(clip)).unlink()
    for _ in range(2):
        assert done.run("melspectrograms", "groundtruth") == 0
        out = capsys.readouterr().out
        assert page in out
        assert cut in out
        check(done, mtt, (page, cut))


def test_many_broken_clips_are_a_list_in_a_file(done, mtt, capsys):
    for clip in mtt.sounding()[:8]:
        (done.root / "audio" / clip).write_bytes(b"broken")
        (done.root / "mels" / mel_key(clip)).unlink()
    assert done.run("melspectrograms") == 0
    assert str(done.root / "mels" / "failed.csv") in capsys.readouterr().out


def damage(mtt: Miniature, clip: str) -> tuple[str, bytes]:
    """The part that a clip lies in, and that part with a changed byte."""
    archive = bytearray(mtt.archive())
    with zipfile.ZipFile(io.BytesIO(archive)) as whole:
        archive[whole.getinfo(clip).header_offset + 30 + len(clip) + 200] ^= 0x55
    parts = dict(zip(PARTS, in_parts(bytes(archive)), strict=True))
    (part,) = [name for name, content in parts.items() if content != mtt.files()[name]]
    return part, parts[part]


def test_a_part_damaged_on_its_way_is_fetched_again(mtt, place, server, capsys):
    """Its damaged clips cost themselves only until then."""
    clip = mtt.sounding()[18]
    part, damaged = damage(mtt, clip)
    assert part == PARTS[1]
    server.replies[part] = Reply(damaged)
    assert place.run() == 0
    told = capsys.readouterr().err
    assert clip in told
    assert part in told
    check(place, mtt, (clip,))
    check_audio(place, mtt, (clip,))

    server.requests.clear()
    server.replies[part] = Reply(mtt.files()[part])
    assert place.run() == 0
    assert server.asked() == [part]
    assert clip not in capsys.readouterr().err
    check(place, mtt)
    check_audio(place, mtt)
    assert sorted(place.tree("download")) == [TABLE, "mp3.zip.json"]


def test_a_part_damaged_on_the_server_is_fetched_twice_and_no_more(mtt, place, server, capsys):
    clip = mtt.sounding()[18]
    part, damaged = damage(mtt, clip)
    server.replies[part] = Reply(damaged)
    for expected in (list(PARTS), [part], []):
        server.requests.clear()
        assert place.run() == 0
        assert [name for name in server.asked() if name != TABLE] == expected
        assert (clip in capsys.readouterr().err) == bool(expected)
        check(place, mtt, (clip,))
        check_audio(place, mtt, (clip,))
    assert sorted(place.tree("download")) == [TABLE, "failed.csv", "mp3.zip.json"]


def test_a_part_that_is_another_one_than_the_last_time_is_refused(mtt, done, server, capsys):
    part, damaged = damage(mtt, mtt.sounding()[18])
    server.replies[part] = Reply(damaged)
    shutil.rmtree(done.root / "audio")
    assert done.run("download", "unpack") == 1
    assert part in capsys.readouterr().err
    assert done.tree("audio") == {}
    (done.root / "download" / part).unlink()
    server.replies[part] = Reply(mtt.files()[part])
    server.requests.clear()
    assert done.run("download", "unpack") == 0
    assert server.asked() == [part, PARTS[2]]
    check_audio(done, mtt)


def test_parts_that_were_fetched_by_hand_are_used(mtt, place, server):
    (place.root / "download").mkdir()
    for name in PARTS[:2]:
        (place.root / "download" / name).write_bytes(mtt.files()[name])
    assert place.run("download", "unpack") == 0
    assert server.asked() == [TABLE, PARTS[2]]
    check_audio(place, mtt)


def serve_archive(server: Server, files: dict[str, bytes]) -> None:
    parts = zip(PARTS, in_parts(zipped(files)), strict=True)
    server.replies |= {name: Reply(part) for name, part in parts}


def test_a_clip_that_the_archive_does_not_have(mtt, place, server, capsys):
    clip = mtt.sounding()[4]
    files = {name: content for name, content in mtt.audio.items() if name != clip}
    serve_archive(server, {**files, "README.txt": b"not a clip"})
    assert place.run() == 0
    assert clip in capsys.readouterr().out
    check(place, mtt, (clip,))
    check_audio(place, mtt, (clip,))
    server.requests.clear()
    before = place.state()
    assert place.run() == 0
    assert server.requests == []
    assert place.state() == before


@pytest.mark.parametrize("around", ["mp3/", "../", "/", "../../../etc/"])
def test_an_archive_with_folders_around_the_clips(mtt, place, server, around):
    """Whatever they are, the clips come to their own places, and nothing else comes anywhere."""
    files = {f"{around}{name}": content for name, content in mtt.audio.items()}
    serve_archive(server, {**files, f"{around}0/other.mp3": b"other", f"{around}x": b"other"})
    assert place.run("download", "unpack") == 0
    check_audio(place, mtt)
    assert {path.name for path in place.root.iterdir()} == {"download", "audio"}


# ---- bad connections -----------------------------------------------------------------------------


def test_bad_connections_make_no_difference(mtt, place, server):
    for name, options in {
        TABLE: {"drops": [100, 50], "ranges": False},
        PARTS[0]: {"drops": [20_000, 0, 5_000, 1], "statuses": [200, 503]},
        PARTS[1]: {"drops": [30_000], "etags": ['"old"', '"new"'], "if_range": False},
        PARTS[2]: {"drops": [1] * 9},
    }.items():
        server.replies[name] = Reply(mtt.files()[name], **options)
    assert place.run("download", "unpack") == 0
    check_audio(place, mtt)


def test_a_connection_that_is_gone_for_good_is_gone_on_with_later(mtt, place, server, capsys):
    server.replies[PARTS[1]] = Reply(mtt.files()[PARTS[1]], drops=[30_000, *[0] * 6])
    assert place.run() == 1
    told = capsys.readouterr().err
    assert told.startswith(f"preprocess.py: {server.url}/{PARTS[1]}: ")
    assert "30000 bytes" in told
    assert "Traceback" not in told
    server.requests.clear()
    assert place.run("download", "unpack") == 0
    assert server.requests == [(PARTS[1], "bytes=30000-"), (PARTS[2], None)]
    check_audio(place, mtt)


@pytest.mark.parametrize("change", [-1000, 1000])
def test_a_part_of_the_wrong_size(mtt, place, server, capsys, change):
    """The archive's own list tells it."""
    content = mtt.files()[PARTS[0]]
    server.replies[PARTS[0]] = Reply(content[:-1000] if change < 0 else content + bytes(1000))
    assert place.run() == 1
    told = capsys.readouterr().err
    assert told.startswith(f"preprocess.py: {place.root / 'download' / 'mp3.zip'}: ")
    assert "1000 bytes" in told
    server.replies[PARTS[0]] = Reply(content)
    assert place.run("download", "unpack", "--force") == 0  # as it says
    check_audio(place, mtt)


@pytest.mark.parametrize("name", [TABLE, PARTS[2]])
def test_a_page_instead_of_a_file(place, server, capsys, name):
    server.replies[name] = Reply(b"<html>please log in</html>")
    assert place.run() == 1
    told = capsys.readouterr().err
    assert str(place.root / "download" / (name if name == TABLE else "mp3.zip")) in told
    assert place.tree("audio") == {}


@pytest.mark.parametrize("name", [TABLE, PARTS[1]])
def test_a_file_that_is_not_on_the_server(place, server, capsys, name):
    del server.replies[name]
    assert place.run() == 1
    told = capsys.readouterr().err
    assert f"{server.url}/{name}: " in told
    assert str(place.root / "download" / name) in told


def test_an_interrupted_unpacking_goes_on(mtt, place, server, monkeypatch, capsys):
    opened = zipfile.ZipFile.open

    def until_interrupted(self, member, *arguments):
        if len(place.tree("audio")) == 19:
            raise KeyboardInterrupt
        return opened(self, member, *arguments)

    monkeypatch.setattr(zipfile.ZipFile, "open", until_interrupted)
    assert place.run() == 130
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.undo()
    server.requests.clear()
    assert place.run("download", "unpack") == 0
    assert "unpacked 16 clips, 19 were there" in capsys.readouterr().out
    assert server.requests == []
    check_audio(place, mtt)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"seen": 3}', '{"absent": {"0/a.mp3": 1}}'])
def test_damaged_notes_of_what_came_do_no_harm(mtt, place, content):
    (place.root / "download").mkdir()
    (place.root / "download" / "mp3.zip.json").write_text(content)
    (place.root / "download" / f"{PARTS[0]}.part").write_bytes(b"left over")
    assert place.run("download", "unpack") == 0
    check_audio(place, mtt)


def test_no_room_for_the_clips_is_told_before_they_come(mtt, place, monkeypatch, capsys):
    assert place.run("download") == 0
    usage = namedtuple("usage", "total used free")
    needed = sum(map(len, mtt.audio.values()))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(0, 0, needed - 1))
    assert place.run("unpack") == 1
    assert str(needed) in capsys.readouterr().err
    assert place.tree("audio") == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(0, 0, needed))
    assert place.run("unpack") == 0


def test_a_disk_that_takes_no_more_ends_the_unpacking_and_nothing_is_lost(mtt, place, capsys):
    assert place.run("download") == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = sorted(map(len, mtt.audio.values()))
    resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[-1] - 1, before[1]))
    try:
        assert place.run("unpack") == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(place.root / "audio") in capsys.readouterr().err
    assert place.run("unpack") == 0
    check_audio(place, mtt)


def test_clips_that_were_deleted_are_fetched_again(done, mtt, server):
    """When the archives are gone too; but not for steps that need no archive."""
    shutil.rmtree(done.root / "audio" / "3")
    assert done.run("melspectrograms", "groundtruth") == 0
    assert server.requests == []
    assert done.run() == 0
    assert server.asked() == list(PARTS)
    check_audio(done, mtt)
    check(done, mtt)
    shutil.rmtree(done.root / "audio")
    server.requests.clear()
    assert done.run("download", "unpack") == 0
    assert server.asked() == list(PARTS)
    check_audio(done, mtt)


# ---- steps ---------------------------------------------------------------------------------------


def test_each_step_alone(mtt, place, server, capsys):
    assert place.run("download") == 0
    assert {name: place.tree("download")[name] for name in (TABLE, *PARTS)} == mtt.files()
    assert place.tree("audio") == {}
    server.requests.clear()
    assert place.run("download") == 0
    assert place.run("unpack") == 0
    check_audio(place, mtt)
    assert place.tree("mels") == {}
    assert place.run("melspectrograms") == 0
    assert place.tree("out") == {}
    assert place.run("groundtruth") == 0
    check(place, mtt)
    assert server.requests == []


def test_the_order_of_steps_is_theirs(mtt, place):
    assert place.run("groundtruth", "melspectrograms", "unpack", "download") == 0
    check(place, mtt)


def test_audio_that_is_there_needs_the_table_only(mtt, place, server):
    mtt.write_audio(place.root / "audio")
    assert place.run() == 0
    assert server.asked() == [TABLE]
    check(place, mtt)
    check_audio(place, mtt)


def test_audio_that_is_not_complete_does_too_when_its_steps_are_named(mtt, place, server):
    mtt.write_audio(place.root / "audio")
    for clip in EMPTY:
        (place.root / "audio" / clip).unlink()
    assert place.run("melspectrograms", "groundtruth") == 0
    assert server.asked() == [TABLE]
    check(place, mtt)


def test_audio_without_the_empty_clips_is_complete(mtt, place, server, monkeypatch):
    monkeypatch.setattr(module, "EMPTY", set(EMPTY))
    mtt.write_audio(place.root / "audio")
    for clip in EMPTY:
        (place.root / "audio" / clip).unlink()
    assert place.run() == 0
    assert server.asked() == [TABLE]
    check(place, mtt)


def test_own_clips_of_another_size_stay(mtt, place, capsys):
    name = mtt.sounding()[0]
    clip = place.root / "audio" / name
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"of another size")
    assert place.run("download", "unpack") == 0
    assert name in capsys.readouterr().out
    assert clip.read_bytes() == b"of another size"
    assert place.run("download", "unpack", "--force") == 0
    check_audio(place, mtt)


def test_a_kill_before_all_parts_are_deleted_leaves_them_for_the_next_run(mtt, place, server):
    assert place.run("download", "unpack", "--keep-archives") == 0
    (place.root / "download" / PARTS[0]).unlink()
    server.requests.clear()
    assert place.run("download", "unpack") == 0
    assert server.requests == []
    assert sorted(place.tree("download")) == [TABLE, "mp3.zip.json"]


def test_no_ground_truth_where_no_clip_can_be_read(mtt, place, capsys):
    for clip in mtt.sounding():
        path = place.root / "audio" / clip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no music")
    assert place.run("melspectrograms", "groundtruth") == 1
    assert str(place.root / "audio") in capsys.readouterr().err
    assert place.tree("out") == {}


def test_the_step_unpack_without_archives(place, capsys):
    assert place.run("unpack") == 1
    assert str(place.root / "download" / "mp3.zip") in capsys.readouterr().err


def test_the_step_melspectrograms_without_audio(place, capsys):
    assert place.run("melspectrograms") == 1
    assert "--audio-dir: " in capsys.readouterr().err


def test_the_step_groundtruth_without_log_mel_files(mtt, place, server, capsys):
    """Then nobody knows yet which clips are broken: all are in, and that is told."""
    assert place.run("groundtruth") == 0
    assert server.asked() == [TABLE]
    assert str(place.root / "mels") in capsys.readouterr().out
    keys = read_groundtruth(place.root / "out" / "groundtruth-all.pk").keys
    assert sorted(keys) == sorted(map(mel_key, mtt.audio))
    mtt.write_audio(place.root / "audio")
    assert place.run() == 0
    check(place, mtt)


def test_a_ground_truth_that_lacks_a_split_is_not_written(done, capsys):
    shutil.rmtree(done.root / "mels" / "c")
    before = done.state()
    assert done.run("groundtruth") == 1
    told = capsys.readouterr().err
    assert "validation" in told
    assert "5 of 35" in told
    assert done.state() == before


def test_ground_truths_follow_the_log_mel_files(done, mtt):
    """One more or one less; a damaged file is written anew."""
    clip = mtt.sounding()[7]
    (done.root / "mels" / mel_key(clip)).unlink()
    assert done.run("groundtruth") == 0
    check(done, mtt, (clip,))
    (done.root / "out" / "groundtruth-test.pk").write_bytes(b"damaged")
    (done.root / "out" / "labels.json").write_text("[")
    assert done.run("melspectrograms", "groundtruth") == 0
    check(done, mtt)


def test_force_makes_everything_again(done, mtt, server):
    before = done.state()
    assert done.run("--force") == 0
    assert server.asked() == [TABLE, *PARTS]
    check(done, mtt)
    check_audio(done, mtt)
    after = done.state()
    again = {name for name in before if after[name] != before[name]}
    assert {name for name in before if name.startswith(("audio/", "download/"))} <= again
    assert {name for name in before if name.endswith(".mmap")} <= again


def test_force_for_a_step_is_for_that_step(done, server):
    before = done.state()
    assert done.run("melspectrograms", "--force") == 0
    assert server.requests == []
    after = done.state()
    again = {name for name in before if after[name] != before[name]}
    assert {name for name in again if name.endswith(".mmap")}
    assert not {name for name in again if name.startswith(("audio/", "download/", "out/"))}


def test_force_that_fails_leaves_the_table(done, server, capsys):
    server.replies.clear()
    before = done.state()
    assert done.run("--force") == 1
    assert "404" in capsys.readouterr().err
    assert done.state() == before


@pytest.mark.parametrize("arguments", [["tables"], ["unpack", "mels"]])
def test_an_unknown_step(done, server, capsys, arguments):
    assert done.run(*arguments) == 1
    told = capsys.readouterr().err
    assert repr(arguments[-1]) in told
    assert "download, unpack, melspectrograms, groundtruth" in told


def test_options_stand_before_or_behind_the_steps(done, capsys):
    assert main([*done.arguments(), "groundtruth"]) == 0
    assert main(["groundtruth", *done.arguments()]) == 0
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for option in ("download", "audio", "melspec", "out"):
        assert f"--{option}-dir" in shown
    assert all(option in shown for option in ("--num-workers", "--force", "--keep-archives"))


# ---- the table -----------------------------------------------------------------------------------


def test_labels_are_the_most_frequent_tags_in_alphabetical_order(mtt, tmp_path, monkeypatch):
    (tmp_path / TABLE).write_bytes(mtt.table())
    task = read_annotations(tmp_path / TABLE)
    assert task.labels == mtt.labels == sorted(mtt.labels)
    assert set(task.tracks) == set(mtt.audio)
    assert task.tracks[mtt.sounding()[0]] == ("train", frozenset())
    assert {task.tracks[clip][0] for clip in EMPTY} == {"train"}
    rows = ["clip_id\tz\ta\tm\tb\tmp3_path", "1\t1\t0\t1\t1\t0/a.mp3", "2\t1\t1\t0\t0\td/b.mp3"]
    (tmp_path / "ties").write_text("\r\n".join(rows) + "\r\n\r\n")
    monkeypatch.setattr(module, "N_LABELS", 3)
    task = read_annotations(tmp_path / "ties")
    assert task.labels == ["a", "m", "z"]  # of a, m and b, each once, the first two columns
    assert task.tracks == {"0/a.mp3": ("train", {"z", "m"}), "d/b.mp3": ("test", {"z", "a"})}


def changed(mtt: Miniature, old: str, new: str) -> bytes:
    return mtt.table().replace(old.encode(), new.encode(), 1)


BROKEN = {
    "nothing": (lambda mtt: b"", ""),
    "header only": (lambda mtt: mtt.table().split(b"\n")[0], ""),
    "commas": (lambda mtt: mtt.table().replace(b"\t", b","), ""),
    "cut": (lambda mtt: mtt.table()[:-60], "line 36"),
    "a cell": (lambda mtt: changed(mtt, '\t"1"\t', '\t"2"\t'), "line "),
    "no text": (lambda mtt: b"clip_id\t\xff\tmp3_path\n", ""),
    "folder": (lambda mtt: changed(mtt, '"0/', '"g/'), "line 2"),
    "way out": (lambda mtt: changed(mtt, '"0/', '"0/../../'), "line 2"),
    "absolute": (lambda mtt: changed(mtt, '"0/', '"/0/'), "line 2"),
    "twice": (lambda mtt: mtt.table() + mtt.table().split(b"\n")[3], "line 37"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_table_is_told_with_its_line(mtt, tmp_path, what):
    content, line = BROKEN[what]
    path = tmp_path / TABLE
    path.write_bytes(content(mtt))
    with pytest.raises(InputError) as error:
        read_annotations(path)
    assert error.value.path == path
    assert error.value.message.startswith(line)
    assert error.value.hint


def test_the_miniature_is_in_the_published_format(mtt):
    """The test's own: its table's form, and that its tags are not in order there."""
    lines = mtt.table().decode().splitlines()
    assert lines[0].startswith('"clip_id"\t"')
    assert lines[1].split("\t")[-1] == f'"{next(iter(mtt.audio))}"'
    assert len(lines) == 36
    assert mtt.columns != sorted(mtt.columns)
    assert len(mtt.columns) == 64
    for split in SPLITS:
        own = [mtt.target(clip) for clip in mtt.sounding() if mtt.split(clip) == split]
        assert np.sum(own, axis=0).min() >= 1
    whole = zipfile.ZipFile(io.BytesIO(b"".join(mtt.files()[name] for name in PARTS)))
    assert {name for name in whole.namelist() if not name.endswith("/")} == set(mtt.audio)
    assert {member.date_time[0] for member in whole.infolist()} == {1980}  # alike at any time

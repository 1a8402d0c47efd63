"""MagnaTagATune, from a server's split archive and table to log-mel files and ground truths."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import zipfile
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
)

from datasets import archives
from datasets.collection import mel_key
from datasets.groundtruth import read_groundtruth, read_labels
from datasets.melspectrograms import open_mel
from datasets.mtt import preprocess as module
from datasets.mtt.preprocess import main, read_annotations
from helpers.audio import read_audio
from helpers.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
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
        groundtruth = read_groundtruth(place.root / "out" / f"groundtruth-{split}.pk", 50)
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
    assert sorted(place.tree("download")) == [TABLE, "mp3.zip.parts.json"]
    clip = mtt.sounding()[3]
    mel = open_mel(finished / "mels" / mel_key(clip))
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
    assert "unpacked 35 clips, 0 were there" in done.stdout
    assert "3 audio files are empty, and left out" in done.stdout
    assert "50 labels" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_second_run_does_nothing_and_asks_nobody(done, server, capsys):
    """The archives are deleted by then."""
    before = done.state()
    assert done.run() == 0
    assert done.state() == before
    assert server.requests == []
    out = capsys.readouterr().out
    assert "35 clips are in" in out
    assert "nothing to unpack" in out
    assert "0 done (0.00 h of audio), 32 skipped" in out


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


def test_what_is_told(mtt, place, capsys):
    assert place.run() == 0
    out = capsys.readouterr().out
    for line in (
        "unpacked 35 clips, 0 were there",
        f"3 audio files are empty, and left out: {', '.join(map(repr, EMPTY))}",
        "32 done",
        "3 tracks have no log-mel file, and are left out",
        "| train      |     24 |    18,706 |",
        "50 labels: ",
    ):
        assert line in out
    for line in (
        "has 35 clips and 64 tags, where the published table has 25,863 and 188",
        "train has 24 tracks, validation has 2 tracks, test has 6 tracks, where the published "
        "split has 18,706, 1,825, 5,329: figures do not compare with those of the literature",
    ):
        assert line in out


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
        assert f"broken, and left out: {page}: " in out
        assert f"1 audio files are not there, and left out: '{cut}'" in out
        assert "30 skipped, 1 failed (listed with reasons in " in out
        assert "5 tracks have no log-mel file, and are left out" in out
        check(done, mtt, (page, cut))


def test_many_broken_clips_are_a_list_in_a_file(done, mtt, capsys):
    for clip in mtt.sounding()[:8]:
        (done.root / "audio" / clip).write_bytes(b"broken")
        (done.root / "mels" / mel_key(clip)).unlink()
    assert done.run("melspectrograms") == 0
    out = capsys.readouterr().out
    assert out.count("broken, and left out: ") == 5
    assert f"and 3 more broken ones: {done.root / 'mels' / 'failed.csv'}" in out


def test_a_clip_damaged_in_the_archive(mtt, place, server, capsys):
    """It is told, its part is kept, and deleting that part brings it from the server."""
    archive = bytearray(mtt.archive())
    clip = mtt.sounding()[18]
    with zipfile.ZipFile(io.BytesIO(archive)) as whole:
        archive[whole.getinfo(clip).header_offset + 30 + len(clip) + 200] ^= 0x55
    damaged = dict(zip(PARTS, in_parts(bytes(archive)), strict=True))
    (part,) = [name for name, content in damaged.items() if content != mtt.files()[name]]
    server.replies[part] = Reply(damaged[part])
    assert place.run() == 0
    told = capsys.readouterr().err
    assert f"not unpacked: {clip}: damaged in the archive: " in told
    assert f"kept: {place.root / 'download' / part}, damaged there. Delete it and run" in told
    assert f"1 clips are not unpacked: {place.root / 'download' / 'failed.csv'}" in told
    check(place, mtt, (clip,))
    check_audio(place, mtt, (clip,))
    assert part in place.tree("download")
    assert PARTS[0] not in place.tree("download")

    server.requests.clear()
    before = {name: state for name, state in place.state().items() if "download" not in name}
    assert place.run() == 0
    assert f"not unpacked: {clip}" in capsys.readouterr().err
    after = place.state()
    assert {name: after[name] for name in before} == before
    assert server.requests == []

    (place.root / "download" / part).unlink()
    server.replies[part] = Reply(mtt.files()[part])
    assert place.run() == 0
    assert server.asked() == [part]
    check(place, mtt)
    check_audio(place, mtt)
    assert sorted(place.tree("download")) == [TABLE, "mp3.zip.parts.json"]


def test_a_clip_that_the_archive_does_not_have(mtt, place, server, capsys):
    clip = mtt.sounding()[4]
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as file:
        for name, content in mtt.audio.items():
            file.writestr(name if name != clip else f"../{clip}", content)
        file.writestr("README.txt", "not a clip")
    server.replies |= {
        name: Reply(part) for name, part in zip(PARTS, in_parts(whole.getvalue()), strict=True)
    }
    assert place.run() == 0
    done = capsys.readouterr()
    assert f"1 clips are not in the archive: '{clip}'" in done.out
    assert "leads out of the folder" in done.err
    check(place, mtt, (clip,))
    check_audio(place, mtt, (clip,))
    assert not (place.root / clip).exists()
    server.requests.clear()
    before = place.state()
    assert place.run() == 0
    assert server.requests == []
    assert place.state() == before


def test_an_archive_with_a_folder_around_the_clips(mtt, place, server):
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as file:
        for name, content in mtt.audio.items():
            file.writestr(f"mp3/{name}", content)
    server.replies |= {
        name: Reply(part) for name, part in zip(PARTS, in_parts(whole.getvalue()), strict=True)
    }
    assert place.run("download", "unpack") == 0
    check_audio(place, mtt)


# ---- bad connections -----------------------------------------------------------------------------


def test_bad_connections_make_no_difference(mtt, place, server):
    for name, options in {
        TABLE: {"drops": [100, 50], "ranges": False},
        PARTS[0]: {"drops": [20_000, 0, 5_000, 1], "statuses": [200, 503]},
        PARTS[1]: {"drops": [30_000], "etags": ['"old"', '"new"'], "if_range": False},
        PARTS[2]: {"length": None},
    }.items():
        server.replies[name] = Reply(mtt.files()[name], **options)
    assert place.run("download", "unpack") == 0
    check_audio(place, mtt)


def test_a_connection_that_is_gone_for_good_is_gone_on_with_later(mtt, place, server, capsys):
    server.replies[PARTS[1]] = Reply(mtt.files()[PARTS[1]], drops=[30_000, *[0] * 6])
    assert place.run() == 1
    told = capsys.readouterr().err
    assert f"preprocess.py: {server.url}/{PARTS[1]}: the connection ended before" in told
    assert "30000 bytes of it are kept: run the same again" in told
    assert "Traceback" not in told
    server.requests.clear()
    assert place.run("download", "unpack") == 0
    assert server.requests == [(PARTS[1], "bytes=30000-"), (PARTS[2], None)]
    check_audio(place, mtt)


def test_a_part_of_the_wrong_size(mtt, place, server, capsys):
    """The server's word was wrong: the archive's own list tells it."""
    short = len(mtt.files()[PARTS[0]]) - 1000
    server.replies[PARTS[0]] = Reply(mtt.files()[PARTS[0]], length=short)
    assert place.run() == 1
    told = capsys.readouterr().err
    assert "1000 bytes are missing, by the archive's own list" in told
    assert f"Delete the part whose size is wrong (mp3.zip.001: {short} bytes" in told
    for name in PARTS:
        (place.root / "download" / name).unlink()
    server.replies[PARTS[0]] = Reply(mtt.files()[PARTS[0]])
    assert place.run("download", "unpack") == 0
    check_audio(place, mtt)


@pytest.mark.parametrize("name", [TABLE, PARTS[2]])
def test_a_page_instead_of_a_file(place, server, capsys, name):
    server.replies[name] = Reply(b"<html>please log in</html>")
    assert place.run() == 1
    told = capsys.readouterr().err
    assert ("expected tab-separated columns" if name == TABLE else "no zip archive") in told
    assert place.tree("audio") == {}


@pytest.mark.parametrize("name", [TABLE, PARTS[1]])
def test_a_file_that_is_not_on_the_server(place, server, capsys, name):
    del server.replies[name]
    assert place.run() == 1
    told = capsys.readouterr().err
    assert f"{server.url}/{name}: the server answers 404" in told
    assert f"put it to {place.root / 'download' / name}" in told


def test_an_interrupted_unpacking_goes_on(mtt, place, server, monkeypatch, capsys):
    write, seen = archives._write, []

    def until_interrupted(whole, member, target):
        seen.append(member.filename)
        if len(seen) == 20:
            raise KeyboardInterrupt
        write(whole, member, target)

    monkeypatch.setattr(archives, "_write", until_interrupted)
    assert place.run() == 130
    assert "interrupted. What is done is kept" in capsys.readouterr().err
    monkeypatch.setattr(archives, "_write", write)
    assert PARTS[0] not in place.tree("download")
    server.requests.clear()
    assert place.run("download", "unpack") == 0
    assert "unpacked 16 clips, 19 were there" in capsys.readouterr().out
    assert server.requests == []
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
    assert place.tree("download") == mtt.files()
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
    told = capsys.readouterr().out
    assert "1 clips are of other sizes than in the archive, and left as they are" in told
    assert clip.read_bytes() == b"of another size"
    assert place.run("download", "unpack", "--force") == 0
    check_audio(place, mtt)


def test_a_kill_before_the_last_part_goes_leaves_it_for_the_next_run(mtt, place, server):
    assert place.run("download", "unpack", "--keep-archives") == 0
    server.requests.clear()
    assert place.run("download", "unpack") == 0
    assert server.requests == []
    assert not [name for name in place.tree("download") if name in PARTS]


def test_no_ground_truth_where_no_clip_can_be_read(mtt, place, capsys):
    for clip in mtt.sounding():
        path = place.root / "audio" / clip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no music")
    assert place.run("melspectrograms", "groundtruth") == 1
    told = capsys.readouterr().err
    assert f"none of the {len(mtt.sounding())} audio files can be read" in told
    assert place.tree("out") == {}


def test_the_step_unpack_without_archives(place, capsys):
    assert place.run("unpack") == 1
    told = capsys.readouterr().err
    assert str(place.root / "download" / PARTS[0]) in told
    assert "Download it first" in told


def test_the_step_melspectrograms_without_audio(place, capsys):
    assert place.run("melspectrograms") == 1
    told = capsys.readouterr().err
    assert "none of the 35 tracks of the table is there" in told
    assert "--audio-dir" in told


def test_the_step_groundtruth_without_log_mel_files(mtt, place, server, capsys):
    """Then nobody knows yet which clips are broken: all are in, and that is told."""
    assert place.run("groundtruth") == 0
    assert server.asked() == [TABLE]
    assert "no log-mel files of these tracks yet, so all of the table are in" in (
        capsys.readouterr().out
    )
    keys = read_groundtruth(place.root / "out" / "groundtruth-all.pk").keys
    assert sorted(keys) == sorted(map(mel_key, mtt.audio))
    mtt.write_audio(place.root / "audio")
    assert place.run() == 0
    check(place, mtt)


def test_a_ground_truth_that_lacks_a_split_is_not_written(done, capsys):
    shutil.rmtree(done.root / "mels" / "c")
    before = done.state()
    assert done.run("groundtruth") == 1
    assert "no track is left for validation: 5 of 35 tracks have no log-mel" in (
        capsys.readouterr().err
    )
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
    assert "no such step. Expected some of download, unpack, melspectrograms, groundtruth" in (
        capsys.readouterr().err
    )


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
    "nothing": (lambda mtt: b"", "expected tab-separated columns clip_id"),
    "header only": (lambda mtt: mtt.table().split(b"\n")[0], "no clips in it"),
    "commas": (lambda mtt: mtt.table().replace(b"\t", b","), "expected tab-separated"),
    "cut": (lambda mtt: mtt.table()[:-60], "line 36.*expected 66 columns"),
    "a cell": (lambda mtt: changed(mtt, '\t"1"\t', '\t"2"\t'), "0 or 1 for each tag"),
    "no text": (lambda mtt: b"clip_id\t\xff\tmp3_path\n", "no table of text"),
    "folder": (
        lambda mtt: changed(mtt, '"0/', '"g/'),
        "line 2.*expected a path in a folder 0 to f",
    ),
    "way out": (lambda mtt: changed(mtt, '"0/', '"0/../../'), "line 2.*leaves base_dir"),
    "absolute": (lambda mtt: changed(mtt, '"0/', '"/0/'), "line 2.*expected a path in a folder"),
    "twice": (lambda mtt: mtt.table() + mtt.table().split(b"\n")[3], "line 37.*twice"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_table_is_told_with_its_line(mtt, tmp_path, what):
    content, message = BROKEN[what]
    path = tmp_path / TABLE
    path.write_bytes(content(mtt))
    with pytest.raises(InputError, match=rf"(?s)annotations_final\.csv.*{message}"):
        read_annotations(path)


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

"""MagnaTagATune, from a server's split archive and table to log-mel files and ground truths."""

import io
import shutil
import zipfile
from pathlib import Path

import pytest
from folders import full_disk, tree
from http_server import Reply, Server
from miniature_mtt import CLIPS, EMPTY, MTT, PARTS, TABLE, Place, in_parts, zipped

from maest.datasets.audio_folder import mel_key
from maest.datasets.groundtruth import read_groundtruth
from maest.datasets.mtt import preprocess as module
from maest.datasets.mtt.preprocess import read_annotations
from maest.helpers.errors import InputError

TRACKS = {"train": 24, "validation": 2, "test": 6, "labels": 50}


@pytest.fixture
def server(http_server):
    http_server.replies |= {name: Reply(content) for name, content in MTT.files().items()}
    return http_server


@pytest.fixture
def place(tmp_path, server) -> Place:
    return Place(tmp_path, server)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folders after a whole run."""
    with Server(MTT.files()) as server:
        place = Place(tmp_path_factory.mktemp("finished"), server)
        place.run()
    return place.root


@pytest.fixture
def done(finished, tmp_path, server) -> Place:
    """A copy of them."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)  # with the times of change
    return Place(tmp_path, server)


def test_everything_from_nothing_and_nothing_twice(done):
    done.check()
    done.check_audio()
    assert done.downloads() == [TABLE, "mp3.zip.json"]
    before = done.state()
    done.run()
    assert done.server.requests == []
    assert done.state().items() >= before.items()


def test_steps_alone_and_in_any_order(place):
    place.run("download")
    assert tree(place.root / "download").items() >= MTT.files().items()
    assert not place.path("").exists()
    place.run("groundtruth", "melspectrograms", "unpack")
    assert place.server.requests == []
    place.check()


def test_archives_are_kept_on_request(place):
    place.run("--keep-archives", "download", "unpack")
    assert tree(place.root / "download").items() >= MTT.files().items()
    place.check_audio()
    (place.root / "download" / PARTS[0]).unlink()  # as a kill in the middle of deleting them
    place.run("download", "unpack")
    assert place.server.requests == []
    assert place.downloads() == [TABLE, "mp3.zip.json"]


def test_counts_that_differ_from_the_published_ones(done, monkeypatch, capsys):
    done.run("groundtruth")
    assert "warning: " in capsys.readouterr().out
    monkeypatch.setattr(module, "PUBLISHED", TRACKS)
    done.run("groundtruth")
    assert "warning" not in capsys.readouterr().out


def test_broken_clips_are_left_out(done, capsys):
    page, gone = CLIPS[5], CLIPS[9]
    done.path(page).write_bytes(b"<html>not found</html>")
    done.path(gone).unlink()
    for clip in (page, gone):
        done.mel(clip).unlink()
    for _ in range(2):
        done.run("melspectrograms", "groundtruth")
        assert str(done.root / "mels" / "failed.csv") in capsys.readouterr().out
        done.check((page, gone))


def serve(place: Place, parts: dict[str, bytes]) -> None:
    place.server.replies |= {name: Reply(content) for name, content in parts.items()}


def damage(clip: str) -> dict[str, bytes]:
    """The part that a clip lies in, with a changed byte."""
    files = MTT.files()
    archive = bytearray(b"".join(files[name] for name in PARTS))
    with zipfile.ZipFile(io.BytesIO(archive)) as whole:
        archive[whole.getinfo(clip).header_offset + 30 + len(clip) + 200] ^= 0x55
    return {n: part for n, part in in_parts(bytes(archive)).items() if part != files[n]}


@pytest.mark.parametrize("repaired", [True, False])
def test_a_damaged_part_is_fetched_once_more(place, capsys, repaired):
    clip = CLIPS[18]
    serve(place, damage(clip))
    place.run()
    assert clip in capsys.readouterr().err
    place.check((clip,))
    place.check_audio((clip,))
    if repaired:
        serve(place, MTT.files())
    for requested in ([PARTS[1]], []):
        place.run()
        assert place.server.asked() == requested
        place.check(() if repaired else (clip,))
        place.check_audio(() if repaired else (clip,))
    lists = [] if repaired else ["failed.csv"]
    assert place.downloads() == [TABLE, *lists, "mp3.zip.json"]


@pytest.mark.parametrize("change", [-1000, 1000])
def test_a_part_of_the_wrong_size_is_fetched_again(place, change):
    content = MTT.files()[PARTS[0]]
    serve(place, {PARTS[0]: content[:change] if change < 0 else content + bytes(change)})
    place.run("download", "unpack")
    serve(place, MTT.files())
    place.run("download", "unpack")
    assert PARTS[0] in place.server.asked()
    place.check_audio()


def test_a_part_that_has_changed_on_the_server_is_refused(done, capsys):
    (part,) = damage(CLIPS[18])
    serve(done, damage(CLIPS[18]))
    shutil.rmtree(done.root / "audio")
    done.run("download", "unpack", code=1)
    assert f"{done.server.url}/{part}: " in capsys.readouterr().err
    assert not done.path("").exists()
    serve(done, MTT.files())
    done.run("download", "unpack")
    assert done.server.asked() == [part, PARTS[2]]
    done.check_audio()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"mp3.zip.001": 3}', '{"seen": {}}'])
def test_parts_downloaded_by_hand_are_used(place, content):
    (place.root / "download").mkdir()
    for name in PARTS[:2]:
        (place.root / "download" / name).write_bytes(MTT.files()[name])
    (place.root / "download" / "mp3.zip.json").write_text(content)
    place.run("download", "unpack")
    assert place.server.asked() == [TABLE, PARTS[2]]
    place.check_audio()


def test_a_clip_that_the_archive_does_not_have(place, capsys):
    clip = CLIPS[4]
    files = {name: content for name, content in MTT.audio.items() if name != clip}
    serve(place, in_parts(zipped({**files, "README.txt": b"not a clip"})))
    place.run()
    assert clip in capsys.readouterr().err
    place.check((clip,))
    place.check_audio((clip,))
    place.run("download", "unpack")
    assert place.server.requests == []


@pytest.mark.parametrize("around", ["mp3/", "../", "/", "../../../etc/"])
def test_an_archive_with_folders_around_the_clips(place, around):
    """Clips are unpacked to their usual paths, and nothing else is unpacked."""
    files = {f"{around}{name}": content for name, content in MTT.audio.items()}
    files |= {f"{around}0/other.mp3": b"other", f"{around}x": b"other"}
    serve(place, in_parts(zipped(files)))
    place.run("download", "unpack")
    place.check_audio()
    assert {path.name for path in place.root.iterdir()} == {"download", "audio"}


def test_clips_of_another_size_are_kept_and_named(place, capsys):
    clip = place.path(CLIPS[0])
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"of another size")
    place.run("download", "unpack")
    assert CLIPS[0] in capsys.readouterr().err
    assert clip.read_bytes() == b"of another size"
    place.run("download", "unpack", "--force")
    place.check_audio()


def test_an_interrupted_unpacking_goes_on(place, monkeypatch, capsys):
    opened = zipfile.ZipFile.open

    def until_interrupted(self, member, *arguments):
        if len(tree(place.root / "audio")) == 19:
            raise KeyboardInterrupt
        return opened(self, member, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "open", until_interrupted)
        place.run(code=130)
    place.run("download", "unpack")
    assert "unpacked 13 clips, 19 existed already" in capsys.readouterr().out
    assert place.server.requests == []
    place.check_audio()


def test_a_full_disk_ends_the_unpacking(place, capsys):
    place.run("download")
    with full_disk(max(map(len, MTT.audio.values())) - 1):
        place.run("unpack", code=1)
    assert str(place.root / "audio") in capsys.readouterr().err
    place.run("unpack")
    place.check_audio()


@pytest.mark.parametrize("folder", ["audio/3", "audio"])
def test_clips_that_were_deleted_are_fetched_again(done, folder):
    """Steps that need no archive fetch none."""
    shutil.rmtree(done.root / folder)
    done.run("groundtruth")
    assert done.server.requests == []
    done.run("download", "unpack")
    assert done.server.asked() == list(PARTS)
    done.check_audio()


def test_force_makes_everything_again_and_may_fail(done):
    before = done.state()
    replies, done.server.replies = done.server.replies, {}
    done.run("--force", code=1)
    assert done.state() == before
    done.server.replies = replies
    done.run("melspectrograms", "--force")
    assert done.server.requests == []
    changed = {name for name, state in done.state().items() if before.get(name) != state}
    assert {name.split("/")[0] for name in changed} == {"mels"}
    assert sum(name.endswith(".mmap") for name in changed) == len(CLIPS)
    done.run("--force")
    assert done.server.asked() == [TABLE, *PARTS]
    after = done.state()
    assert all(after[name] != before[name] for name in before if name[:6] in ("audio/", "downlo"))
    done.check()


@pytest.mark.parametrize("steps", [(), ("melspectrograms", "groundtruth")])
def test_audio_from_elsewhere_needs_the_table_only(place, steps):
    for clip in CLIPS:
        place.path(clip).parent.mkdir(parents=True, exist_ok=True)
        place.path(clip).write_bytes(MTT.audio[clip])
    place.run(*steps)
    assert place.server.asked() == [TABLE]
    place.check()


def test_the_step_groundtruth_without_log_mel_files(place):
    """All clips are listed: none is known to be broken."""
    place.run("groundtruth")
    assert place.server.asked() == [TABLE]
    keys = read_groundtruth(place.root / "out" / "groundtruth-all.pk").keys
    assert sorted(keys) == sorted(map(mel_key, CLIPS))


def test_ground_truths_follow_the_log_mel_files(done):
    done.mel(CLIPS[7]).unlink()
    done.run("groundtruth")
    done.check((CLIPS[7],))
    (done.root / "out" / "groundtruth-test.pk").write_bytes(b"damaged")
    (done.root / "out" / "labels.json").write_text("[")
    done.run("melspectrograms", "groundtruth")
    done.check()
    shutil.rmtree(done.root / "mels" / "c")
    before = done.state()
    done.run("groundtruth", code=1)  # nothing is left for the validation
    assert done.state() == before


@pytest.mark.parametrize(
    ("steps", "served", "at"),
    [
        (["unpack"], {}, "download/mp3.zip.001: "),
        (["melspectrograms"], {}, "--audio-dir: "),
        (["tables"], {}, "STEP: "),
        ([], {TABLE: b"<html>please log in</html>"}, f"download/{TABLE}: "),
        ([], {PARTS[2]: b"<html>please log in</html>"}, "download/mp3.zip: "),
    ],
)
def test_what_is_refused(place, capsys, steps, served, at):
    (place.root / "audio").mkdir()
    serve(place, served)
    place.run(*steps, code=1)
    assert at in capsys.readouterr().err
    assert not tree(place.root / "audio")
    assert not (place.root / "out").exists()


def test_labels_are_the_most_frequent_tags_in_alphabetical_order(tmp_path, monkeypatch):
    (tmp_path / TABLE).write_bytes(MTT.table())
    task = read_annotations(tmp_path / TABLE)
    assert task.labels == MTT.labels == sorted(MTT.labels)
    assert set(task.tracks) == set(CLIPS) == MTT.audio.keys() - EMPTY
    assert task.tracks[CLIPS[0]] == ("train", frozenset())
    assert task.published == {"train": 18_706, "validation": 1_825, "test": 5_329, "labels": 50}
    rows = ["clip_id\tz\ta\tm\tb\tmp3_path", "1\t1\t0\t1\t1\t0/a.mp3", "2\t1\t1\t0\t0\td/b.mp3"]
    (tmp_path / "ties").write_text("\r\n".join(rows) + "\r\n\r\n")
    monkeypatch.setitem(module.PUBLISHED, "labels", 3)
    task = read_annotations(tmp_path / "ties")
    assert task.labels == ["a", "m", "z"]  # of a, m and b, each once, the first two columns
    assert task.tracks == {"0/a.mp3": ("train", {"z", "m"}), "d/b.mp3": ("test", {"z", "a"})}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda table: b"", ""),
        (lambda table: table.split(b"\n")[0], ""),
        (lambda table: table.replace(b"\t", b","), ""),
        (lambda table: table[:-60], "line 36"),
        (lambda table: table.replace(b'\t"1"\t', b'\t"2"\t', 1), "line "),
        (lambda table: b"clip_id\t\xff\tmp3_path\n", ""),
        (lambda table: table.replace(b'"0/', b'"g/', 1), "line 2"),
        (lambda table: table.replace(b'"0/', b'"00/', 1), "line 2"),
        (lambda table: table.replace(b'"0/', b'"0/../../', 1), "line 2"),
        (lambda table: table.replace(b'"0/', b'"/0/', 1), "line 2"),
        (lambda table: table + table.split(b"\n")[3], "line 37"),
    ],
)
def test_a_broken_table_names_its_line(tmp_path, change, line):
    path = tmp_path / TABLE
    path.write_bytes(change(MTT.table()))
    with pytest.raises(InputError) as error:
        read_annotations(path)
    assert (error.value.path, bool(error.value.hint)) == (path, True)
    assert error.value.message.startswith(line)

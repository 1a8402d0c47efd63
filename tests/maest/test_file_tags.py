"""Tags in music files: what is written, and what stays."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from folders import tree
from mutagen import File
from mutagen.apev2 import APEv2
from mutagen.id3 import ID3, TCON
from mutagen.mp4 import MP4
from tagged_music import (
    FILES,
    add_chunk,
    content,
    id3_header,
    metadata,
    packets,
    planned,
    raw_frame,
    skipped,
    texts,
    write_plain,
    write_tagged,
)

from maest.file_tags import apply, undo
from maest.helpers.errors import InputError
from maest.tag_groups import by_meaning

# ---- every container -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_tags_are_written_and_all_else_stays(tmp_path, name, log):
    path = tmp_path / name
    others = write_tagged(path)
    sound = packets(path)
    apply(planned(path), log)
    genre, mood = ["Electronic", "Électro"], ["Dark", "Sad"]
    if FILES[name] == 3:
        genre, mood = ["/".join(genre)], ["/".join(mood)]
    assert texts(path) == {"genre": genre, "style": ["Techno"], "mood": mood}
    assert packets(path) == sound
    assert all(raw in content(path) for raw in others)
    read = metadata(path)  # FFmpeg
    assert read["GENRE"].startswith(genre[0])
    assert read["STYLE"] == "Techno"
    assert read["TMOO" if FILES[name] == 4 else "MOOD"].startswith(mood[0])
    assert read["TITLE"] == "Tïtle"
    assert read["COMMENT"] == "a note"


@pytest.mark.parametrize("name", FILES)
def test_undo_brings_the_fields_back(tmp_path, name, log):
    path = tmp_path / name
    others = write_tagged(path)
    before, sound = texts(path), packets(path)
    read = metadata(path)
    apply(planned(path, comment=True), log)
    done = undo(log)
    assert len(done.restored) == 4
    assert not done.edited
    assert not done.skipped
    assert texts(path) == before
    assert metadata(path) == read
    assert packets(path) == sound
    assert all(raw in content(path) for raw in others)


@pytest.mark.parametrize("name", FILES)
def test_files_without_tags(tmp_path, name, log):
    path = write_plain(tmp_path / name)
    sound, before = packets(path), dict(File(path).tags or {})
    change = planned(path)
    assert bool(change.note) == bool(FILES[name])  # which version was chosen
    apply(change, log)
    assert texts(path)["mood"] == ["Dark", "Sad"]
    assert packets(path) == sound
    undo(log)
    assert dict(File(path).tags or {}) == before
    assert packets(path) == sound


def test_mp3_without_tags_comes_back_whole(tmp_path, log):
    path = write_plain(tmp_path / "a.mp3")
    before = path.read_bytes()
    apply(planned(path), log)
    assert path.read_bytes().endswith(before)
    undo(log)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["v23.mp3", "v24.mp3", "a.wav", "a.aiff"])
def test_the_version_of_id3_is_kept(tmp_path, name, log):
    path = tmp_path / name
    write_tagged(path)
    apply(planned(path), log)
    assert b"ID3" + bytes([FILES[name], 0]) in content(path)
    assert (b"TMOO" in content(path)) == (FILES[name] == 4)


def test_texts_of_v24_are_separated_by_nul(song, log):
    apply(planned(song, [("Mood---Dark", 0.8), ("Mood---Sad", 0.7)]), log)
    assert b"Dark\0Sad" in song.read_bytes()


# ---- what is changed and what is not -------------------------------------------------------------


def test_a_plan_writes_nothing(tmp_path, song):
    before = tree(tmp_path)
    assert "Techno" in str(planned(song))
    assert tree(tmp_path) == before


def test_fields_with_values_are_left_alone(song, log):
    tags = ID3(song)
    tags.add(TCON(encoding=0, text="(17)"))
    tags.save()
    change = planned(song)
    assert change.kept == ("TCON",)
    apply(change, log)
    assert ID3(song, translate=False)["TCON"].text == ["(17)"]
    assert skipped(song, [("Genre---Pop", 0.9)]) == "kept"


def test_replace_and_back_byte_for_byte(song, log):
    tags = ID3(song)
    frame = TCON(encoding=1, text="Röck")
    tags.add(frame)
    tags.save()
    apply(planned(song, replace=True), log)
    assert texts(song)["genre"] == ["Electronic", "Électro"]
    undo(log)
    assert raw_frame(frame, 4) in song.read_bytes()


def test_nothing_to_write(song, log):
    assert skipped(song, []) == "same"
    assert skipped(song, [("Instrument---Violin", 0.5)]) == "same"
    apply(planned(song), log)
    assert skipped(song) == "same"


def test_an_older_tag_is_not_hidden(tmp_path, log):
    """Players that find ID3v2 do not look for ID3v1."""
    path = write_plain(tmp_path / "a.mp3")
    v1 = b"TAG" + b"Title".ljust(30, b"\0") + b"Artist".ljust(30, b"\0") + bytes(64) + b"\x11"
    path.write_bytes(before := path.read_bytes() + v1)
    change = planned(path)
    assert change.kept == ("TCON",)
    apply(change, log)
    assert path.read_bytes().endswith(before)
    assert ID3(path, load_v1=False)["TIT2"].text == ["Title"]
    undo(log)
    assert path.read_bytes() == before


def _write_info(path: Path) -> None:
    """Tags of RIFF, as older programs write them: in Latin-1, a date of any kind."""
    texts = {"IGNR": "Jazz", "ICMT": "a note", "INAM": "R\xf6ck", "ICRD": "in May"}
    chunks = (
        struct.pack("<4sI", name.encode(), len(text)) + text.encode("latin-1")
        for name, text in texts.items()
    )
    add_chunk(path, b"LIST", b"INFO" + b"".join(chunks))


def _write_ape(path: Path) -> None:
    ape = APEv2()
    ape.update({"Genre": "Jazz", "Comment": "a note", "Title": "R\xf6ck", "Year": "1999"})
    ape.save(path)


def _write_aiff_texts(path: Path) -> None:
    add_chunk(path, b"NAME", "R\xf6ck".encode())
    add_chunk(path, b"ANNO", b"a note")


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.wav", _write_info), ("a.mp3", _write_ape), ("a.aiff", _write_aiff_texts)],
)
@pytest.mark.parametrize("comment", [False, True])
def test_what_other_kinds_of_tags_say_is_not_hidden(tmp_path, log, name, write, comment):
    path = write_plain(tmp_path / name)
    write(path)
    before, sound = path.read_bytes(), packets(path)
    change = planned(path, comment=comment)
    assert change.kept == (() if name == "a.aiff" else ("TCON",))
    apply(change, log)
    read = metadata(path)  # FFmpeg
    assert read["GENRE"] == ("Electronic" if name == "a.aiff" else "Jazz")
    assert read["TITLE"] == "R\xf6ck"
    (note,) = File(path).tags.getall("COMM")
    assert note.text[0].startswith("a note [maest: " if comment else "a note")
    assert before[-20:] in path.read_bytes()
    undo(log)
    assert "STYLE" not in metadata(path)
    assert packets(path) == sound
    apply(planned(path, replace=True), log)
    assert metadata(path)["GENRE"].startswith("Electronic")


def test_other_tags_beside_id3(song, log):
    """They are no older: only what is to be written counts."""
    _write_ape(song)
    change = planned(song)
    assert change.kept == ("TCON",)
    assert {edit.field for edit in change.edits} == {"TXXX:STYLE", "TMOO"}


def test_older_genre_of_mp4(tmp_path, log):
    """iTunes' genre by number is a value as well; what others wrote stays as it was."""
    write_tagged(path := tmp_path / "a.m4a")
    audio = MP4(path)
    audio["©xyz"] = ["0123456789"]
    audio.save()
    gnre = b"\0\0\0\x1agnre\0\0\0\x12data\0\0\0\0\0\0\0\0\0\x12"  # Rock
    room = b"\0\0\0\x22\xa9xyz\0\0\0\x1adata\0\0\0\x01\0\0\0\x000123456789"
    free = b"\0\0\0\x08free"
    assert room in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(room, gnre + free))
    assert planned(path).kept == ("©gen",)
    change = planned(path, replace=True)
    assert change.edits[0].before == ("Rock",)
    apply(change, log)
    assert gnre not in path.read_bytes()
    undo(log)
    assert gnre in path.read_bytes()


def test_labels_are_sorted_by_what_they_are_about():
    labels = ["mood/theme---happy", "Folk---Irish", "Voice---Choir", "piano", "Style---Reel"]
    assert by_meaning([(label, -i) for i, label in enumerate(labels)]) == {
        "genre": ["Folk"],
        "style": ["Irish", "Reel"],
        "mood": ["happy"],
        "comment": ["happy", "Folk", "Irish", "Choir", "piano", "Reel"],
    }


@pytest.mark.parametrize("name", ["v23.mp3", "a.flac", "a.m4a"])
def test_the_part_in_the_comment_is_kept_up_to_date(tmp_path, name, log):
    write_tagged(path := tmp_path / name)
    apply(planned(path, [("Genre---Pop", 1), ("Voice---[Choir]", 0.5)], comment=True), log)
    assert metadata(path)["COMMENT"] == "a note [maest: Pop, [Choir)]"
    apply(planned(path, [("Mood---Sad", 1)], comment=True), log)
    assert metadata(path)["COMMENT"] == "a note [maest: Sad]"
    apply(planned(path, [], comment=True), log)
    assert metadata(path)["COMMENT"] == "a note"


# ---- files that are left alone -------------------------------------------------------------------


def test_files_that_cannot_be_written(tmp_path, song):
    assert skipped(tmp_path / "none.mp3") == "missing"
    assert skipped(tmp_path) == "unsupported"
    (tmp_path / "notes.mp3").write_text("no music")
    assert skipped(tmp_path / "notes.mp3") == "corrupt"
    os.link(song, tmp_path / "link.mp3")
    assert skipped(song) == "unsupported"
    (tmp_path / "link.mp3").unlink()
    song.chmod(0o444)
    assert skipped(song) == "access"


def test_tags_that_would_not_stay_whole(tmp_path):
    plain = write_plain(tmp_path / "a.mp3").read_bytes()
    path = tmp_path / "b.mp3"
    path.write_bytes(id3_header(2, 20) + b"TT2\0\0\x03\0ab" + bytes(11) + plain)
    assert skipped(path) == "unsupported"
    path.write_bytes(id3_header(3, 20) + b"TIT2\0\0\0\0\0\0" + bytes(10) + plain)
    assert skipped(path) == "corrupt"  # an empty frame, which mutagen drops
    write_tagged(flac := tmp_path / "a.flac")
    flac.write_bytes(flac.read_bytes().replace("Tïtle".encode(), b"T\xeftles"))
    assert skipped(flac) == "corrupt"  # Latin-1


def test_unsynchronised_tags(tmp_path, log):
    """v2.3 with 0xff 0x00 for each 0xff: comes out without, its frames the same."""
    plain = write_plain(tmp_path / "a.mp3").read_bytes()
    frame = b"PRIV\0\0\0\x05\0\0o\0\xff\xfe\xff"
    body = frame.replace(b"\xff", b"\xff\0") + bytes(20)
    path = tmp_path / "b.mp3"
    path.write_bytes(id3_header(3, len(body), 0x80) + body + plain)
    sound = packets(path)
    apply(planned(path), log)
    assert frame in path.read_bytes()
    assert packets(path) == sound


def test_a_copy_that_differs_is_refused(song, log, monkeypatch):
    before = song.read_bytes()
    change = planned(song)
    monkeypatch.setattr("maest.file_tags.packets_digest", lambda path: str(path).encode())
    with pytest.raises(InputError) as error:
        apply(change, log)
    assert error.value.kind == "corrupt"
    assert song.read_bytes() == before
    assert not log.exists()
    assert [path.name for path in song.parent.iterdir()] == [song.name]


# ---- links, modes, dates, names ------------------------------------------------------------------


def test_links_modes_and_attributes_are_kept(tmp_path, song, log):
    link = tmp_path / "links" / "song.mp3"
    link.parent.mkdir()
    link.symlink_to("../v24.mp3")
    song.chmod(0o640)
    os.utime(song, (1e9, 1e9))
    try:
        os.setxattr(song, "user.label", b"red")
    except OSError:
        pytest.skip("no extended attributes here")
    apply(planned(link, keep_dates=True), log)
    assert link.is_symlink()
    assert texts(song)["style"] == ["Techno"]
    assert song.stat().st_mode & 0o777 == 0o640
    assert song.stat().st_mtime == 1e9
    assert os.getxattr(song, "user.label") == b"red"
    undo(log)
    assert link.is_symlink()
    assert song.stat().st_mtime > 1e9


def test_names_that_are_not_utf8(tmp_path, song, log):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xe9t\xe9.mp3"))
    song.rename(path)
    apply(planned(path), log)
    assert undo(log).restored
    assert texts(path)["style"] == []

"""The hash of a file's sound: the same whatever its tags and its container are."""

from __future__ import annotations

import av
import mutagen
import pytest
from mutagen.apev2 import APEv2
from mutagen.id3 import GEOB, ID3, TIT2, TXXX
from sounds import chords, write

from maest.helpers.audio.packets import read_packets

SOUND = chords(0.5, 48_000)
SUFFIXES = ".mp3 .flac .ogg .opus .m4a .wav .aiff .wv"


@pytest.fixture
def make(tmp_path):
    def make(name: str, sound=SOUND, **options):
        write(tmp_path / name, sound, 48_000, **options)
        return tmp_path / name

    return make


@pytest.mark.parametrize("suffix", SUFFIXES.split())
def test_writing_tags_keeps_the_hash(make, suffix):
    path = make(f"a{suffix}")
    before, content = read_packets(path), path.read_bytes()
    file = mutagen.File(path)
    if file.tags is None:
        file.add_tags()
    if suffix in (".mp3", ".wav", ".aiff"):
        file.tags.add(TIT2(text="A title"))
        file.tags.add(GEOB(desc="Serato", data=bytes(range(256)) * 400))
    else:
        file.tags["\xa9nam" if suffix == ".m4a" else "title"] = "A title"
    file.save()
    after = read_packets(path)
    assert path.read_bytes() != content
    assert (after.hash, after.tags.get("title")) == (before.hash, "A title")
    assert len(after.hash) == 16
    assert after.seconds == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("version", [3, 4])
def test_all_tags_of_an_mp3(make, version):
    path = make("a.mp3")
    before = read_packets(path).hash
    tags = ID3()
    tags.add(TXXX(desc="MOOD", text="Sad" * 9000))
    tags.save(path, v1=2, v2_version=version)
    assert read_packets(path).hash == before
    ape = APEv2()
    ape["Genre"] = "Techno"
    ape.save(path)
    assert read_packets(path).hash == before


@pytest.mark.parametrize(
    ("first", "second"), [("a.flac", "b.mka"), ("a.m4a", "b.mka"), ("a.mp3", "b.mka"),
                          ("a.flac", "b.oga"), ("a.opus", "b.mka"), ("a.m4a", "b.mov")]
)  # fmt: skip
def test_another_container_keeps_the_hash(make, tmp_path, first, second):
    path = make(first)
    with av.open(path) as source, av.open(tmp_path / second, "w") as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    assert read_packets(tmp_path / second).hash == read_packets(path).hash


def test_another_sound_has_another_hash(make):
    files = [make(f"a{suffix}") for suffix in SUFFIXES.split()]
    files += [make("b.flac", SOUND * 0.9), make("c.flac", SOUND[:-100])]
    assert len({read_packets(path).hash for path in files}) == len(files)


def test_the_rate_of_plain_samples_counts(tmp_path):
    paths = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for path, rate in zip(paths, (48_000, 44_100), strict=True):
        write(path, SOUND, rate)
    assert read_packets(paths[0]).hash != read_packets(paths[1]).hash


@pytest.mark.parametrize("content", [b"", b"no sound", b"#EXTM3U\n#EXTINF:9,\n/etc/passwd\n"])
def test_what_is_no_music_is_hashed_byte_by_byte(tmp_path, content):
    path, other = tmp_path / "a.mp3", tmp_path / "b.mp3"
    path.write_bytes(content)
    other.write_bytes(content + b"x")
    assert read_packets(path).hash != read_packets(other).hash
    assert read_packets(path).seconds == 0


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_packets(tmp_path / "a.mp3")

"""Embeddings of whole tracks for the probe: where they are, what is read, and what is refused."""

import io
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from folders import peak_memory
from made_up import open_block, refuses

from maest.datasets.embeddings import (
    EmbeddingFolder,
    block_name,
    check_same_extraction,
    check_types,
    find_folders,
    mel_statistics,
    read_all,
    read_blocks,
    read_tokens,
    select_tokens,
)
from maest.datasets.melspectrograms import write_mel
from maest.helpers.audio.patches import cut, times, write_times
from maest.helpers.blocks import FINAL
from maest.helpers.results.manifest import MANIFEST, open_folder

D = 4
DIR = "data.embeddings_dir"
EMBEDDING = np.arange(3 * D, dtype=np.float32).reshape(3, D)
KEYS = ("a/1.mmap", "a/2.mmap", "b/3.mmap")


def put(folder: Path, *tracks: str, content: np.ndarray = EMBEDDING) -> Path:
    """Embeddings without a manifest, as other programs may write them."""
    for track in tracks:
        path = folder / f"{track}.embeddings.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, content)
    return folder


def extracted(out_dir: Path, blocks: Iterable[int] = (7,), seconds: float = 5, **settings) -> Path:
    """What extraction leaves behind: embeddings with their manifests, and logits beside them."""
    level = out_dir / f"{seconds:g}sec"
    open_folder(level / "logits", {"kind": "logits"}, "mels", False, lambda: None)
    for block in blocks:
        folder = level / block_name(block)
        open_block(folder, block, seconds, **settings)
        for i, key in enumerate(KEYS):
            tokens = EMBEDDING + 100 * block + i
            put(folder, key, content=tokens[0] if block == FINAL else tokens)
    return out_dir


def saved(content: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, content)
    return file.getvalue()


@pytest.mark.parametrize("shape", [(), (5, 2)])
@pytest.mark.parametrize("types", ["c", "d", "t", "cd", "ct", "dt", "cdt", "tc"])
def test_tokens_as_plain_numpy(types, shape):
    x = np.random.default_rng(0).random((*shape, 3, D)).astype(np.float32)
    chosen = [x[..., "cdt".index(token), :] for token in types]
    mean, stack = (select_tokens(x, types, reduce) for reduce in ("mean", "stack"))
    assert mean.dtype == stack.dtype == np.float32
    np.testing.assert_allclose(mean, sum(chosen) / len(types), rtol=1e-6)
    np.testing.assert_array_equal(stack, np.concatenate(chosen, axis=-1))


@pytest.mark.parametrize(("types", "reduce"), [("t", "mean"), ("cdt", "mean"), ("c", "stack")])
def test_after_the_final_norm_there_are_no_tokens(types, reduce):
    final = np.arange(2 * D, dtype=np.float32).reshape(2, 1, D)
    np.testing.assert_array_equal(select_tokens(final, "c", "mean"), final[:, 0])
    with refuses("conflict", setting="data.types"):
        select_tokens(final, types, reduce)


@pytest.mark.parametrize("types", ["", "x", "cc"])
def test_bad_choices(types):
    check_types("tdc")
    with refuses("invalid", setting="sweep.tokens"):
        check_types(types, "sweep.tokens")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (EMBEDDING, EMBEDDING),
        (EMBEDDING[0], EMBEDDING[:1]),
        (EMBEDDING[:1], EMBEDDING[:1]),
        (EMBEDDING[None], EMBEDDING),  # one patch
        (np.arange(D).reshape(1, 1, D) / 2, [[0, 0.5, 1, 1.5]]),  # one patch, not tokens
        (EMBEDDING.astype(np.float16), EMBEDDING),
        (np.asfortranarray(EMBEDDING.astype(">f8")), EMBEDDING),
    ],
)
def test_what_a_file_may_hold(tmp_path, content, expected):
    np.save(tmp_path / "a.npy", content)
    found = read_tokens(tmp_path / "a.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.fixture
def per_patch(tmp_path) -> Path:
    """Half-precision values of two patches whose sum is no float16, and their times."""
    frames = 1945  # 31.1 s: a patch of 30 s, and one of 70 frames
    write_times(tmp_path / "a.mmap.times.csv", np.array(times(cut(frames, 1875), frames)))
    path = tmp_path / "a.mmap.embeddings.npy"
    np.save(path, np.stack([np.full((3, D), 60000), np.full((3, D), 30000)]).astype(np.float16))
    return path


def test_patches_are_pooled_as_extraction_pools_them(per_patch):
    expected = (60000 * 1875 + 30000 * 70) / 1945
    np.testing.assert_allclose(read_tokens(per_patch), np.full((3, D), expected), rtol=1e-4)
    np.save(per_patch, np.array([[[1.0] * D], [[0.0] * D]]))  # after the final norm
    np.testing.assert_allclose(read_tokens(per_patch), np.full((1, D), 1875 / 1945), rtol=1e-6)


def test_patches_without_their_times_are_refused(per_patch):
    np.save(per_patch, np.ones((3, 3, D), np.float32))
    with refuses("mismatch", "a.mmap.times.csv"):
        read_tokens(per_patch)
    (per_patch.parent / "a.mmap.times.csv").unlink()
    with refuses("missing", "a.mmap.times.csv"):
        read_tokens(per_patch)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        *(("invalid", saved(np.zeros(shape))) for shape in [(2, D), (5, 2, D), (0, 3, D), (3, 0)]),
        *(("invalid", saved(np.zeros(shape))) for shape in [(), (1, 1, 3, D)]),
        *(("invalid", saved(np.zeros((3, D), dtype))) for dtype in (int, complex, "U1")),
        *(("invalid", saved(np.full((1, 3, D), value))) for value in (np.nan, np.inf, 1e300)),
        ("invalid", saved(np.where(np.arange(3 * D) == 11, -np.inf, 0).reshape(3, D))),
        *(("corrupt", content) for content in (b"", saved(EMBEDDING)[:-1])),
    ],
)
def test_what_a_file_may_not_hold(tmp_path, kind, content):
    (tmp_path / "z.embeddings.npy").write_bytes(content)
    with refuses(kind, "z.embeddings.npy"):
        read_tokens(tmp_path / "z.embeddings.npy")


def test_embeddings_are_found_from_anywhere_above(tmp_path, monkeypatch):
    """From the folder above the model's down to that of a block."""
    monkeypatch.setenv("HOME", str(tmp_path))
    out_dir = extracted(tmp_path / "out/model", seconds=5)
    for place in (tmp_path / "out", out_dir, out_dir / "5sec", out_dir / "5sec/7", "~/out"):
        for clip_length in (None, 5, 4.992):
            (found,) = find_folders(place, clip_length)
            assert found.folder == out_dir / "5sec/7"
            assert (found.block, found.name, found.seconds) == (7, "7", 5)
            assert found.settings["model"] == "a" * 64
    extracted(out_dir, blocks=(10, 2, FINAL, 0))
    assert [one.name for one in find_folders(out_dir)] == ["0", "2", "7", "10", "final"]


@pytest.mark.parametrize("model", ["", "model/"])
def test_lengths_are_chosen_in_whole_frames(tmp_path, model):
    for seconds in (30, 10, 4.992, 5.008):
        extracted(tmp_path / model, seconds=seconds)
    for asked, found in ((30, "30sec"), (10.0, "10sec"), (4.99, "4.992sec"), (5.008, "5.008sec")):
        assert find_folders(tmp_path, asked)[0].folder.parent.name == found
    with refuses("missing", setting="data.clip_length"):
        find_folders(tmp_path, 20)
    with refuses("conflict", setting=DIR) as caught:
        find_folders(tmp_path)
    assert "data.clip_length=" in caught.value.hint


def test_a_damaged_manifest(tmp_path):
    (extracted(tmp_path) / "5sec/7" / MANIFEST).write_text("{")
    with refuses("corrupt", f"7/{MANIFEST}"):
        find_folders(tmp_path)


def test_extractions_of_several_models_are_listed(tmp_path):
    for name, seconds in (("first", 5), ("second", 5), ("third", 10)):
        extracted(tmp_path / name, seconds=seconds)
    for clip_length, listed in ((None, ("first", "second", "third")), (5, ("first", "second"))):
        with refuses("conflict", setting=DIR) as caught:
            find_folders(tmp_path, clip_length)
        assert all(f"{name}/" in str(caught.value) for name in listed)
    assert find_folders(tmp_path, 10)[0].folder == tmp_path / "third/10sec/7"


def test_a_manifest_is_believed_more_than_a_name(tmp_path):
    folder = (extracted(tmp_path) / "5sec/7").rename(tmp_path / "9")
    (found,) = find_folders(folder)
    assert (found.block, found.seconds) == (7, 5)
    extracted(tmp_path)
    folder.rename(tmp_path / "5sec/7 (copy)")
    with refuses("conflict", "5sec", DIR) as caught:
        find_folders(tmp_path / "5sec")
    assert "7 (copy)" in str(caught.value)


def test_folders_with_nothing_in_them(tmp_path):
    extracted(tmp_path / "out", blocks=(), seconds=30)  # logits alone
    (tmp_path / "5sec/7").mkdir(parents=True)
    for place in ("out", "out/30sec", "out/30sec/logits", "5sec", "5sec/7"):
        with refuses("empty", place, DIR):
            find_folders(tmp_path / place)
    (tmp_path / "file").write_text("x")
    for name in ("none", "file"):
        with refuses("missing", name, DIR):
            find_folders(tmp_path / name)


def test_without_manifests(tmp_path):
    put(tmp_path / "mine", *KEYS)
    (found,) = find_folders(tmp_path / "mine")
    assert (found.folder, found.settings, found.block) == (tmp_path / "mine", None, None)
    assert found.path(KEYS[0]).is_file()
    level = tmp_path / "out/5sec"
    for block in ("10", "9", "final", "²"):
        put(level / block, *KEYS)
    found = find_folders(tmp_path / "out", 5)
    assert [(one.block, one.seconds) for one in found] == [(b, 5) for b in (9, 10, FINAL, None)]
    (found,) = find_folders(level / "final", 5)
    assert found.block == FINAL


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("model", "1" * 64, "maest_tiny (111111111111)"),
        ("hop_seconds", 2.5, "2.5"),
        ("patchout", {"s_patchout_t_interleaved": 2}, "interleaved"),
    ],
)
def test_blocks_of_several_models(tmp_path, name, value, shown):
    out_dir = extracted(tmp_path, blocks=(6,))
    made = extracted(tmp_path / "other", blocks=(7,), **{name: value})
    (made / "5sec/7").rename(out_dir / "5sec/7")
    with refuses("mismatch", setting=DIR) as caught:
        check_same_extraction(find_folders(out_dir, 5))
    assert all(word in str(caught.value) for word in ("5sec/6", "5sec/7", shown))
    again = find_folders(extracted(tmp_path / "again", blocks=(5,)))
    check_same_extraction(again + find_folders(tmp_path / "5sec/6"))


@pytest.mark.parametrize(
    ("stored", "key"),
    [
        ("a/song.mmap", "a/song.mmap"),
        ("a/song.mp3", "a/song.mmap"),
        ("a/song.MP3", "./a/song.mmap"),
        ("a/song.mp3", "a/song"),
        ("a/song.mmap", "a/song"),
        ("a/song", "a/song.mmap"),
        ("a/song.mmap", "a/song.mp3"),
        ("a/feat. x [2.0].flac", "a/feat. x [2.0].mmap"),
        ("a/feat. x", "a/feat. x"),
        ("a/s\udcff.ogg", "a/s\udcff.mmap"),
        ("with space/b.mp3/c.wav", "with space/b.mp3/c.mmap"),
        # What other audio is called has failed: it is another track.
        *((None, key) for key in ("song.mmap", "a/Song.mmap", "a/song.txt", "a", "\0")),
        *((None, key) for key in ("b/song.mmap", "a/other.wav")),
    ],
)
def test_a_key_finds_its_embedding(tmp_path, stored, key):
    others = ("a/other.mp3", "a/song2.mp3", *(("song.mp3",) if stored else ()))
    folder = EmbeddingFolder(put(tmp_path, *filter(None, (stored, *others))))
    assert folder.path(key) == tmp_path / f"{stored or key}.embeddings.npy"
    assert folder.path(key).is_file() == bool(stored)
    assert not EmbeddingFolder(tmp_path / "none").path(key).is_file()


def test_suffixes_that_leave_a_choice(tmp_path):
    """The exact name goes first."""
    folder = EmbeddingFolder(put(tmp_path, "a/song.mp3", "a/song.flac", "b.mmap", "b.mp3", "b.ogg"))
    with refuses("conflict", tmp_path.name) as caught:
        folder.path("a/song.mmap")
    assert "'a/song.flac', 'a/song.mp3'" in str(caught.value)
    assert folder.path("a/song.mp3").name == "song.mp3.embeddings.npy"
    assert folder.path("b.mmap").name == "b.mmap.embeddings.npy"
    # Of two formats of a song, the log-mel files are song.mmap and song.mp3.mmap.
    assert folder.path("a/song.mp3.mmap").name == "song.mp3.embeddings.npy"
    mels = EmbeddingFolder(put(tmp_path / "mels", "song.mmap", "song.mp3.mmap"))
    assert mels.path("song.mp3").name == "song.mp3.mmap.embeddings.npy"


def test_tracks_come_in_the_order_of_their_paths(tmp_path):
    folders = find_folders(extracted(tmp_path, blocks=(2, 7)))
    found = read_all(read_blocks, [[f.path(key) for f in folders] for key in KEYS[::-1]], "test")
    assert found.dtype == np.float32
    expected = [[EMBEDDING + 100 * b + i for b in (2, 7)] for i in (2, 1, 0)]
    np.testing.assert_array_equal(found, expected)
    (final,) = find_folders(extracted(tmp_path / "final", blocks=(FINAL,)))
    assert read_all(read_tokens, [final.path(key) for key in KEYS], "test").shape == (3, 1, D)


@pytest.mark.parametrize("shape", [(3, D + 1), (1, D), (D,)])
def test_tracks_and_blocks_of_different_widths(tmp_path, shape):
    put(tmp_path, "a", "b")
    put(tmp_path, "c", content=np.ones(shape, np.float32))
    paths = [tmp_path / f"{name}.embeddings.npy" for name in "abc"]
    with refuses("mismatch", setting=DIR) as caught:
        read_all(read_tokens, paths, "train")
    assert "c.embeddings.npy" in str(caught.value)
    with refuses("mismatch", "c.embeddings.npy"):
        read_blocks(paths)


def test_features_are_in_memory_once():
    """They are read into the array that is returned, not into a list first."""
    one = np.ones((3, 3000), np.float32)

    def read(number: int) -> np.ndarray:
        time.sleep(0.0002)  # for a disk
        return one + number

    found, peak = peak_memory(lambda: read_all(read, range(2000), "train"))
    assert found[1999, 2, 0] == 2000
    assert peak < 1.5 * found.nbytes


def test_mel_statistics(tmp_path):
    mel = np.random.default_rng(0).random((50, 96))
    write_mel(tmp_path / "a.mmap", mel)
    x = (mel.astype(np.float16).astype(float) - 2.06755686098554) / (2 * 1.268292820667291)
    expected = np.concatenate((x.mean(0), x.std(0)))
    np.testing.assert_allclose(mel_statistics(tmp_path / "a.mmap"), expected, atol=1e-6)

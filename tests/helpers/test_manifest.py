"""Results of different settings do not mix in one folder."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from folders import full_disk, tree
from made_up import refuses

from maest.helpers.errors import InputError
from maest.helpers.results.manifest import LOCK, MANIFEST, model_hash, open_folder, read_manifest

SETTINGS = {"kind": "embeddings", "model": "ab" * 32, "block": 7, "hop_seconds": 30.0}
OTHER = SETTINGS | {"block": 6}


def opened(folder: Path, settings=SETTINGS, source="/music", overwrite=False, present=None) -> dict:
    """Open a folder; its manifest then."""
    open_folder(folder, settings, source, overwrite, lambda: present)
    return read_manifest(folder)


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def files(folder: Path) -> set[str]:
    return set(tree(folder)) - {LOCK, MANIFEST}


def test_same_settings_again(tmp_path):
    folder = tmp_path / "new" / "7"
    first = opened(folder)
    assert first == {"settings": SETTINGS, "sources": ["/music"]}
    before = (folder / MANIFEST).stat().st_mtime_ns
    put(folder, "a.embeddings.npy")
    for overwrite in (False, True):
        assert opened(folder, overwrite=overwrite, present="a") == first
    assert (folder / MANIFEST).stat().st_mtime_ns == before
    assert files(folder) == {"a.embeddings.npy"}


def test_other_settings_are_named_where_they_differ(tmp_path):
    labels = [f"label {i}" for i in range(99)]
    opened(tmp_path, SETTINGS | {"labels": labels})
    other = {"hop_seconds": 15.0, "labels": [*labels[:50], "another", *labels[51:]]}
    with refuses("mismatch", MANIFEST) as caught:
        opened(tmp_path, SETTINGS | other | {"note": "n" * 100})
    text = str(caught.value)
    assert "hop_seconds 30.0, now 15.0" in text
    assert "labels label 50, now another" in text
    assert not any(word in text for word in ("block", "label 40", "n" * 60))
    assert read_manifest(tmp_path)["settings"] == SETTINGS | {"labels": labels}


def test_a_setting_that_came_later_counts_as_unchanged(tmp_path):
    opened(tmp_path)
    put(tmp_path, "a.embeddings.npy")
    later = {**SETTINGS, "rounding": "float16"}
    assert opened(tmp_path, later, present="a")["settings"] == later  # and is kept from now on
    assert files(tmp_path) == {"a.embeddings.npy"}
    for settings in ({**later, "rounding": "none"}, SETTINGS, {**later, "new": 1, "block": 6}):
        with refuses("mismatch", MANIFEST):
            opened(tmp_path, settings)


def test_results_from_before_max_seconds_are_of_whole_tracks(tmp_path):
    opened(tmp_path, {**SETTINGS, "input": "audio"})
    whole = opened(tmp_path, {**SETTINGS, "max_seconds": None}, present="a")
    assert whole["settings"] == {**SETTINGS, "max_seconds": None}  # "input" counts no more
    with refuses("mismatch", MANIFEST):
        opened(tmp_path, {**SETTINGS, "max_seconds": 60.0})


@pytest.mark.parametrize("name", ["a/b.embeddings.npy", "b.times.csv", "failed.csv"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_results_without_a_manifest_are_not_ours(tmp_path, name, overwrite):
    put(tmp_path, name)
    with refuses("exists", tmp_path.name):
        opened(tmp_path, overwrite=overwrite)
    assert files(tmp_path) == {name}
    put(tmp_path / "other", "thesis.tex", "a.logits.npy", "a/.tmp-x.embeddings.npy")
    assert opened(tmp_path / "other", overwrite=overwrite)["sources"] == ["/music"]


@pytest.mark.parametrize(
    ("kind", "removed", "kept"),
    [
        (
            "embeddings",
            ("a.embeddings.npy", "a.times.csv", "s/ä\n.embeddings.npy"),
            ("a.npy", "a.logits.npy", "s/a.embeddings.npy.txt", "a.predictions.csv", "b.times.csv"),
        ),
        ("logits", ("a.logits.npy", "a.times.csv"), ("a.embeddings.npy",)),
        (
            "predictions",
            ("a.predictions.json", "a.predictions.csv", "a.predictions.png"),
            ("a.png", "a.csv", "b.predictions.csv"),
        ),
    ],
)
def test_overwrite_removes_its_own_files_only(tmp_path, kind, removed, kept):
    folder, elsewhere = tmp_path / "7", tmp_path / "elsewhere"
    opened(folder, SETTINGS | {"kind": kind})
    put(elsewhere, *removed)
    put(folder, *kept, *removed, "failed.csv", "warnings-1-of-2.csv", "tracks.csv")
    (folder / "link").symlink_to(elsewhere)
    found = opened(folder, OTHER | {"kind": kind}, "/other", overwrite=True, present="a")
    assert found == {"settings": OTHER | {"kind": kind}, "sources": ["/other"]}
    assert files(folder) == set(kept)
    assert files(elsewhere) == set(removed)


def test_overwrite_refuses_a_link_in_the_place_of_a_result(tmp_path):
    opened(tmp_path / "7")
    put(tmp_path, "elsewhere.npy", "7/a.embeddings.npy")
    (tmp_path / "7/b.embeddings.npy").symlink_to(tmp_path / "elsewhere.npy")
    before = tree(tmp_path)
    with refuses("exists", "7/b.embeddings.npy"):
        opened(tmp_path / "7", OTHER, overwrite=True)
    assert tree(tmp_path) == before


def test_sources(tmp_path):
    opened(tmp_path)
    put(tmp_path, "a.embeddings.npy")
    for present in (None, "a"):
        found = opened(tmp_path, source="/b\udcff", present=present)["sources"]
        assert found == ["/music", "/b\\udcff"]
    with refuses("conflict", tmp_path.name):
        opened(tmp_path, source="/c", present="a")
    # The caller writes its tracks again; those of other sources stay.
    sources = opened(tmp_path, source="/c", present="a", overwrite=True)["sources"]
    assert sources == ["/music", "/b\\udcff", "/c"]
    assert files(tmp_path) == {"a.embeddings.npy"}


def test_settings_that_are_no_text(tmp_path):
    settings = SETTINGS | {"name": "model-\udcff", "sizes": (1, 2), "labels": ["a\udcff"]}
    assert opened(tmp_path, settings) == opened(tmp_path, settings)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff", b"[]", b'{"settings": {}}', b'{"settings": 1, "sources": []}'),
        b'{"settings": {}, "sources": [1]}',
    ],
)
def test_damaged_manifest(tmp_path, content):
    put(tmp_path, "a.embeddings.npy")
    (tmp_path / MANIFEST).write_bytes(content)
    for overwrite in (False, True):
        with refuses("corrupt", MANIFEST):
            opened(tmp_path, overwrite=overwrite)
    assert files(tmp_path) == {"a.embeddings.npy"}


def test_folders_that_cannot_be_written(tmp_path):
    put(tmp_path, "file")
    with refuses("access", "file/7"):
        opened(tmp_path / "file/7")
    with full_disk(10), refuses("access", "new"):
        opened(tmp_path / "new")


def _open_at_once(folder, barrier, number, answers):
    """One of many processes; the last of them comes with other settings."""
    barrier.wait()
    try:
        open_folder(folder, OTHER if number == 7 else SETTINGS, f"/{number % 2}", False, str)
        answers.put((number, ""))
    except InputError as error:
        answers.put((number, error.kind))


def test_many_processes_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(8), context.Queue()
    runs = [
        context.Process(target=_open_at_once, args=(tmp_path, barrier, number, answers))
        for number in range(8)
    ]
    for run in runs:
        run.start()
    kinds = dict(answers.get(timeout=60) for _ in runs)
    for run in runs:
        run.join()
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    refused = {number for number, kind in kinds.items() if kind == "mismatch"}
    if manifest["settings"] == SETTINGS:
        assert refused == {7}
        assert sorted(manifest["sources"]) == ["/0", "/1"]
    else:
        assert refused == set(range(7))
    assert set(kinds.values()) == {"", "mismatch"}
    assert set(os.listdir(tmp_path)) == {MANIFEST, LOCK}


def test_model_hash():
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1), "c": torch.zeros(0)}
    sizes = {"depth": 2, "f": 1.5}
    same = model_hash(state, sizes)
    assert same == model_hash(dict(reversed(state.items())), dict(reversed(sizes.items())))
    assert same == model_hash(state | {"a": state["a"].T.contiguous().T}, sizes)  # in memory
    assert len(same) == 64
    others = [state["a"] + 1e-6, state["a"].half(), state["a"].bfloat16(), state["a"].view(3, 2)]
    hashes = {model_hash(state | {"a": other}, sizes) for other in others}
    hashes |= {model_hash({"x": state["a"], "b": state["b"], "c": state["c"]}, sizes)}
    assert len({same, *hashes, model_hash(state, {"depth": 3, "f": 1.5})}) == 7

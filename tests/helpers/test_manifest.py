"""Results of different settings do not mix in one folder."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from maest.helpers.errors import InputError
from maest.helpers.results.manifest import (
    MANIFEST,
    model_hash,
    open_folder,
    read_manifest,
)

SETTINGS = {
    "kind": "embeddings",
    "model": "ab" * 32,
    "block": 7,
    "hop_seconds": 30.0,
    "quantize": None,
}


def opened(folder: Path, settings=SETTINGS, source="/music", overwrite=False, present=None) -> dict:
    """Open a folder; its manifest then."""
    open_folder(folder, settings, source, overwrite, lambda: present)
    return read_manifest(folder)


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")


def files(folder: Path) -> set[str]:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {name for name in found if not name.endswith(".lock")}


def test_same_settings_again(tmp_path):
    folder = tmp_path / "new" / "7"
    first = opened(folder)
    assert first == {"settings": SETTINGS, "sources": ["/music"]}
    before = (folder / MANIFEST).stat().st_mtime_ns
    put(folder, "a.embeddings.npy")
    for overwrite in (False, True):
        assert opened(folder, overwrite=overwrite, present="a") == first
    assert (folder / MANIFEST).stat().st_mtime_ns == before
    assert files(folder) == {MANIFEST, "a.embeddings.npy"}


def refused(folder: Path, *args, **kwargs) -> InputError:
    with pytest.raises(InputError) as error:
        opened(folder, *args, **kwargs)
    assert error.value.hint
    return error.value


def test_other_settings_are_told_one_by_one(tmp_path):
    opened(tmp_path)
    other = SETTINGS | {"model": "cd" * 32, "hop_seconds": 15.0, "note": "n" * 100}
    error = refused(tmp_path, other)
    assert (error.kind, error.path) == ("mismatch", tmp_path / MANIFEST)
    text = str(error)
    assert "model abababababab, now cdcdcdcdcdcd; hop_seconds 30.0, now 15.0; " in text
    assert "note null, now nnnn" in text
    assert "block" not in text
    assert "quantize" not in text
    assert "n" * 60 not in text
    assert "inference.overwrite=True" in text
    assert read_manifest(tmp_path)["settings"] == SETTINGS


def test_a_setting_that_came_later_counts_as_unchanged(tmp_path):
    opened(tmp_path)
    put(tmp_path, "a.embeddings.npy")
    later = {**SETTINGS, "rounding": "float16"}
    assert opened(tmp_path, later, present="a")["settings"] == later  # and is kept from now on
    assert files(tmp_path) == {MANIFEST, "a.embeddings.npy"}
    assert refused(tmp_path, {**later, "rounding": "none"}).kind == "mismatch"
    assert refused(tmp_path, SETTINGS).kind == "mismatch"  # an older program
    assert refused(tmp_path, {**later, "new": 1, "block": 6}).kind == "mismatch"


def test_long_settings_are_shown_where_they_differ(tmp_path):
    labels = [f"label {i}" for i in range(99)]
    opened(tmp_path, SETTINGS | {"labels": labels})
    with pytest.raises(InputError) as error:
        opened(tmp_path, SETTINGS | {"labels": [*labels[:50], "another", *labels[51:]]})
    assert "labels label 50, now another" in str(error.value)
    assert "label 40" not in str(error.value)


@pytest.mark.parametrize("name", ["a/b.embeddings.npy", "b.times.csv", "failed.csv"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_no_manifest_tells_of_is_not_ours(tmp_path, name, overwrite):
    put(tmp_path, name)
    assert refused(tmp_path, overwrite=overwrite).kind == "exists"
    assert files(tmp_path) == {name}


def test_files_that_are_no_results_do_not_matter(tmp_path):
    put(tmp_path, "thesis.tex", "a.logits.npy", "a/.tmp-x.embeddings.npy")
    assert opened(tmp_path)["sources"] == ["/music"]


def test_overwrite_removes_its_own_files_only(tmp_path):
    folder, elsewhere = tmp_path / "7", tmp_path / "elsewhere"
    opened(folder)
    put(elsewhere, "a.embeddings.npy")
    kept = ("a.npy", "a.logits.npy", "s/a.embeddings.npy.txt", "a.predictions.csv", "lap.times.csv")
    put(folder, *kept, "a.embeddings.npy", "a.times.csv", "s/ä\n.embeddings.npy")
    put(folder, "failed.csv", "warnings-1-of-2.csv")
    (folder / "link").symlink_to(elsewhere)
    found = opened(folder, {**SETTINGS, "block": 6}, "/other", overwrite=True, present="a")
    assert found == {"settings": {**SETTINGS, "block": 6}, "sources": ["/other"]}
    assert files(folder) == {*kept, MANIFEST}
    assert files(elsewhere) == {"a.embeddings.npy"}


def test_overwrite_refuses_a_link_in_the_place_of_a_result(tmp_path):
    opened(tmp_path / "7")
    put(tmp_path, "elsewhere.npy", "7/a.embeddings.npy")
    link = tmp_path / "7/b.embeddings.npy"
    link.symlink_to(tmp_path / "elsewhere.npy")
    error = refused(tmp_path / "7", {**SETTINGS, "block": 6}, overwrite=True)
    assert (error.kind, error.path) == ("exists", link)
    assert files(tmp_path) == {"elsewhere.npy", *(f"7/{n}" for n in files(tmp_path / "7"))}
    assert files(tmp_path / "7") == {MANIFEST, "a.embeddings.npy", "b.embeddings.npy"}


def test_overwrite_of_predictions_removes_what_stands_beside_them(tmp_path):
    def made(settings: dict) -> None:
        settings = settings | {"kind": "predictions"}
        open_folder(tmp_path, settings, "/music", True, lambda: None)

    made(SETTINGS)
    put(tmp_path, "a.predictions.json", "a.predictions.csv", "a.predictions.png", "a.png", "a.csv")
    made({**SETTINGS, "block": 6})
    assert files(tmp_path) == {"a.png", "a.csv", MANIFEST}


def test_sources(tmp_path):
    opened(tmp_path)
    put(tmp_path, "a.embeddings.npy")
    assert opened(tmp_path, source="/b\udcff")["sources"] == ["/music", "/b\\udcff"]
    assert opened(tmp_path, source="/b\udcff", present="a")["sources"] == ["/music", "/b\\udcff"]
    error = refused(tmp_path, source="/c", present="a")
    assert error.kind == "conflict"
    assert all(text in str(error) for text in ("'a'", "/music", "/b\\udcff", "/c"))
    assert files(tmp_path) == {MANIFEST, "a.embeddings.npy"}
    # The caller makes its own tracks again; those of the others stay.
    sources = opened(tmp_path, source="/c", present="a", overwrite=True)["sources"]
    assert sources == ["/music", "/b\\udcff", "/c"]
    assert files(tmp_path) == {MANIFEST, "a.embeddings.npy"}


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
        error = refused(tmp_path, overwrite=overwrite)
        assert (error.kind, error.path) == ("corrupt", tmp_path / MANIFEST)
    assert files(tmp_path) == {MANIFEST, "a.embeddings.npy"}


def test_folder_that_cannot_be_made(tmp_path):
    put(tmp_path, "file")
    error = refused(tmp_path / "file" / "7")
    assert (error.kind, error.path) == ("access", tmp_path / "file" / "7")


def test_manifest_that_cannot_be_written(tmp_path, monkeypatch):
    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maest.helpers.results.manifest.write_json", full)
    assert "No space left" in str(refused(tmp_path))


def _open_at_once(folder, barrier, number, answers):
    """One of many processes; the last of them comes with other settings."""
    settings = {**SETTINGS, "block": 6} if number == 7 else SETTINGS
    barrier.wait()
    try:
        open_folder(folder, settings, f"/{number % 2}", False, lambda: None)
        answers.put((number, "fine"))
    except InputError as error:
        answers.put((number, str(error)))


def test_many_processes_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, answers = context.Barrier(8), context.Queue()
    runs = [
        context.Process(target=_open_at_once, args=(tmp_path, barrier, number, answers))
        for number in range(8)
    ]
    for run in runs:
        run.start()
    said = dict(answers.get(timeout=60) for _ in runs)
    for run in runs:
        run.join()
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    losers = {number for number, words in said.items() if words != "fine"}
    if manifest["settings"] == SETTINGS:
        assert losers == {7}
        assert sorted(manifest["sources"]) == ["/0", "/1"]
    else:
        assert losers == set(range(7))
    assert all("block" in said[number] for number in losers)
    assert set(os.listdir(tmp_path)) == {MANIFEST, ".manifest.lock"}


def test_model_hash():
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1), "c": torch.zeros(0)}
    same = model_hash(state, {"depth": 2, "f": 1.5})
    assert same == model_hash(dict(reversed(state.items())), {"f": 1.5, "depth": 2})
    assert len(same) == 64
    reshaped = {**state, "a": torch.arange(6.0).reshape(3, 2)}
    others = [
        model_hash({**state, "a": state["a"] + 1e-6}, {"depth": 2, "f": 1.5}),
        model_hash({**state, "a": state["a"].half()}, {"depth": 2, "f": 1.5}),
        model_hash({**state, "a": state["a"].bfloat16()}, {"depth": 2, "f": 1.5}),
        model_hash(reshaped, {"depth": 2, "f": 1.5}),
        model_hash({"x": state["a"], "b": state["b"], "c": state["c"]}, {"depth": 2, "f": 1.5}),
        model_hash(state, {"depth": 3, "f": 1.5}),
    ]
    assert len({same, *others}) == 7


def test_model_hash_does_not_see_how_a_tensor_lies_in_memory():
    values = torch.arange(6.0).reshape(2, 3)
    assert model_hash({"a": values}, {}) == model_hash({"a": values.T.contiguous().T}, {})


def test_results_from_before_a_setting_came(tmp_path):
    """They are of whole tracks: those of the central minute do not mix with them."""
    opened(tmp_path)
    whole = opened(tmp_path, {**SETTINGS, "max_seconds": None})
    assert whole["settings"] == {**SETTINGS, "max_seconds": None}
    error = refused(tmp_path, {**SETTINGS, "max_seconds": 60.0})
    assert (error.kind, error.path) == ("mismatch", tmp_path / MANIFEST)
    assert read_manifest(tmp_path) == whole


@pytest.mark.parametrize("given", ["audio", "log-mel files"])
def test_audio_and_log_mel_files_are_one_setting_no_more(tmp_path, given):
    opened(tmp_path, {**SETTINGS, "input": given})
    put(tmp_path, "a.embeddings.npy")
    assert opened(tmp_path, present="a")["settings"] == SETTINGS
    assert files(tmp_path) == {MANIFEST, "a.embeddings.npy"}
    assert refused(tmp_path, {**SETTINGS, "block": 6}).kind == "mismatch"

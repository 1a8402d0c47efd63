"""The command `maest`: what it imports, exit codes, `embed` and `models`."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from libraries import write_wav
from maest_command import Done, maest, refused, save_model_of_moods
from sounds import chords, write

import maest as package
from maest.command import SUBCOMMANDS
from maest.helpers.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model_of_moods(tmp_path_factory.mktemp("model") / "moods")


@pytest.fixture
def songs(tmp_path) -> Path:
    """Two songs of 5 s, of which the model takes 2 at a time, and a file that is none."""
    for i, name in enumerate(("x/a.flac", "y/b.mp3")):
        (tmp_path / "songs" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "songs" / name, np.roll(chords(5, 16_000), 9999 * i, 0), 16_000)
    (tmp_path / "songs/y/broken.mp3").write_bytes(b"no song")
    return tmp_path / "songs"


# ---- the command -----------------------------------------------------------------------------


def python(*line: str) -> str:
    done = subprocess.run([sys.executable, *line], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_imports_neither_torch_nor_sacred():
    code = (
        "import sys; from maest.command import create_app\n"
        "try: create_app()(['tag', '--help'], prog_name='maest')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(sorted({'torch', 'av', 'numpy', 'sacred', 'pytorch_lightning'} & set(sys.modules)))"
    )
    assert python("-c", code).splitlines()[-1] in ("[]", "['numpy']")


def test_tags_need_neither_sacred_nor_lightning(tmp_path, model):
    write_wav(tmp_path / "a.wav", 0, 16_000)
    code = (
        "import sys; from maest.command import create_app\n"
        "sys.modules |= dict.fromkeys(('sacred', 'pytorch_lightning', 'sklearn', 'matplotlib'))\n"
        f"create_app()(['tag', {str(tmp_path / 'a.wav')!r}, '--model', {str(model)!r}])"
    )
    assert "a.wav" in python("-c", code)


def test_it_is_a_module_too():
    assert python("-m", "maest", "--version").strip() == package.__version__


def test_each_subcommand_has_help_with_an_example():
    for name in SUBCOMMANDS:
        assert f"Example:\n    maest {name}" in maest(name, "--help").out
    assert all(name in maest("--help").out for name in SUBCOMMANDS)


def test_shells_complete_it():
    assert "--install-completion" in maest("--help").out


@pytest.mark.parametrize("line", [["tagg"], ["tag", "--top", "0", "x"], ["index"], ["tag"]])
def test_what_cannot_be_understood_ends_with_2(line):
    assert Done(*line).code == 2


def test_an_error_is_one_line(tmp_path, model):
    missing = tmp_path / "a\nb\udcff.mp3"
    line = refused("missing", "tag", missing, "--model", model)
    assert line.isprintable()
    refused("empty", "tag", tmp_path, "--model", model)
    refused("unknown", "tag", ROOT / "README.md", "--model", "discogs-maest-3s")


def test_a_bug_is_not_hidden(monkeypatch):
    monkeypatch.setattr("maest.command.models._names", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Done("models")


# ---- embed -----------------------------------------------------------------------------------


def test_embeddings_as_npz(songs, model, tmp_path):
    done = Done("embed", songs, "-o", tmp_path / "my.npz", "--model", model, "--block", 1, "--json")
    (about,) = done.lines
    assert (done.code, about["tracks"], about["rows"], about["failed"]) == (1, 2, 2, 1)
    with np.load(tmp_path / "my.npz") as my:
        assert my["paths"].tolist() == [str(songs / "x/a.flac"), str(songs / "y/b.mp3")]
        assert my["embeddings"].shape == (2, 3, 32)
        assert my["times"][:, 0].tolist() == [0, 0]
        assert my["times"][:, 1] == pytest.approx([5, 5], abs=0.1)
        assert (str(my["model"]), int(my["block"])) == (str(model.resolve()), 1)
        assert str(my["model_hash"]) == about["model_hash"]
        extractor = package.Extractor(model, blocks=1)
        ours = extractor(songs / "x/a.flac").embeddings[1]
        np.testing.assert_allclose(my["embeddings"][0], ours, rtol=1e-4, atol=1e-5)


def test_embeddings_of_each_window_as_parquet(songs, model, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    (songs / "y/broken.mp3").unlink()
    maest("embed", songs, "-o", tmp_path / "my.parquet", "--model", model, "--each-window")
    table = parquet.read_table(tmp_path / "my.parquet")
    rows = table.to_pylist()
    assert [row["path"] for row in rows[:3]] == [str(songs / "x/a.flac")] * 3
    assert rows[0]["path_bytes"] == bytes(songs / "x/a.flac")
    assert [row["start"] for row in rows[:2]] == [0, 2]
    assert len(rows[0]["embedding"]) == 96
    assert b"model_hash" in table.schema.metadata


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "embeddings.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_embeddings_as_a_file_a_track(songs, model, tmp_path):
    assert Done("embed", songs, "-o", tmp_path / "my", "--model", model).code == 1
    rows = table(tmp_path / "my")
    assert [row["file"] for row in rows] == ["x/a.flac.npy", "y/b.mp3.npy"]
    assert np.load(tmp_path / "my" / rows[0]["file"]).shape == (1, 3, 32)
    refused("mismatch", "embed", songs, "-o", tmp_path / "my", "--model", model, "--block", 0)


def test_songs_of_one_name_have_a_file_each(model, tmp_path):
    paths = [write_wav(tmp_path / f"{i}/cd/01.wav", i, 16_000) for i in range(3)]
    given = paths[0].parent, paths[1].parent, paths[2]  # two folders and a file
    maest("embed", *given, "-o", tmp_path / "my", "--model", model)
    rows = {Path(row["path"]): tmp_path / "my" / row["file"] for row in table(tmp_path / "my")}
    assert (set(rows), len(set(rows.values()))) == (set(paths), 3)
    for song in package.embed(paths, model):
        np.testing.assert_allclose(np.load(rows[song.path]), song.embeddings, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("song.npz", "exists"),
        ("song.parquet", "exists"),
        ("folder", "exists"),
        ("song.csv", "unsupported"),
        ("song.npy", "unsupported"),
    ],
)
def test_files_of_others_are_not_replaced(songs, tmp_path, name, kind):
    (tmp_path / "folder").mkdir()
    for file in ("folder/x", "song.npz", "song.parquet"):
        (tmp_path / file).write_text("mine")
    refused(kind, "embed", songs, "-o", tmp_path / name)


def test_embeddings_in_python(songs, model):
    found = list(package.embed(songs, model, each_window=True))
    assert [song.error is None for song in found] == [True, True, False]
    assert found[0].embeddings.shape == (3, 3, 32)
    assert found[0].times[-1, 1] == pytest.approx(5, abs=0.1)
    with pytest.raises(InputError):
        package.embed(songs, model, block="0,1")


# ---- models ----------------------------------------------------------------------------------


def test_models_are_listed_with_licence_size_and_labels():
    (listed,) = maest("models", "--json").lines
    shipped = next(row for row in listed["models"] if row["name"] == "maest-tiny-music")
    assert (shipped["here"], shipped["labels"]) == (True, 43)
    assert shipped["licence"]
    assert shipped["megabytes"] > 0
    assert "maest-tiny-music" in maest("models").out


def test_a_model_is_fetched_once():
    (fetched,) = maest("models", "fetch", "maest-tiny-music", "--json").lines
    assert Path(fetched["path"]).exists()
    assert "maest-tiny-music" in refused("unknown", "models", "fetch", "maest-tiny-musi")

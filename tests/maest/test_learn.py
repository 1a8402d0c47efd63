"""Labels of one's own: what is learned, how honestly it is judged, and who may use it."""

from __future__ import annotations

import csv
import json
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from libraries import each
from made_up import refuses
from music import save_small_model, tone
from mutagen.flac import FLAC

import maest
from maest.helpers.results.manifest import model_hash
from maest.learn import Report, learn
from maest.library import Analysis, Library, Model
from maest.models import get_maest
from maest.models.learned import Learned, load_base, load_learned, save_learned

MODEL = Model("maest-tiny-scores", "0123", {"block": 7})
D = 12
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def library(tmp_path):
    with Library(tmp_path / "data" / "library.sqlite") as library:
        yield library


class Collection:
    """Files of half a tenth of a second, with tags and embeddings that a test makes up."""

    def __init__(self, folder: Path, library: Library) -> None:
        self.folder, self.library = folder, library
        self.rows: list[list[str]] = []
        self.embeddings: dict[str, np.ndarray] = {}
        self.rng = np.random.default_rng(0)

    def add(self, name: str, labels: Iterable[str], embedding: np.ndarray, **tags: str) -> None:
        path = self.folder / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, self.rng.normal(0, 0.1, 400), 8_000)
        if tags:
            file = FLAC(path)
            file.update(tags)
            file.save()
        noise = self.rng.normal(0, 0.4, (3, D))  # 0.2 would make near copies
        self.embeddings[path.name] = embedding + noise
        self.rows.append([f"{name}.flac", *labels])

    def learn(self, header: str = "path,label", **options) -> Report:
        def analysis(path: Path) -> Analysis:
            return Analysis([("a", 0.5)], self.embeddings[path.name], 0.05)

        self.library.index(self.folder, MODEL, each(analysis))
        table = self.folder / "labels.csv"
        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header.split(","), *self.rows])
        return learn(self.library, table, self.folder.parent / "mine", **options)

    def direction(self) -> np.ndarray:
        return self.rng.normal(0, 1, (3, D))


@pytest.fixture
def collection(tmp_path, library) -> Collection:
    return Collection(tmp_path / "music", library)


def albums(
    collection: Collection, labels: Callable[[int, int], list[str]], number: int = 12
) -> dict[str, np.ndarray]:
    """So many albums of four tracks; an embedding is the sum of its labels' directions."""
    directions = {label: collection.direction() for label in ("calm", "loud", "fast")}
    for album in range(number):
        for track in range(4):
            own = labels(album, track)
            where = sum((directions[label] for label in own), np.zeros((3, D)))
            tags = {"artist": f"artist {album % 5}", "album": f"album {album}"}
            collection.add(f"{album}/{album}-{track}", own, where, **tags)
    return directions


# ---- what is learned -----------------------------------------------------------------------------


def test_one_label_a_track(collection):
    names = ["calm", "loud", "fast"]
    directions = albums(collection, lambda album, track: [names[(album + track) % 3]])
    report = collection.learn()
    assert (report.task, report.tracks, report.groups, report.folds) == ("single-label", 48, 12, 5)
    assert report.split_by == {"album and artist tags": 48}
    assert [(r.label, r.examples) for r in report.labels] == [(n, 16) for n in sorted(names)]
    assert report.warnings == []
    assert report.figures["accuracy"]["value"] > 0.9
    assert report.figures["accuracy"]["chance"] < 0.5
    for figure in (report.figures["ap"], report.labels[0].ap):
        assert 0.5 < figure["low"] <= figure["value"] <= figure["high"] <= 1
    learned = load_learned(report.folder)
    assert (learned.base, learned.base_hash, learned.block) == (MODEL.name, MODEL.hash, 7)
    logits = learned.logits(np.stack([directions[label] for label in learned.labels]))
    assert logits.argmax(-1).tolist() == [0, 1, 2]
    assert torch.allclose(learned.activations(logits).sum(-1), torch.ones(3))


def test_several_labels_and_none(collection):
    names = ["calm", "loud", "fast"]
    kinds = [[], ["calm"], ["loud", "fast"], ["calm", "fast"]]
    directions = albums(collection, lambda album, track: kinds[(album + track) % 4])
    report = collection.learn("path,label,label")
    assert (report.task, report.tracks) == ("multi-label", 48)
    assert {r.label: r.examples for r in report.labels} == {"calm": 24, "fast": 24, "loud": 12}
    assert set(report.figures) == {"ap", "roc_auc"}
    assert report.figures["ap"]["value"] > 0.9
    learned = load_learned(report.folder)
    tags = learned.activations(learned.logits(directions["loud"] + directions["fast"])) > 0.5
    assert dict(zip(learned.labels, tags.tolist(), strict=True)) == {
        name: name != "calm" for name in sorted(names)
    }
    about = json.loads((report.folder / "learned.json").read_text("utf-8"))
    assert about["report"]["figures"]["ap"]["value"] == report.figures["ap"]["value"]


def test_learned_again_it_is_the_same(collection):
    albums(collection, lambda album, track: [["calm", "loud"][track % 2]])
    first, content = collection.learn(), (collection.folder.parent / "mine/learned.json")
    before = content.read_bytes()
    assert collection.learn() == first
    assert content.read_bytes() == before


# ---- how it is judged ----------------------------------------------------------------------------


def test_an_album_is_not_judged_by_what_was_learned_from_it(collection):
    """Labels of albums that mean nothing, and albums that are easy to tell apart."""
    for album in range(16):
        where = 2 * collection.direction()
        for track in range(4):
            tags = {"artist": f"artist {album}", "album": "Greatest Hits"}
            label = ["calm", "loud"][album % 2]
            collection.add(f"x/{album}-{track}", [label], where, **tags)
    # The same folder and album: a compilation, if the artists did not say otherwise.
    report = collection.learn()
    assert report.split_by == {"track": 64}  # nothing else is left
    assert report.figures["ap"]["value"] > 0.95
    assert len(report.warnings) == 1
    for row in collection.rows:
        path = collection.folder / row[0]
        file = FLAC(path)
        file["album"] = file["artist"][0]
        file.save()
    report = collection.learn()
    assert (report.groups, report.split_by) == (16, {"album and artist tags": 64})
    assert report.figures["ap"]["value"] < 0.8
    assert report.warnings == []


@pytest.mark.parametrize(
    ("tags", "split_by", "groups"),
    [
        (lambda i: {"artist": f"{i // 2}", "album": "Hits"}, "album and artist tags", 8),
        (lambda i: {"albumartist": f"{i // 2}", "artist": f"{i}", "album": "Hits"},
         "album and artist tags", 8),
        (lambda i: {"artist": f"Zoë {i // 4}" if i % 2 else f"ZOË {i // 4}"}, "artist tag", 4),
        (lambda i: {"album": "Hits"}, "folder", 16),
        (lambda i: {}, "folder", 16),
    ],
)  # fmt: skip
def test_what_keeps_tracks_together(collection, tags, split_by, groups):
    direction = collection.direction()
    for i in range(16):
        sign = -1 if i % 2 else 1
        extra = 3 * collection.direction()  # so that none is a near copy of another
        collection.add(
            f"{i}/{i}", ["calm" if i % 2 else "loud"], sign * direction + extra, **tags(i)
        )
    report = collection.learn()
    assert (report.split_by, report.groups) == ({split_by: 16}, groups)


def test_an_artists_track_without_album_is_of_any_of_the_albums(collection):
    for i in range(8):
        tags = {"artist": "one", "album": f"{i}"} if i else {"artist": "one"}
        collection.add(f"{i}/{i}", [["calm", "loud"][i % 2]], 3 * collection.direction(), **tags)
    report = collection.learn()
    assert report.split_by == {"track": 8}


def test_near_copies_stay_together(collection):
    directions = [3 * collection.direction() for _ in range(8)]
    for i in range(16):  # the same recording in two folders
        collection.add(f"{i}/{i}", [["calm", "loud"][i % 2]], 40 * directions[i // 2])
    assert collection.learn().groups == 8


@pytest.mark.parametrize("others", [0, 20])
def test_few_tracks_are_no_near_copies(collection, others):
    """They have much in common, as all music has: a library shows what."""
    common = 40 * collection.direction()
    for i in range(8 + others):
        collection.add(f"{i // 2}/{i}", [["calm", "loud"][i % 2]], common + collection.direction())
    del collection.rows[8:]
    report = collection.learn()
    assert (report.groups, report.split_by) == (4, {"folder": 8})


def test_a_label_that_only_one_album_has_is_not_tested(collection):
    albums(
        collection, lambda album, track: ["fast"] if album == 0 else [["calm", "loud"][track % 2]]
    )
    report = collection.learn()
    fast = next(row for row in report.labels if row.label == "fast")
    assert (fast.examples, fast.groups, fast.ap, fast.roc_auc) == (4, 1, None, None)
    assert len(report.warnings) == 2  # few examples, and this
    assert report.figures["ap"]["value"] > 0.9
    assert report.figures["accuracy"]["value"] > 0.9  # of the others
    assert load_learned(report.folder).thresholds[1] == 0.5


@pytest.mark.parametrize("several", [False, True])
def test_folders_that_are_labels_test_nothing(collection, several):
    """How beginners sort: a folder, or an album, a label. Then an album tells the label."""
    for i in range(24):
        labels = [["calm", "loud", "fast"][i % 3], *["any"] * several]
        collection.add(f"{labels[0]}/{i}", labels, collection.direction())
    report = collection.learn("path,label,label")
    assert (report.split_by, report.groups, report.figures) == ({"folder": 24}, 3, {})
    assert [label.ap for label in report.labels] == [None] * 3
    assert len(report.warnings) == 2 + several  # few examples, and this; a label that all have
    assert load_learned(report.folder).labels == sorted(["calm", "loud", "fast"])


# ---- the table -----------------------------------------------------------------------------------


def test_paths_of_the_table(collection, tmp_path, monkeypatch):
    albums(collection, lambda album, track: [["calm", "loud"][track % 2]], 4)
    folder = collection.folder
    collection.add("Zoë/a", ["calm"], collection.direction())
    (folder / "copies").mkdir()
    (folder / "copies/copy.flac").write_bytes((folder / "0/0-0.flac").read_bytes())
    rows = collection.rows
    rows[0][0] = str(folder / rows[0][0])  # absolute
    rows[1][0] = rows[1][0].replace("/", "\\")
    rows[-1][0] = unicodedata.normalize("NFD", rows[-1][0])
    rows += [["copies/copy.flac", "calm"], ["gone.flac", "loud"]]
    report = collection.learn()
    assert report.not_in_library == ["gone.flac"]
    assert report.tracks == 17  # a copy is no track more
    monkeypatch.chdir(folder)  # from here, too
    (folder / "labels.csv").rename(tmp_path / "labels.csv")
    again = learn(collection.library, tmp_path / "labels.csv", tmp_path / "mine")
    assert again.tracks == 17


@pytest.mark.parametrize(
    "text",
    [
        "path,label,label\n{},a,b\n{},b\n{}\n",
        "path\ttags\n{}\ta;b\n{}\tb\n{}\t\n",
        "file,a,b\n{},1,1\n{},0,1\n{},,0\n",
        "path\tfirst\tsecond\n{}\ta\tb\n{}\tb\t\n{}\t\t\n",
        "path,artist,genre,genre 2\n{},x,a,b\n{},y,b,\n{},z,,\n",
    ],
)
def test_ways_to_write_labels(tmp_path, text):
    from maest.datasets.tables import read_labels

    (tmp_path / "t.csv").write_text(text.format("1.mp3", "2.mp3", "3.mp3"))
    found = read_labels(tmp_path / "t.csv")
    assert (found.paths, found.labels) == (["1.mp3", "2.mp3", "3.mp3"], ["a", "b"])
    assert found.targets.tolist() == [[True, True], [False, True], [False, False]]


def test_a_table_that_cannot_be_learned_from(collection, tmp_path):
    with refuses("missing", "library.sqlite"):
        (tmp_path / "t.csv").write_text("path,label\na.mp3,calm\n")
        learn(collection.library, tmp_path / "t.csv", tmp_path / "mine")
    for i in range(6):
        collection.add(f"{i}/{i}", ["calm"], collection.direction())
    with refuses("empty", "labels.csv"):  # all have the only label
        collection.learn()
    collection.rows = [["a.flac", "calm"], ["b.flac", "loud"]]
    with refuses("empty", "labels.csv"):
        collection.learn()
    (tmp_path / "t.csv").write_text("a.mp3,calm\nb.mp3,loud\n")
    with refuses("missing", "t.csv"):
        learn(collection.library, tmp_path / "t.csv", tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_files_of_others_are_not_replaced(collection):
    albums(collection, lambda album, track: [["calm", "loud"][track % 2]], 3)
    mine = collection.folder.parent / "mine"
    mine.mkdir()
    (mine / "learned.json").write_text("{}")
    with refuses("exists", "mine"):
        collection.learn()
    assert (mine / "learned.json").read_text() == "{}"


# ---- its use -------------------------------------------------------------------------------------


@pytest.fixture
def learned(tmp_path) -> tuple[Learned, Path]:
    """Labels on block 1 of a small model."""
    base = save_small_model(tmp_path / "base")
    net = get_maest(base)
    torch.manual_seed(1)
    weight, bias = 5 * torch.randn(2, 3 * net.embed_dim), torch.randn(2)
    own = Learned(["calm", "loud"], "multi-label", [0.5, None], weight, bias, 1, str(base),
                  model_hash(net.state_dict(), net.sizes()))  # fmt: skip
    return own, save_learned(tmp_path / "mine", own, {})


def test_music_is_tagged_as_the_embedding_says(learned, tmp_path):
    own, folder = learned
    soundfile.write(tmp_path / "song.flac", tone(7.5, 1), 16_000)
    (embedded,) = maest.embed(tmp_path / "song.flac", str(tmp_path / "base"), block=1)
    logits = own.logits(embedded.embeddings[0])
    (song,) = maest.tag(tmp_path / "song.flac", folder, threshold=0.0)
    expected = dict(zip(own.labels, own.activations(logits).tolist(), strict=True))
    assert dict(song.tags) == pytest.approx(expected, abs=1e-4)
    (song,) = maest.tag(tmp_path / "song.flac", folder)
    assert [label for label, _ in song.tags] == ["calm"] * (expected["calm"] >= 0.5)
    assert song.result.patch_activations.shape == (4, 2)
    (other,) = maest.embed(tmp_path / "song.flac", maest.Analyser(folder, block=0))
    assert other.embeddings.shape == (1, 3, 32)


def test_a_library_keeps_it_apart_from_its_base(learned, tmp_path):
    own, folder = learned
    base, mine = maest.Analyser(tmp_path / "base", block=1), maest.Analyser(folder, block=1)
    assert base.model.hash == mine.model.hash == own.base_hash
    assert mine.model.settings == {"block": 1, "learned": own.hash}
    few = maest.Analyser(tmp_path / "base", max_windows=3)
    assert few.model.settings == {"block": 2, "max_windows": 3}


def test_another_base_is_refused(learned, tmp_path):
    own, folder = learned
    assert load_base(own, folder).depth == 3
    (tmp_path / "base").rename(tmp_path / "away")
    with refuses("missing", "base"):
        maest.Analyser(folder)
    other = save_small_model(tmp_path / "base", ["other", "labels", "here", "now"])
    with refuses("mismatch", "base"):
        maest.Analyser(folder)
    assert other.is_dir()


def test_a_damaged_model_is_refused(learned):
    own, folder = learned
    about, weights = folder / "learned.json", folder / "learned.safetensors"
    whole = about.read_bytes(), weights.read_bytes()
    other = Learned(own.labels, own.task, None, own.weight + 1, own.bias, 1, own.base, "0")
    save_learned(folder, other, {})
    about.write_bytes(whole[0])  # a save that was cut off
    with refuses("corrupt", "mine"):
        load_learned(folder)
    weights.write_bytes(whole[1][:50])
    with refuses("corrupt", "mine"):
        load_learned(folder)
    weights.unlink()
    with refuses("missing", "mine"):
        load_learned(folder)

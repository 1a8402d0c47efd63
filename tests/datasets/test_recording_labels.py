"""Labels of recordings: from a teacher's tags, and from what is known."""

import numpy as np
import pytest
from made_up import refuses

from maest.datasets.recordings.labels import Label, Translation, read_vocabulary, track_labels
from maest.datasets.scores.tables import COLLECTIONS, ORIGINS

NAN = np.nan


def test_each_rule_of_the_table():
    labels = [
        Label("A", teacher=("x", "y"), known=("a", "b")),
        Label("B", known=("b",), absent_with=("A",)),
        Label("C", teacher=("z",), implied_by=("a", "b")),
        Label("D", teacher=("z",), excluded_by=("b",)),
    ]
    made = Translation(labels, ["x", "y", "z"], ["a", "b"])
    heard = np.array([[0.1, 0.3, 0.9], [0.8, 0.2, 0.1]], np.float16)
    unknown = made.windows(heard)
    expected = np.array([[0.3, NAN, 0.9, 0.9], [0.8, 0, 0.1, 0.1]], np.float16)
    np.testing.assert_array_equal(unknown, expected)
    np.testing.assert_allclose(track_labels(unknown), [0.55, 0, 0.5, 0.5], atol=1e-3)
    np.testing.assert_array_equal(
        made.windows(heard, np.array([0, 0])),
        [[0, 0, *[np.float16(0.9)] * 2], [0, 0, *[np.float16(0.1)] * 2]],
    )
    np.testing.assert_array_equal(made.windows(heard, np.array([NAN, 1])), [[1, 1, 1, 0]] * 2)
    half = made.windows(heard, np.array([0, NAN]))
    np.testing.assert_array_equal(half[:, 0], [0, 0])
    np.testing.assert_array_equal(half[:, 1:], expected[:, 1:])


def test_sets_of_known_labels_exclude_a_teachers(tmp_path):
    table = tmp_path / "labels.toml"
    table.write_text(
        '[sets]\nPlayed = ["Metre---*", "Mass"]\n'
        '[labels]\nDrums = { teacher = ["x"], excluded_by = ["Played"] }\n',
        "utf-8",
    )
    known = ["Mass", "Metre---Duple", "Massive"]
    made = Translation(read_vocabulary(table).labels, ["x"], known)
    cases = {(1, 0, 0): 0, (0, 1, 0): 0, (0, 0, 1): 0.5, (NAN, NAN, NAN): 0.5, (0, 0.4, 0): 0.5}
    for row, expected in cases.items():
        windows = made.windows(np.array([[0.5]], np.float16), np.array(row))
        assert windows.tolist() == [[expected]], row


def test_every_style_of_scores_excludes_what_its_teacher_mistakes():
    styles = {row.style for row in COLLECTIONS.values() if row.style} | {*ORIGINS.values()}
    known = sorted(styles | {"Metre---Duple", "Mode---Minor", "Texture---Four Voices"})
    (drums,) = (x for x in read_vocabulary().labels if x.name == "Instrument---Drums")
    made = Translation([drums], ["mtt/drums"], known)
    for row in np.eye(len(known)):
        assert made.windows(np.array([[0.9]], np.float16), row).tolist() == [[0]]


def test_a_cautious_teacher_is_shifted():
    tags = np.array([[0, 0.2, 0.5, 1], [0.5, 0.5, 0.5, 0.2]], np.float32)
    levelled = read_vocabulary().levelled(tags, ["mtt/a", "msd/b", "Genre---C", "mtt/d"])
    np.testing.assert_allclose(levelled, [[0, 0.5, 0.5, 1], [0.8, 0.8, 0.5, 0.5]], atol=1e-5)


def test_every_tag_of_musicnn_has_a_place():
    vocabulary = read_vocabulary()
    tags = [tag for label in vocabulary.labels for tag in label.teacher]
    assert len(tags) == len(set(tags))
    assert len({*tags, *vocabulary.left_out}) == 100
    assert all(reason for reason in vocabulary.left_out.values())
    assert all("---" in label.name for label in vocabulary.labels)
    assert {label.name.split("---")[0] for label in vocabulary.labels} == {
        "Instrument",
        "Genre",
        "Mood",
        "Voice",
    }
    assert all(label.teacher or label.absent_with for label in vocabulary.labels)


def test_a_model_of_this_vocabulary_can_teach():
    vocabulary = read_vocabulary()
    names = [label.name for label in vocabulary.labels]
    kept, unmade = vocabulary.kept(names, ())
    assert ([label.name for label in kept], unmade, vocabulary.unused(names)) == (names, [], [])
    tags = np.random.default_rng(0).random((2, len(names))).astype(np.float16)
    np.testing.assert_array_equal(Translation(kept, names).windows(tags), tags)
    with refuses("mismatch", setting="--labels"):
        vocabulary.kept(["rumba"], ())


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("corrupt", "labels"),
        ("empty", ""),
        ("unknown", "[label]"),
        ("invalid", '[labels]\nA = "x"'),
        ("invalid", '[labels]\nA = { tag = ["x"] }'),
        ("invalid", '[labels]\nA = { known = ["x"], absent_with = ["B"] }'),
        ("conflict", '[labels]\nA = { teacher = ["x"] }\n[left_out]\nx = "why"'),
        *(("invalid", f"{name} = 3") for name in ("labels", "sets", "left_out", "middle")),
        ("invalid", '[sets]\nS = "A"\n[labels]\nA = { teacher = ["m/x"] }'),
        ("invalid", '[left_out]\n"m/y" = 3\n[labels]\nA = { teacher = ["m/x"] }'),
        ("invalid", '[middle]\nm = "0.2"\n[labels]\nA = { teacher = ["m/x"] }'),
        ("invalid", '[middle]\nm = 1.0\n[labels]\nA = { teacher = ["m/x"] }'),
        ("unknown", '[middle]\nn = 0.2\n[labels]\nA = { teacher = ["m/x"] }'),
        ("unknown", '[labels]\nA = { teacher = ["x"], excluded_by = ["Mode---Minor"] }'),
    ],
)
def test_tables_that_are_refused(tmp_path, kind, text):
    (tmp_path / "labels.toml").write_text(text, "utf-8")
    with refuses(kind, "labels.toml", "--labels"):
        read_vocabulary(tmp_path / "labels.toml")

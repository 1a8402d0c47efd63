"""Every refusal of a user's input names its kind, its place and what to do next."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path
from typing import get_args

import pytest

from maest.helpers.errors import InputError, Kind

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("config", "datasets", "experiments", "helpers", "models")
FILES = [p for room in ROOMS for p in ROOT.joinpath(room).rglob("*.py")]
FILES = sorted([*FILES, *ROOT.glob("*.py")])


def family(trees: dict[Path, ast.Module]) -> set[str]:
    """InputError and what is derived from it, by name."""
    names, bases = {"InputError"}, {}
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {ast.unparse(base).split(".")[-1] for base in node.bases}
    while more := {name for name, of in bases.items() if of & names} - names:
        names |= more
    return names


def refusals() -> list[tuple[str, ast.Call]]:
    trees = {path: ast.parse(path.read_text("utf-8")) for path in FILES}
    names = family(trees)
    return [
        (f"{path.relative_to(ROOT)}:{node.lineno}", node)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in names
    ]


def test_each_says_what_to_do_and_is_of_a_known_kind():
    """The place may be added by a caller; `command_line.bad` looks at the whole message."""
    found, wrong = refusals(), []
    assert len(found) > 200
    for where, call in found:
        given = {word.arg: word.value for word in call.keywords}
        if None in given:  # **options: a helper that adds them, whose callers are checked
            continue
        kind, hint = given.get("kind"), given.get("hint")
        if isinstance(kind, ast.Constant) and kind.value not in get_args(Kind):
            wrong.append(f"{where}: kind")
        if hint is None or (isinstance(hint, ast.Constant) and not hint.value):
            wrong.append(f"{where}: hint")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ({"path": "a.wav"}, "a.wav: no audio in it. Leave it out."),
        ({"setting": "module.lr"}, "module.lr: no audio in it. Leave it out."),
        ({"setting": "--out-dir", "path": "x"}, "--out-dir: x: no audio in it. Leave it out."),
    ],
)
def test_a_message_begins_with_the_place_and_ends_with_what_to_do(place, text):
    error = InputError("no audio in it", kind="empty", hint="Leave it out.", **place)
    assert str(error) == text
    assert error.reason == "no audio in it. Leave it out."


def test_a_worker_passes_an_error_on_whole():
    error = InputError("damaged", kind="corrupt", hint="Get it again.", path="a.wav", setting="b")
    other = pickle.loads(pickle.dumps(error))
    assert (type(other), vars(other)) == (InputError, vars(error))

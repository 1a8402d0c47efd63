"""Every refusal of a user's input names its kind, its place and what to do next."""

import ast
import pickle
from typing import get_args

import pytest
from test_layout import OURS, ROOT

from maest.helpers.errors import InputError, Kind

FILES = [*ROOT.glob("*.py"), *(path for room in OURS for path in ROOT.joinpath(room).rglob("*.py"))]


def test_each_says_what_to_do_and_is_of_a_known_kind():
    """The place may be added by a caller; `command_line.bad` looks at the whole message."""
    trees = {path: ast.parse(path.read_text("utf-8")) for path in FILES}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    names = {"InputError"}  # and what is derived from it
    classes = [node for _, node in nodes if isinstance(node, ast.ClassDef)]
    while (
        more := {
            c.name for c in classes if {ast.unparse(b).split(".")[-1] for b in c.bases} & names
        }
        - names
    ):
        names |= more
    found, wrong = 0, []
    for path, node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in names:
            found += 1
            given = {word.arg: word.value for word in node.keywords}
            if None in given:  # **options: a helper that adds them, whose callers are checked
                continue
            kind, hint = given.get("kind"), given.get("hint")
            unknown = isinstance(kind, ast.Constant) and kind.value not in get_args(Kind)
            if unknown or hint is None or (isinstance(hint, ast.Constant) and not hint.value):
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found > 100
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
    error.add_note("in a worker")
    other = pickle.loads(pickle.dumps(error))
    assert (type(other), vars(other)) == (InputError, vars(error))
    assert str(other) == str(error)

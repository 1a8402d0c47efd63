"""Published weights: fetched once, whole or not at all, and one error that says what to do."""

import dataclasses
import functools
import hashlib
import http.client
import io
import re
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest
import safetensors.torch
import torch
from http_server import Reply, Server
from huggingface_hub.utils import close_session
from made_up import refuses
from networks import noise
from published import deit_state, hub_model, passt_state

from maest.models import ARCHS, DownloadError, get_maest
from maest.models.archs import DEIT, PASST
from maest.models.download import fetch

MAEST = "discogs-maest-5s-pw-129e"
COMMIT, LATER = "a" * 40, "b" * 40
PREFIX = {MAEST: f"{ARCHS[MAEST].hub}/", DEIT: f"{ARCHS[DEIT].hub}/", PASST: "v0.0.1/"}
WEIGHTS = {MAEST: "model.safetensors", DEIT: "model.safetensors", PASST: "passt.pt"}
NAMES = list(PREFIX)
LICENCES = {MAEST: "CC-BY-NC-SA-4.0", DEIT: "Apache-2.0", PASST: "Apache-2.0"}


@functools.cache
def published(name: str) -> dict[str, bytes]:
    """File → content, of a small network in the layout of the real one."""
    if name == DEIT:
        return {"model.safetensors": safetensors.torch.save(deit_state(num_classes=10))}
    if name == PASST:
        return {"passt.pt": saved(passt_state())}
    with tempfile.TemporaryDirectory() as folder:
        hub_model().save_pretrained(folder)
        names = "config.json", "model.safetensors"
        return {name: (Path(folder) / name).read_bytes() for name in names}


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


class Hub(Server):
    """GitHub's addresses, and the hub's protocol."""

    moved = False  # whether the repository has another commit once its configuration was fetched

    def find(self, name: str) -> Reply:
        found = re.fullmatch(r"(.+)/resolve/([^/]+)/(.+)", name)
        if found is None:
            return super().find(name)
        missing = Reply(status=404, headers={"X-Error-Code": "EntryNotFound"})
        reply = self.replies.get(f"{found[1]}/{found[3]}", missing)
        if reply.etags:  # of a large file, its SHA-256
            last = LATER if self.moved and found[3] != "config.json" else COMMIT
            commit = found[2] if re.fullmatch("[0-9a-f]{40}", found[2]) else last
            digest = hashlib.sha256(reply.content).hexdigest()
            reply.headers = {"ETag": f'"{digest}"'} | reply.headers | {"X-Repo-Commit": commit}
        return reply

    def answer(self, request) -> None:
        if request.command == "HEAD" or self.find(request.path[1:]).status:
            super().answer(request)

    def serve(self, name: str, reply: Reply | None = None, file: str | None = None) -> None:
        """The files of an arch; for its weights, or another file, ``reply``."""
        for own, content in published(name).items():
            self.replies[PREFIX[name] + own] = Reply(content)
        if reply is not None:
            self.replies[PREFIX[name] + (file or WEIGHTS[name])] = reply

    def asked(self) -> list[str]:
        """Without the requests of the hub's library for its API."""
        return [name for name in super().asked() if not name.startswith("api/")]


@pytest.fixture
def server(no_waiting):
    with Hub() as server:
        yield server


@pytest.fixture(autouse=True)
def world(monkeypatch, tmp_path, server) -> Path:
    """Temporary caches, small archs, and no network but the loopback."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    values = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": True,
    }
    for name, value in values.items():
        monkeypatch.setattr(hub_constants, name, value)
    connect = socket.socket.connect

    def only_here(self, address):
        assert address[0] in ("127.0.0.1", "localhost"), f"a connection to {address} was tried"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_here)
    own = {MAEST: {"n_classes": 3}, PASST: {"url": f"{server.url}/v0.0.1/passt.pt"}}
    for name in NAMES:
        sizes = {"embed_dim": 64, "num_heads": 1, "depth": 3}
        changed = dataclasses.replace(ARCHS[name], **sizes, **own.get(name, {}))
        monkeypatch.setitem(ARCHS, name, changed)
    close_session()
    yield tmp_path
    close_session()


def by_hand(name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in published(name).items():
        (folder / file).write_bytes(content)
    return folder if name == MAEST else folder / WEIGHTS[name]


def check(name: str, world: Path) -> None:
    """What `get_maest` gives is what the files say, without the download."""
    found = get_maest(name)
    expected = get_maest(name, checkpoint=by_hand(name, world / "by hand"))
    x = noise(1, 96, 200)
    with torch.no_grad():
        assert torch.equal(found(x)[1], expected(x)[1])
    assert not found.training
    assert (found.labels, found.n_classes) == (expected.labels, expected.n_classes)


def refused(name: str, world: Path, kind: str | None = None) -> str:
    """Nothing is left, and the hint says where to get which files by hand."""
    with pytest.raises(DownloadError) as caught:
        get_maest(name)
    hint, arch = caught.value.hint, ARCHS[name]
    assert (arch.url or f"https://huggingface.co/{arch.hub}") in hint
    assert all(file in hint for file in published(name))
    assert "checkpoint=<" in hint
    assert kind is None or caught.value.kind == kind
    assert not [p for p in (world / "torch").rglob("*") if p.is_file()]
    assert not list(world.glob(f"hub/**/{WEIGHTS[name]}"))
    assert not list(world.glob("hub/**/*.incomplete"))
    return hint


@pytest.mark.parametrize("name", NAMES)
def test_a_download_and_a_second_time_asks_nothing(server, world, name):
    server.serve(name)
    check(name, world)
    assert {path.rpartition("/")[2] for path in server.asked()} == {*published(name)}
    server.close()
    check(name, world)
    checkpoint = fetch(name)
    assert (checkpoint.arch, checkpoint.licence) == (name, LICENCES[name])
    if name == PASST:
        assert get_maest(PASST, n_classes=4).n_classes == 4
        [file] = (world / "torch/hub/checkpoints").iterdir()
        assert file.read_bytes() == published(PASST)["passt.pt"]
    if name == MAEST:
        assert len(checkpoint.labels) == 3
        with refuses("missing", setting=...):
            fetch(name, average=True)


def test_configuration_and_weights_are_of_one_commit(server, world):
    """Also if the repository changes between the two requests."""
    server.serve(MAEST)
    server.moved = True
    check(MAEST, world)
    weights = [path for path in server.asked() if path.endswith("model.safetensors")]
    assert weights
    assert all(f"/resolve/{COMMIT}/" in path for path in weights)


def test_an_interrupt_leaves_nothing(server, world, monkeypatch):
    server.serve(PASST)
    read, pieces = http.client.HTTPResponse.read, []

    def interrupted(self, *args):
        pieces.append(read(self, *args))
        if len(pieces) > 1:
            raise KeyboardInterrupt
        return pieces[0]

    with monkeypatch.context() as patch:
        patch.setattr(http.client.HTTPResponse, "read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            get_maest(PASST)
    assert not [path for path in (world / "torch").rglob("*") if path.is_file()]
    check(PASST, world)


RAN: list[str] = []


def ran() -> None:
    RAN.append("ran")


class Runs:
    def __reduce__(self):
        return ran, ()


def changed_byte(whole: bytes) -> Reply:
    """In the largest weight, where only a checksum shows it."""
    at, digest = len(whole) // 2, hashlib.sha256(whole).hexdigest()
    content = whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :]
    return Reply(content, headers={"ETag": f'"{digest}"'})


def drops(whole: bytes, after: int, **options) -> Reply:
    """The connection, each time."""
    return Reply(whole, drops=[after] * 99, ranges=False, **options)


FAULTS: dict[str | int, Callable[[bytes], Reply]] = {
    **{
        status: lambda _, status=status: Reply(b"<html>sorry</html>", status)
        for status in (401, 403, 404, 429, 500, 503)
    },
    "half of it": lambda whole: drops(whole, len(whole) // 2),
    "length not said": lambda whole: drops(whole, len(whole) // 2, length=None),
    "the last byte": lambda whole: drops(whole, len(whole) - 1),
    "the headers alone": lambda whole: drops(whole, 0),
    "no answer": lambda whole: Reply(whole, status=0),
    "a page": lambda whole: Reply(b"<!DOCTYPE html><html>Please log in</html>"),
    "a portal": lambda whole: Reply(b"<html>log in</html>", etags=None),
    "nothing": lambda whole: Reply(b""),
    "the end is gone": lambda whole: Reply(whole[:-100]),
    "zeros": lambda whole: Reply(bytes(len(whole))),
    "zeros at the start": lambda whole: Reply(bytes(100) + whole[100:]),
    "another pickle": lambda whole: Reply(saved([1, 2, 3])),
    "no weights": lambda whole: Reply(saved({"a": torch.zeros(3)})),
    "code": lambda whole: Reply(saved({"a": Runs()})),
    "a pointer": lambda whole: Reply(b"version https://git-lfs.github.com/spec/v1\noid sha256:0"),
    "a changed byte": changed_byte,
}


@pytest.mark.parametrize(
    ("name", "fault"),
    # The hub always says a file's length.
    [(n, f) for n in NAMES for f in FAULTS if n == PASST or f != "length not said"],
)
def test_a_fault_leaves_nothing_and_the_next_time_is_right(server, world, name, fault):
    server.serve(name, FAULTS[fault](published(name)[WEIGHTS[name]]))
    RAN.clear()
    for _ in range(2):
        refused(name, world)
    assert not RAN
    server.serve(name)
    check(name, world)


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_in_the_cache_is_removed(server, world, name):
    server.serve(name)
    get_maest(name)
    for path in [p for p in world.rglob(WEIGHTS[name]) if p.is_file()]:
        path.resolve().write_bytes(published(name)[WEIGHTS[name]][:5000])
    refused(name, world, "corrupt")
    check(name, world)


@pytest.mark.parametrize("name", NAMES)
def test_without_a_network_the_hint_works(server, world, name):
    server.close()
    hint = refused(name, world, "network")
    assert "github.com/palonso/MAEST/releases" in hint or name != MAEST  # the same as one file
    model = get_maest(name, checkpoint=by_hand(name, world / "by hand"))
    if name == PASST:  # or put where the message says
        place = world / "torch/hub/checkpoints/passt.pt"
        assert str(place) in hint
        by_hand(PASST, place.parent)
        assert torch.equal(get_maest(PASST).norm.weight, model.norm.weight)

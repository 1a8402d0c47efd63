"""Published weights: fetched once, whole or not at all, and one error that says what to do."""

import dataclasses
import functools
import http.client
import io
import json
import logging
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants as hub_constants
import pytest
import safetensors.torch
import timm
import torch
from huggingface_hub.utils import close_session

from maest.helpers.errors import InputError
from maest.models import ARCHS, CheckpointError, DownloadError, get_maest, load_checkpoint
from maest.models.archs import DEIT, PASST
from maest.models.download import fetch

MAEST = "discogs-maest-5s-pw-129e"
DEIT_REPOSITORY = "timm/deit_base_distilled_patch16_384.fb_in1k"
COMMIT, LATER = "a" * 40, "b" * 40
LABELS = ["Folk---Jig", "Folk---Reel", "Früh---Messe"]
SMALL = {"embed_dim": 64, "num_heads": 1, "depth": 2}


# ------------------------------------------------------------------ what is served


@functools.cache
def published(name: str) -> dict[str, bytes]:
    """File → content, of a small network in the layout of the real one."""
    torch.manual_seed(0)
    if name == MAEST:
        return _hub_folder()
    deit = timm.create_model(
        "deit_base_distilled_patch16_384.fb_in1k", pretrained=False, **SMALL, num_classes=10
    )
    state = deit.state_dict()
    if name == DEIT:
        return {"model.safetensors": safetensors.torch.save(state)}
    state = {n: t for n, t in state.items() if not n.startswith(("head", "pos_embed"))}
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"][:, :1]
    state["new_pos_embed"] = torch.randn(1, 2, 64)
    state["freq_new_pos_embed"] = torch.randn(1, 64, 12, 1)
    state["time_new_pos_embed"] = torch.randn(1, 64, 1, 99)
    state |= {"head.0.weight": torch.ones(64), "head.0.bias": torch.zeros(64)}
    for head in ("head.1", "head_dist"):
        state |= {f"{head}.weight": torch.randn(527, 64), f"{head}.bias": torch.randn(527)}
    return {"passt.pt": saved(state)}


def saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _hub_folder() -> dict[str, bytes]:
    import transformers

    config = transformers.ASTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=256,
        num_mel_bins=96,
        max_length=316,
        layer_norm_eps=1e-6,
        id2label=dict(enumerate(LABELS)),
        label2id={label: i for i, label in enumerate(LABELS)},
    )
    model = transformers.ASTForAudioClassification(config)
    with torch.no_grad():
        grid = torch.randn(1, 9, 1, 64) + torch.randn(1, 1, 31, 64)
        positions = torch.cat((torch.randn(1, 2, 64), grid.flatten(1, 2)), 1)
        model.audio_spectrogram_transformer.embeddings.position_embeddings.copy_(positions)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {
            name: (Path(folder) / name).read_bytes()
            for name in ("config.json", "model.safetensors")
        }


# ------------------------------------------------------------------ the server


@dataclass
class Reply:
    """What a path answers.

    Attributes:
        sent: how many bytes of the content go out before the connection is dropped; None for all.
        drops: how many times that happens; after that, all goes out.
        length: whether Content-Length is said.
        ranges: whether Range is understood.
    """

    content: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    sent: int | None = None
    drops: int = 10**9
    length: bool = True
    ranges: bool = True


class Server:
    """On the loopback, in a thread. It knows whole URLs, and speaks the hub's protocol."""

    def __init__(self) -> None:
        self.replies: dict[str, Reply] = {}  # by the end of the path
        self.requests: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.commit = COMMIT
        self.after: Callable[[str], None] = lambda _path: None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer._answer(self)

            def do_HEAD(self):
                outer._answer(self)

            def log_message(self, *_args):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        """From here on, connections are refused."""
        if self._thread.is_alive():
            self._http.shutdown()
            self._thread.join()
        self._http.server_close()

    def serve(self, files: dict[str, bytes], prefix: str = "/", **options) -> None:
        for name, content in files.items():
            self.replies[prefix + name] = Reply(content, **options)

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        if not request.path.startswith("/api/"):  # the hub's library asks for its own things there
            self.requests.append((request.command, request.path, wanted))
        found = re.fullmatch(r"(/.+)/resolve/([^/]+)/(.+)", request.path)
        path = f"{found[1]}/{found[3]}" if found else request.path
        missing = {"X-Error-Code": "EntryNotFound" if found else "RepoNotFound"}
        reply = self.replies.get(path, Reply(b"Not Found", 404, missing))
        content, status, headers = reply.content, reply.status, dict(reply.headers)
        if found and "plain" not in headers:
            commit = found[2] if re.fullmatch("[0-9a-f]{40}", found[2]) else self.commit
            headers |= {"X-Repo-Commit": commit, "ETag": f'"{hash(content) & (1 << 60) - 1:x}"'}
        if wanted and reply.ranges and status == 200:
            first = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            content, status = content[first:], 206
        drop = reply.sent is not None and reply.drops > 0 and request.command == "GET"
        if drop:
            reply.drops -= 1
        if drop and reply.sent < 0:  # not even an answer
            request.close_connection = True
            return
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        if reply.length:
            request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(content[: reply.sent] if drop else content)
            self.after(request.path)


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def world(monkeypatch, tmp_path, server) -> Path:
    """Caches of our own, archs that are small, nothing but the loopback, and no waiting."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    values = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": True,
    }
    for name, value in values.items():
        monkeypatch.setattr(hub_constants, name, value)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)
    connect = socket.socket.connect

    def only_here(self, address):
        assert address[0] in ("127.0.0.1", "localhost"), f"a connection to {address} was tried"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_here)
    for name, changes in {
        MAEST: {"n_classes": 3},
        DEIT: {},
        PASST: {"url": f"{server.url}/v0.0.1/passt.pt"},
    }.items():
        monkeypatch.setitem(ARCHS, name, dataclasses.replace(ARCHS[name], **SMALL, **changes))
    close_session()
    yield tmp_path
    close_session()


PREFIX = {MAEST: f"/mtg-upf/{MAEST}/", DEIT: f"/{DEIT_REPOSITORY}/", PASST: "/v0.0.1/"}
WEIGHTS = {MAEST: "model.safetensors", DEIT: "model.safetensors", PASST: "passt.pt"}
NAMES = list(PREFIX)


def serve(server: Server, name: str, **options) -> None:
    """The weights with ``options``; what stands beside them, always whole."""
    server.serve(published(name), PREFIX[name])
    server.serve({WEIGHTS[name]: published(name)[WEIGHTS[name]]}, PREFIX[name], **options)


def check(name: str, folder: Path) -> None:
    """What `get_maest` gives is what the files say, without the download."""
    found = get_maest(name)
    folder.mkdir(exist_ok=True)
    for file, content in published(name).items():
        (folder / file).write_bytes(content)
    path = folder if name == MAEST else folder / WEIGHTS[name]
    expected = get_maest(name, checkpoint=path)
    for key, tensor in expected.state_dict().items():
        if not (key.startswith("head") and name != PASST):  # drawn, where they are fresh
            assert torch.equal(found.state_dict()[key], tensor), key
    x = torch.randn(1, 96, 200)
    with torch.no_grad():
        assert torch.equal(found(x)[1], expected(x)[1])
    assert not found.training


def what_loads(folder: Path) -> list[str]:
    """Files in the caches, under whatever name, that could be taken for weights."""
    loading = []
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_size:
            try:
                load_checkpoint(path)
            except CheckpointError:
                continue
            loading.append(str(path))
    return loading


def told(error: pytest.ExceptionInfo, name: str, file: str | None = None) -> None:
    """The one message: which file of which arch, where to get it, which option points to it."""
    text = str(error.value)
    assert name in text
    assert (file or WEIGHTS[name]) in text
    page = {MAEST: f"mtg-upf/{MAEST}", DEIT: DEIT_REPOSITORY}
    where = f"https://huggingface.co/{page[name]}" if name in page else ARCHS[name].url
    assert where in text
    assert "checkpoint=<" in text
    assert "pretrained=False" in text
    assert "Traceback" not in text


# ------------------------------------------------------------------ whole downloads


@pytest.mark.parametrize("name", NAMES)
def test_a_download(server, world, name):
    serve(server, name)
    check(name, world / "by hand")
    gets = [path.rpartition("/")[2] for method, path, _ in server.requests if method == "GET"]
    assert sorted(gets) == sorted(published(name))  # each once


@pytest.mark.parametrize("name", NAMES)
def test_a_second_time_asks_the_network_nothing(server, world, name):
    serve(server, name)
    get_maest(name)
    server.requests.clear()
    check(name, world / "by hand")
    assert not server.requests
    server.close()
    check(name, world / "by hand")


def test_labels_come_along(server):
    serve(server, MAEST)
    model = get_maest(MAEST)
    assert model.labels == LABELS
    assert (model.n_classes, model.input_t) == (3, 312)
    assert get_maest(MAEST, discard_head=True).labels is None


@pytest.mark.parametrize("name", NAMES)
def test_what_is_known_of_it(server, name):
    serve(server, name)
    checkpoint = fetch(name)
    assert checkpoint.arch == name
    assert checkpoint.licence == {MAEST: "CC-BY-NC-SA-4.0"}.get(name, "Apache-2.0")


def test_passt_keeps_its_head_and_loses_it_when_asked(server):
    serve(server, PASST)
    assert get_maest(PASST).n_classes == 527
    assert get_maest(PASST, n_classes=4).n_classes == 4


def test_config_and_weights_are_of_one_commit(server, world):
    """Even if the repository moves on between the two."""
    serve(server, MAEST)

    def move(path: str) -> None:
        if path.endswith("config.json"):
            server.commit = LATER

    server.after = move
    check(MAEST, world / "by hand")
    weights = [path for _, path, _ in server.requests if path.endswith("model.safetensors")]
    assert weights
    assert all(f"/resolve/{COMMIT}/" in path for path in weights)


def test_a_redirect_is_followed(server, world):
    """As GitHub's releases answer."""
    serve(server, PASST)
    server.replies["/storage/123"] = server.replies.pop("/v0.0.1/passt.pt")
    moved = {"Location": f"{server.url}/storage/123"}
    server.replies["/v0.0.1/passt.pt"] = Reply(b"", 302, moved)
    check(PASST, world / "by hand")


def test_the_release_lies_in_torchs_cache(server, world):
    serve(server, PASST)
    get_maest(PASST)
    file = world / "torch" / "hub" / "checkpoints" / "passt.pt"
    assert file.read_bytes() == published(PASST)["passt.pt"]
    assert [path.name for path in file.parent.iterdir()] == ["passt.pt"]


@pytest.mark.parametrize("name", NAMES)
def test_progress_is_shown(server, monkeypatch, capsys, caplog, name):
    serve(server, name)
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    get_maest(name)
    assert "100%" in capsys.readouterr().err
    assert "fetching" in caplog.text


def test_two_at_once(server, world):
    serve(server, PASST)
    with ThreadPoolExecutor(2) as pool:
        models = list(pool.map(get_maest, [PASST, PASST]))
    assert torch.equal(models[0].norm.weight, models[1].norm.weight)
    check(PASST, world / "by hand")


# ------------------------------------------------------------------ nothing to fetch


@pytest.mark.parametrize("name", ["maest_tiny", "maest_small", "maest_base"])
def test_an_arch_without_published_weights(server, name):
    for load in (fetch, lambda name: get_maest(name, n_classes=2, pretrained=True)):
        with pytest.raises(InputError) as caught:
            load(name)
        assert (caught.value.kind, caught.value.setting) == ("missing", "arch")
        assert MAEST in caught.value.hint
    assert not server.requests


def test_an_unknown_name(server):
    with pytest.raises(InputError) as caught:
        fetch("discogs-maest-60s")
    assert caught.value.kind == "unknown"
    assert MAEST in caught.value.hint
    assert not server.requests


@pytest.mark.parametrize("name", NAMES)
def test_fresh_weights_need_no_network(server, name):
    model = get_maest(name, pretrained=False)
    assert (model.embed_dim, model.n_classes) == (64, {MAEST: 3, DEIT: 1000, PASST: 527}[name])
    assert not server.requests


# ------------------------------------------------------------------ drops


def half(name: str) -> int:
    return len(published(name)[WEIGHTS[name]]) // 2


DROPS = {
    "half of it": lambda name: {"sent": half(name)},
    "half of it, its length not said": lambda name: {"sent": half(name), "length": False},
    "the last byte": lambda name: {"sent": 2 * half(name) - 1},
    "the headers alone": lambda name: {"sent": 0},
    "no answer": lambda name: {"sent": -1},
}


@pytest.mark.parametrize(
    ("name", "drop"),
    # The hub always says a file's length.
    [(name, drop) for name in NAMES for drop in DROPS if name == PASST or "not said" not in drop],
)
def test_a_connection_that_drops_leaves_nothing(server, world, name, drop):
    options = DROPS[drop](name)
    if name != PASST:  # the hub's library goes on where it was: never let it get further
        options |= {"ranges": False}
    serve(server, name, **options)
    for _ in range(2):
        with pytest.raises(DownloadError) as caught:
            get_maest(name)
        told(caught, name)
        assert not what_loads(world)
        assert not list(world.rglob(WEIGHTS[name]))
        assert not list(world.rglob("*.incomplete"))
    serve(server, name)
    check(name, world / "by hand")


def test_a_dropped_release_leaves_no_file_at_all(server, world):
    serve(server, PASST, sent=half(PASST))
    with pytest.raises(DownloadError):
        get_maest(PASST)
    assert not [path for path in (world / "torch").rglob("*") if path.is_file()]


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", [MAEST, DEIT])
def test_the_hub_resumes(server, world, monkeypatch, name, ranges):
    monkeypatch.setattr(hub_constants, "DOWNLOAD_CHUNK_SIZE", 4096)  # else nothing was kept
    serve(server, name, sent=half(name), drops=1, ranges=ranges)
    check(name, world / "by hand")
    asked = [wanted for _, path, wanted in server.requests if path.endswith(WEIGHTS[name])]
    assert any(wanted and wanted != "bytes=0-" for wanted in asked)


def test_an_interrupt_leaves_nothing(server, world, monkeypatch):
    serve(server, PASST)

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
    check(PASST, world / "by hand")


# ------------------------------------------------------------------ wrong content

RAN: list[str] = []


def ran() -> dict:
    RAN.append("ran")
    return {}


class Runs:
    def __reduce__(self):
        return ran, ()


def flipped(content: bytes) -> bytes:
    """One byte of the largest weight: no reader of the archive's directory notices."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 0x40]) + content[at + 1 :]


WRONG = {
    "a page": lambda whole: b"<!DOCTYPE html><html>Please log in</html>",
    "nothing": lambda whole: b"",
    "half of it": lambda whole: whole[: len(whole) // 2],
    "the end is gone": lambda whole: whole[:-100],
    "zeros": lambda whole: bytes(len(whole)),
    "zeros at the start": lambda whole: bytes(100) + whole[100:],
    "another pickle": lambda whole: saved([1, 2, 3]),
    "no weights": lambda whole: saved({"a": torch.zeros(3)}),
    "code": lambda whole: saved({"a": Runs()}),
    "a pointer": lambda whole: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


@pytest.mark.parametrize("wrong", [*WRONG, "a changed byte"])
def test_a_release_with_wrong_content(server, world, wrong):
    content = {**WRONG, "a changed byte": flipped}[wrong](published(PASST)["passt.pt"])
    server.serve({"passt.pt": content}, PREFIX[PASST])
    RAN.clear()
    for _ in range(2):
        with pytest.raises(DownloadError) as caught:
            get_maest(PASST)
        told(caught, PASST)
        assert not [path for path in (world / "torch").rglob("*") if path.is_file()]
    assert not RAN
    serve(server, PASST)
    check(PASST, world / "by hand")


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", [MAEST, DEIT])
def test_a_hub_file_with_wrong_content(server, world, name, wrong):
    content = WRONG[wrong](published(name)[WEIGHTS[name]])
    serve(server, name)
    server.serve({WEIGHTS[name]: content}, PREFIX[name])
    RAN.clear()
    with pytest.raises(CheckpointError) as caught:
        get_maest(name)
    assert WEIGHTS[name] in str(caught.value) or name in str(caught.value)
    assert not RAN
    assert not what_loads(world)
    serve(server, name)
    check(name, world / "by hand")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"<html></html>", b"[]", b"{}", b'{"model_type": "bert"}', b"\xff\xfe"]
)
def test_a_hub_configuration_with_wrong_content(server, world, content):
    serve(server, MAEST)
    server.serve({"config.json": content}, PREFIX[MAEST])
    with pytest.raises(CheckpointError, match=r"config\.json"):
        get_maest(MAEST)
    serve(server, MAEST)
    check(MAEST, world / "by hand")


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
@pytest.mark.parametrize("name", NAMES)
def test_an_answer_that_is_an_error(server, world, name, status):
    serve(server, name)
    server.replies[PREFIX[name] + WEIGHTS[name]] = Reply(b"<html>sorry</html>", status)
    with pytest.raises(DownloadError) as caught:
        get_maest(name)
    told(caught, name)
    assert not list(world.rglob(WEIGHTS[name]))
    serve(server, name)
    check(name, world / "by hand")


@pytest.mark.parametrize("name", NAMES)
def test_a_page_for_everything(server, world, name):
    """A captive portal: 200, and its own page whatever is asked."""
    for file in published(name):
        server.replies[PREFIX[name] + file] = Reply(b"<html>log in</html>", 200, {"plain": "1"})
    with pytest.raises(DownloadError) as caught:
        get_maest(name)
    told(caught, name, "config.json" if name == MAEST else None)
    assert not list(world.rglob(WEIGHTS[name]))
    serve(server, name)
    check(name, world / "by hand")


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_in_the_cache_is_not_used(server, world, name):
    """Left by something else, or a disk."""
    serve(server, name)
    get_maest(name)
    for path in [p for p in world.rglob(WEIGHTS[name]) if p.is_file()]:
        path.resolve().write_bytes(published(name)[WEIGHTS[name]][: half(name)])
    with pytest.raises(DownloadError) as caught:
        get_maest(name)
    assert caught.value.kind == "corrupt"
    check(name, world / "by hand")


# ------------------------------------------------------------------ no network


@pytest.mark.parametrize("name", NAMES)
def test_without_a_network(server, world, name):
    server.close()
    with pytest.raises(DownloadError) as caught:
        get_maest(name)
    told(caught, name, "config.json" if name == MAEST else None)
    if name == MAEST:  # both files are needed by hand
        assert "config.json" in str(caught.value)
        assert "model.safetensors" in str(caught.value)
    if name == PASST:
        assert str(world / "torch" / "hub" / "checkpoints" / "passt.pt") in str(caught.value)
    assert not list(world.rglob(WEIGHTS[name]))


@pytest.mark.parametrize("name", [MAEST, DEIT])
def test_the_hub_switched_off(server, monkeypatch, name):
    """HF_HUB_OFFLINE=1."""
    serve(server, name)
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    close_session()
    with pytest.raises(DownloadError) as caught:
        get_maest(name)
    told(caught, name)
    assert not server.requests


def test_the_network_goes_after_the_first_file(server):
    serve(server, MAEST)
    del server.replies[PREFIX[MAEST] + "model.safetensors"]
    with pytest.raises(DownloadError):
        get_maest(MAEST)
    server.close()
    with pytest.raises(DownloadError) as caught:
        get_maest(MAEST)
    told(caught, MAEST, "model.safetensors")


@pytest.mark.parametrize("name", NAMES)
def test_what_the_message_says_works(server, world, name):
    """The files got by hand, and the option that points to them."""
    server.close()
    folder = world / "by hand"
    folder.mkdir()
    for file, content in published(name).items():
        (folder / file).write_bytes(content)
    model = get_maest(name, checkpoint=folder if name == MAEST else folder / WEIGHTS[name])
    assert model.labels == (LABELS if name == MAEST else None)
    if name == PASST:  # or put where the message says
        place = world / "torch" / "hub" / "checkpoints" / "passt.pt"
        place.parent.mkdir(parents=True)
        place.write_bytes(published(PASST)["passt.pt"])
        assert torch.equal(get_maest(PASST).norm.weight, model.norm.weight)


def test_the_other_place_is_named(server):
    """The release of the same weights."""
    server.close()
    with pytest.raises(DownloadError) as caught:
        get_maest(MAEST)
    release = "https://github.com/palonso/MAEST/releases/download/v0.0.0-beta"
    assert f"{release}/{MAEST}-swa.ckpt" in str(caught.value)


def test_the_configuration_served_is_the_hubs(server):
    """The test's own: what is served is what transformers writes."""
    config = json.loads(published(MAEST)["config.json"])
    assert config["architectures"] == ["ASTForAudioClassification"]

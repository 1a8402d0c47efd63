"""Absurd, damaged and malicious checkpoints: refused with their path, quickly, and nothing run."""

import argparse
import collections
import functools
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from networks import tiny
from published import hub_model, legacy, maest_state
from published import refused_weights as refused
from torch import Tensor

from maest.models import CheckpointError, get_maest, load_checkpoint, save_model


@pytest.fixture(autouse=True)
def bounded():
    """No more time and address space than this: absurd sizes are refused before they are made."""

    def late(*_args):
        raise AssertionError("took more than 10 s")

    before, handler = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, late)
    signal.alarm(10)
    pages = Path("/proc/self/statm")  # elsewhere than on Linux, only the time is bounded
    if pages.exists():
        now = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (1 << 30), before[1]))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture
def folder(tmp_path) -> Path:
    return save_model(tmp_path / "model", tiny())


# ------------------------------------------------------------------ configurations

SIZES = tiny().sizes()
COUNTS = ("n_classes", "input_t", "input_f", "embed_dim", "depth", "num_heads")
ABSURD = (10**9, -1, 0, "64", [], None, True, 2.5)
NUMBERS = (float("inf"), float("nan"), -1.0, "1", None, 10**400)
WRONG_SIZES = [
    *({name: value} for name in COUNTS for value in ABSURD),
    *({name: value} for name in ("norm_std", "head_eps", "mlp_ratio") for value in NUMBERS),
    *({"depth": 3}, {"distilled_type": "both"}, {"task": "tagging"}, {"colour": 3}),
    {"target_mean": [1.0] * 3, "target_std": [1.0] * 3},  # of no regression
    {"task": "regression", "target_mean": [1.0], "target_std": [1.0]},
    {"task": "regression", "target_mean": [1.0] * 3, "target_std": None},
    {"task": "regression", "target_mean": [1.0] * 3, "target_std": [1.0, 0.0, 1.0]},
    {"task": "regression", "target_mean": 1.0, "target_std": 1.0},
]
WRONG = [
    *({"sizes": SIZES | wrong} for wrong in WRONG_SIZES),
    *({"sizes": value} for value in (3, {"depth": 2}, {"n_classes": 3, "input_t": 312}, [])),
    *({"labels": value} for value in (["a"], 7, [1, 2, 3])),
    *({"trained_on": value} for value in ([1], "scores", 7)),
    *({"thresholds": value} for value in ([1], 3, [1, 1, "x"], [1, float("nan"), 1], [True, 1, 1])),
    {"format_version": 2},
]


def edit(folder: Path, **changes) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


@pytest.mark.parametrize("change", WRONG, ids=lambda change: str(change)[-25:])
def test_absurd_settings_in_a_model_folder(folder, change):
    refused(folder, "mismatch", edit(folder, **change))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2]", "{}", '{"format": "maest"}', "\udcff", "[" * 20_000 + "]" * 20_000],
    ids=lambda text: text[:8],
)
def test_a_configuration_that_is_none(folder, text):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(folder, "mismatch", folder / "config.json")


HUB_COUNTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")


@pytest.mark.parametrize("value", [["a"], {"0": ["a"]}, 10**9, -1, 0, "64", None, 2.5], ids=repr)
def test_absurd_settings_in_a_hub_folder(tmp_path, value):
    hub_model(depth=1).save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    for name in (*HUB_COUNTS, *(["problem_type"] if value else [])):
        refused(tmp_path, "mismatch", edit(tmp_path, **{name: value}))
        (tmp_path / "config.json").write_text(config)
    edit(tmp_path, id2label=value, max_length=value, maest=value)  # of no use, or ignored
    model = get_maest(checkpoint=tmp_path)
    assert (model.n_classes, model.input_t) == (3, 312)


@pytest.mark.parametrize("text", ["[]", "7", "{}", '{"sizes": 3}', '{"sizes": {"depth": 1000000}}'])
def test_an_absurd_record_in_a_file(tmp_path, text):
    path, state = tmp_path / "w.safetensors", maest_state(depth=1)
    safetensors.torch.save_file(state, path, metadata={"maest": text})
    refused(path, "mismatch")
    torch.save({"state_dict": state, "maest": json.loads(text)}, tmp_path / "w.ckpt")
    refused(tmp_path / "w.ckpt", "mismatch")


# ------------------------------------------------------------------ no code

RAN: list[str] = []


def ran(*_args, **_kwargs):
    RAN.append("ran")
    return {}


class Calls:
    """Pickled, it calls a function when it is read."""

    def __init__(self, function, *args) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


class Restores:
    """`__setstate__` runs when it is read."""

    def __setstate__(self, state):
        ran()

    def __getstate__(self):
        return {"a": 1}


class OwnDict(dict):
    def __setstate__(self, state):
        ran()

    def __reduce__(self):
        return type(self), (), {"a": 1}, None, iter(self.items())


class OwnOrdered(OwnDict, collections.OrderedDict):
    pass


class OwnTensor(Tensor):
    def __setstate__(self, state):
        ran()


class OwnStr(str):
    def __new__(cls, *_args):
        ran()
        return super().__new__(cls, "a")


# Created in a temporary folder, where some of them leave a file
EVIL = {
    "function": lambda: Calls(ran),
    "os.system": lambda: Calls(os.system, "touch ran"),
    "eval": lambda: Calls(eval, "open('ran', 'w').close()"),
    "exec": lambda: Calls(exec, "open('ran', 'w').close()"),
    "partial": lambda: Calls(functools.partial(exec, "open('ran', 'w').close()")),
    "subprocess": lambda: Calls(subprocess.check_call, ["touch", "ran"]),
    "Path.touch": lambda: Calls(Path.touch, Path("ran")),
    "setstate": Restores,
    "dict": lambda: OwnDict(maest_state(depth=1)),
    "OrderedDict": lambda: OwnOrdered(maest_state(depth=1)),
    "object array": lambda: np.array([Calls(ran)], dtype=object),
    "namespace": lambda: argparse.Namespace(a=Calls(ran)),
}
MORE = {  # these do not run when read, or when written already
    "Tensor": lambda: torch.zeros(2).as_subclass(OwnTensor),
    "str": lambda: OwnStr("a"),
    "defaultdict": lambda: collections.defaultdict(ran, a=1),
    "a function": lambda: ran,
}


PLACES = {
    "top": lambda evil: evil,
    "beside the weights": lambda evil: maest_state(depth=1) | {"x": evil},
    "a weight": lambda evil: maest_state(depth=1) | {"norm.bias": evil},
    "state_dict": lambda evil: {"state_dict": evil},
    "callbacks": lambda evil: {"state_dict": {}, "callbacks": {"a": [(evil,)]}},
    "maest": lambda evil: {"state_dict": maest_state(depth=1), "maest": {"labels": [evil]}},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", [*EVIL, *MORE])
def test_objects_are_refused_and_not_run(tmp_path, monkeypatch, kind, place):
    monkeypatch.chdir(tmp_path)
    # What the user's environment says does not count.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content = PLACES[place]((EVIL | MORE)[kind]())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"format": "maest", "format_version": 1}')
    torch.save(content, "zip.ckpt")
    torch.save(content, "legacy.ckpt", _use_new_zipfile_serialization=False)
    torch.save(content, "model/model.safetensors")
    Path("pickle.ckpt").write_bytes(pickle.dumps(content, protocol=2))
    RAN.clear()
    for path in ("zip.ckpt", "legacy.ckpt", "model", "pickle.ckpt"):
        for average in (None, True, False):
            with pytest.raises(CheckpointError) as caught:
                load_checkpoint(path, average)
            assert path in str(caught.value)
    assert not RAN
    assert not Path("ran").exists()


@pytest.mark.parametrize("kind", EVIL)
def test_they_would_run(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    torch.save(EVIL[kind](), "w.pt")
    RAN.clear()
    torch.load("w.pt", weights_only=False)
    assert RAN or Path("ran").exists()


def test_what_was_refused_is_named(tmp_path):
    torch.save({"extra": Calls(subprocess.check_call, ["true"])}, tmp_path / "w.pt")
    assert ".check_call" in refused(tmp_path / "w.pt", "unsupported")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_torchscript_is_refused(tmp_path, name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        traced = torch.jit.trace(torch.nn.LayerNorm(4), torch.zeros(4))
        traced.save(str(tmp_path / name))
    refused(tmp_path / name, "corrupt")


@pytest.mark.parametrize("name", ["w.npz", "w.npy", "w.pt"])
def test_numpy_files_are_refused(tmp_path, name):
    evil = np.array([Calls(ran)], dtype=object)
    with (tmp_path / name).open("wb") as file:
        if name == "w.npy":
            np.save(file, evil, allow_pickle=True)
        else:
            np.savez(file, **{n: t.numpy() for n, t in maest_state(depth=1).items()}, evil=evil)
    RAN.clear()
    refused(tmp_path / name, "corrupt")
    assert not RAN


# ------------------------------------------------------------------ damage


def header(entries: dict, data: bytes = bytes(64), length: int | None = None) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(first: int, last: int, shape: tuple[int, ...] = (4,), dtype: str = "F32") -> dict:
    return {"cls_token": {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}}


BAD_SAFETENSORS = {
    "overlap": header(entry(0, 16) | {"dist_token": entry(8, 24)["cls_token"]}, bytes(24)),
    "out of range": header(entry(0, 1 << 40, (1 << 38,))),
    "beyond the end": header(entry(0, 80, (20,))),
    "a hole": header(entry(16, 32), bytes(32)),
    "backwards": header(entry(16, 0)),
    "negative": header(entry(-16, 0)),
    "another shape": header(entry(0, 16, (5,)), bytes(16)),
    "overflowing shape": header(entry(0, 16, (1 << 62, 1 << 62)), bytes(16)),
    "unknown type": header(entry(0, 16, dtype="F31"), bytes(16)),
    "gigantic header": header(entry(0, 16), length=(1 << 64) - 1),
    "header of 4 GB": header(entry(0, 16), length=1 << 32),
    "header beyond the end": header(entry(0, 16), length=10_000),
    "empty header": header({}, b"", length=0),
    "trailing data": header(entry(0, 16), bytes(17)),
    "a web page": b"<html>404: Not Found</html>\n",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


@pytest.mark.parametrize("kind", BAD_SAFETENSORS)
def test_crafted_files_are_refused(tmp_path, kind):
    (tmp_path / "w.safetensors").write_bytes(BAD_SAFETENSORS[kind])
    refused(tmp_path / "w.safetensors", "corrupt")


@pytest.mark.parametrize("write", [torch.save, legacy, safetensors.torch.save_file])
def test_a_part_of_a_file_never_loads(folder, tmp_path, write):
    for path, place in ((tmp_path / "w", tmp_path / "w"), (folder, folder / "model.safetensors")):
        write(maest_state(depth=1), place)
        whole = place.read_bytes()
        parts = [whole[: int(share * len(whole))] for share in (0, 0.01, 0.25, 0.5, 0.75, 0.999)]
        others = [whole[:1], whole[:-40], bytes(64) + whole[64:], b"{}" + whole]
        for content in (*parts, *others):
            place.write_bytes(content)
            refused(path, "corrupt", place)


def test_a_legacy_file_with_a_changed_byte_is_never_a_traceback(tmp_path):
    path = tmp_path / "w.pt"
    legacy({"a": torch.ones(3), "b": torch.ones(3)}, path)
    content = path.read_bytes()
    for at in range(0, len(content), 3):
        for value in (0, 0x85, 0xFF):
            path.write_bytes(content[:at] + bytes([value]) + content[at + 1 :])
            with pytest.raises((CheckpointError, MemoryError)):  # of a length in gigabytes
                load_checkpoint(path)


@pytest.mark.parametrize("name", ["w.pt", "w.ckpt", "w", "w.safetensors"])
def test_a_wrong_checksum_is_refused(tmp_path, name):
    """One byte of one weight's data in a torch archive; its directory stays whole."""
    path = tmp_path / name
    torch.save(maest_state(depth=1), path)
    get_maest(checkpoint=path)
    with zipfile.ZipFile(path) as archive:
        info = max(archive.infolist(), key=lambda info: info.file_size)
    content = bytearray(path.read_bytes())
    lengths = struct.unpack_from("<HH", content, info.header_offset + 26)
    content[info.header_offset + 30 + sum(lengths) + info.file_size // 2] ^= 0x40
    path.write_bytes(content)
    refused(path, "corrupt")

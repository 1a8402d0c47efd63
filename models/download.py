"""The published weights: fetched once, checked, and kept in the libraries' caches.

MAEST and DeiT come from the Hugging Face hub (`huggingface_hub`; ``HF_HOME`` moves its cache),
PaSST from a GitHub release (`torch.hub`; ``TORCH_HOME``). Cached files need no network.
"""

import hashlib
import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from maest.helpers.errors import InputError, first_cause, first_line
from maest.models.archs import RENAMED, Arch, find_arch, list_models
from maest.models.weights import Checkpoint, CheckpointError, load_checkpoint, missing_weights

log = logging.getLogger(__name__)

_HUB = "https://huggingface.co"
_RANDOM = "With pretrained=False the network has random weights."
PRETRAINED = Path(__file__).resolve().parent / "pretrained"  # model folders of this repository


class DownloadError(CheckpointError):
    """Published weights that cannot be fetched; the hint says how to get them by hand."""


def fetch(name: str, average: bool | None = None) -> Checkpoint:
    """Return an architecture's published weights, from the cache or the network.

    An older name gives those of the model that has taken its place, with a warning. InputError: an
    unknown name, or no published weights. DownloadError: the weights are not in the cache and
    cannot be fetched, or arrive damaged.
    """
    arch = find_arch(name)
    if name in RENAMED:
        older, (name, change) = name, RENAMED[name]
        log.warning("%s has become %s: %s", older, name, change)
    if not arch.published:
        message = f"there are no published weights of {name!r}"
        hint = f"Give a checkpoint, or an arch with weights: {', '.join(list_models())}. {_RANDOM}"
        raise InputError(message, kind="missing", hint=hint, setting="arch")
    if arch.shipped:
        return load_checkpoint(PRETRAINED / name, average)
    if average:
        raise missing_weights(name, average)
    try:
        files = [_release_file(arch)] if arch.url else _hub_files(arch)
    except Exception as error:  # the libraries', the system's
        reason = first_line(first_cause(error))
        message = f"the weights of {name} are not in the cache, and not to be fetched ({reason})"
        raise DownloadError(message, kind="network", hint=_by_hand(arch)) from error
    try:
        checkpoint = load_checkpoint(files[0] if len(files) == 1 else files[0].parent)
    except CheckpointError as error:  # damaged on the way or in the cache, or never weights
        _remove(files)
        message = f"the weights of {name}: {error.message}"
        hint = f"Remove them, if they are still in the cache, and try again. {_by_hand(arch)}"
        raise DownloadError(message, kind=error.kind, hint=hint, path=error.path) from None
    checkpoint.arch = name
    checkpoint.trained_on = {"data": arch.data, "licence": arch.licence}
    return checkpoint


def place(name: str) -> Path | None:
    """Return the folder of a model's weights, if they are here; nothing is fetched."""
    arch = find_arch(name)
    if arch.shipped:
        return PRETRAINED / name
    if arch.url:
        return _cached(arch).parent if _cached(arch).is_file() else None
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(str(arch.hub), file) for file in arch.files]
    paths = [Path(path) for path in found if isinstance(path, str)]
    return paths[0].parent if len(paths) == len(arch.files) else None


def _hub_files(arch: Arch) -> list[Path]:
    """Get files in the hub's cache, all of one commit, even if the hub changes meanwhile."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    # It logs each retry; one error is enough.
    logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)
    files, revision = list[Path](), None
    for file in arch.files:
        wanted: dict[str, Any] = {"repo_id": str(arch.hub), "filename": file, "revision": revision}
        try:
            path = Path(hf_hub_download(**wanted, local_files_only=True))
        except LocalEntryNotFoundError:
            log.info("fetching %s of %s/%s", file, _HUB, arch.hub)
            path = Path(hf_hub_download(**wanted))
            _check_digest(path)
        files.append(path)
        revision = path.parent.name
    return files


def _remove(files: list[Path]) -> None:
    with suppress(OSError):  # not permitted
        for file in files:  # in the hub's cache, a link and what it links to
            file.resolve().unlink(missing_ok=True)
            file.unlink(missing_ok=True)


def _check_digest(path: Path) -> None:
    """Check a file of the hub's cache against its name: a large file's SHA-256."""
    blob = path.resolve()
    with blob.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if len(blob.name) == len(digest) and blob.name != digest:
        _remove([path])
        raise ValueError(f"its SHA-256 is {digest}, expected {blob.name}")


def _release_file(arch: Arch) -> Path:
    file = _cached(arch)  # no hash of it is published: loading it shows whether it is whole
    if not file.is_file():
        log.info("fetching %s", arch.url)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(str(arch.url), str(file), progress=sys.stderr.isatty())
    return file


def _cached(arch: Arch) -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints" / str(arch.url).rpartition("/")[2]


def _by_hand(arch: Arch) -> str:
    if arch.url:
        steps = f"get {arch.url} and put it to {_cached(arch)}, or give checkpoint=<file>"
    else:
        to = "into one folder, and give checkpoint=<folder>"
        to = to if len(arch.files) > 1 else "and give checkpoint=<file>"
        steps = f"get {' and '.join(arch.files)} from {_HUB}/{arch.hub}/tree/main {to}"
    if arch.elsewhere:
        steps += f"; or get {arch.elsewhere} and give checkpoint=<file>"
    return f"By hand: {steps}. {_RANDOM}"

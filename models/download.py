"""The published weights: fetched once, kept in the libraries' own caches, checked.

- MAEST and DeiT: the Hugging Face hub, through `huggingface_hub` (its cache; ``HF_HOME`` moves it).
- PaSST: a file of a GitHub release, through `pooch`, into torch's cache (``TORCH_HOME`` moves it).

What is in the cache is used without asking the network.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from pathlib import Path
from typing import Any

import torch

from maest.helpers.errors import InputError, first_cause, first_line
from maest.models.archs import ARCHS, Arch, find_arch
from maest.models.checkpoint_files import CheckpointError, missing_weights
from maest.models.saving import CONFIG_NAME, WEIGHTS_NAME
from maest.models.weights import Checkpoint, load_checkpoint

log = logging.getLogger(__name__)

_HUB = "https://huggingface.co"
PRETRAINED = Path(__file__).resolve().parent / "pretrained"  # model folders of this repository


class DownloadError(CheckpointError):
    """Published weights that could not be fetched; the hint says how to get them by hand."""


def fetch(name: str, average: bool | None = None) -> Checkpoint:
    """The published weights of an architecture, from the cache or the network.

    Raises:
        InputError: for an unknown name, or one without published weights.
        DownloadError: if they are not in the cache and cannot be fetched, or arrive damaged.
    """
    arch = find_arch(name)
    if not arch.published:
        published = ", ".join(known for known, arch in ARCHS.items() if arch.published)
        raise InputError(
            f"there are no published weights of {name!r}",
            kind="missing",
            hint=f"Give a checkpoint, or an arch with weights: {published}. With pretrained=False "
            "the network is built with random weights.",
            setting="arch",
        )
    if arch.shipped:
        return load_checkpoint(PRETRAINED / name, average)
    if average:
        raise missing_weights(name, average)
    files = _fetch_files(name, arch)
    try:
        checkpoint = load_checkpoint(files[0] if len(files) == 1 else files[0].parent)
    except CheckpointError as error:  # damaged in the cache, or never what it should be
        raise DownloadError(
            error.message,
            kind=error.kind,
            hint=f"{_remove(files)}.\n{_by_hand(arch)}",
            path=error.path,
        ) from None
    checkpoint.arch = name
    checkpoint.trained_on = {"data": arch.data, "licence": arch.licence}
    return checkpoint


def _remove(files: list[Path]) -> str:
    """Take files out of the cache; what was done, in words."""
    try:
        for file in files:  # in the hub's cache, a link and what it links to
            file.resolve().unlink(missing_ok=True)
            file.unlink(missing_ok=True)
    except OSError as error:
        return f"Remove it from the cache, which failed here ({error}), and try again"
    return "It was removed from the cache: try again"


def _fetch_files(name: str, arch: Arch) -> list[Path]:
    """The files in the cache: one of weights, or those of a model folder."""
    if arch.url:
        file = _cached(arch)
        if not file.is_file():
            _release_file(name, arch, file)
        return [file]
    if arch.timm:
        return [_hub_file(name, arch, WEIGHTS_NAME)]
    config = _hub_file(name, arch, CONFIG_NAME)
    # Of one commit, whatever happens on the hub between the two.
    return [config, _hub_file(name, arch, WEIGHTS_NAME, revision=config.parent.name)]


def _hub_file(name: str, arch: Arch, file: str, revision: str | None = None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository = str(arch.hub or arch.timm)
    try:
        return Path(hf_hub_download(repository, file, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        log.info("fetching %s of %s/%s", file, _HUB, repository)
    retries = logging.getLogger("huggingface_hub")
    level = retries.level
    retries.setLevel(logging.ERROR)  # it tells of each retry; one error tells of them all
    try:
        path = Path(hf_hub_download(repository, file, revision=revision))
        _check_digest(path)
        return path
    except Exception as error:  # the hub's own, its HTTP library's, the system's
        raise _failed(name, arch, f"{repository}/{file}", error) from error
    finally:
        retries.setLevel(level)


def _check_digest(path: Path) -> None:
    """Hold a file of the hub's cache against its name: for large files, that is their SHA-256."""
    blob = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        with blob.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != blob.name:
            _remove([path])
            raise ValueError(f"its SHA-256 is {digest}, expected {blob.name}")


def _release_file(name: str, arch: Arch, file: Path) -> None:
    """Download a file; it gets its name when it is whole and has been read as weights."""
    import pooch

    def download(url: str, output_file: str, pooch_: Any) -> None:
        fetch_file = pooch.HTTPDownloader(progressbar=sys.stderr.isatty())
        fetch_file(url, output_file, pooch_)
        load_checkpoint(output_file)

    pooch.get_logger().setLevel("WARNING")
    log.info("fetching %s", arch.url)
    try:  # no hash is published
        pooch.retrieve(arch.url, None, fname=file.name, path=file.parent, downloader=download)
    except Exception as error:  # the system's, the HTTP library's, ours
        raise _failed(name, arch, str(arch.url), error) from error


def _failed(name: str, arch: Arch, what: str, error: Exception) -> DownloadError:
    reason = first_line(first_cause(error))
    return DownloadError(
        f"{what} could not be fetched ({reason}), and is not in the cache",
        kind="network",
        hint=f"{_by_hand(arch)}\nmaest.pretrained=False builds the network with random weights.",
        setting=name,
    )


def _by_hand(arch: Arch) -> str:
    """How to do without the download."""
    use = "give maest.checkpoint=<{}> (in Python, checkpoint=…)"
    page = f"{_HUB}/{arch.hub or arch.timm}/tree/main"
    if arch.url:
        return f"By hand: get {arch.url} and put it to {_cached(arch)}, or {use.format('file')}."
    if arch.timm:
        return f"By hand: get {WEIGHTS_NAME} from {page} and {use.format('file')}."
    return (
        f"By hand: get {CONFIG_NAME} and {WEIGHTS_NAME} from {page} into one folder, and "
        f"{use.format('folder')}. Or get {arch.elsewhere} and {use.format('file')}."
    )


def _cached(arch: Arch) -> Path:
    """Where a release's file is kept."""
    return Path(torch.hub.get_dir()) / "checkpoints" / str(arch.url).rpartition("/")[2]

"""The published weights: fetched once, kept in the libraries' own caches, checked.

- MAEST: the Hugging Face hub, through `huggingface_hub` (its cache; ``HF_HOME`` moves it).
- DeiT: the hub too; timm knows which repository.
- PaSST: a file of a GitHub release, through `pooch`, into torch's cache (``TORCH_HOME`` moves it).

What is in the cache is used without asking the network.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch

from models.archs import Arch, find_arch
from models.weights import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    Checkpoint,
    CheckpointError,
    DamagedError,
    load_checkpoint,
)

log = logging.getLogger(__name__)


class DownloadError(CheckpointError):
    """Weights that could not be fetched; the message says where to get them, and where to put."""


def fetch(name: str) -> Checkpoint:
    """The published weights of an architecture, from the cache or the network.

    Args:
        name: one of `models.archs.ARCHS` that has published weights.

    Raises:
        ValueError: for an unknown name, or one without published weights.
        DownloadError: if they are not in the cache and cannot be fetched, or arrive damaged.
    """
    arch = find_arch(name)
    if not arch.published:
        raise ValueError(
            f"there are no published weights of {name!r}: build it with pretrained=False and train "
            "it, or pass a checkpoint"
        )
    files, path = _fetch_files(name, arch)
    try:
        checkpoint = load_checkpoint(path)
    except DamagedError as error:
        for file in files:  # of the hub's cache: the link, and what it links to
            file.resolve().unlink(missing_ok=True)
            file.unlink(missing_ok=True)
        raise DownloadError(f"{error}\nThe damaged download was removed: try again") from None
    checkpoint.arch = name
    checkpoint.licence = arch.licence
    checkpoint.trained_on = {"data": arch.data} if arch.data else {}
    return checkpoint


def _fetch_files(name: str, arch: Arch) -> tuple[list[Path], Path]:
    """``(files in the cache, the one or the folder to load)``."""
    if arch.url:
        file = Path(torch.hub.get_dir()) / "checkpoints" / arch.url.rpartition("/")[2]
        if not file.is_file():
            _release_file(name, arch, file)
        return [file], file
    if arch.hub:
        config = _hub_file(name, arch, arch.hub, CONFIG_NAME)
        # Of one commit, whatever happens on the hub between the two.
        weights = _hub_file(name, arch, arch.hub, WEIGHTS_NAME, revision=config.parent.name)
        return [config, weights], weights.parent
    from timm.models import get_pretrained_cfg

    found = get_pretrained_cfg(arch.timm)
    weights = _hub_file(name, arch, found.hf_hub_id, found.hf_hub_filename or WEIGHTS_NAME)
    return [weights], weights


def _hub_file(
    name: str, arch: Arch, repository: str, file: str, revision: str | None = None
) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    page = f"https://huggingface.co/{repository}"
    log.info("fetching %s of %s", file, page)
    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # the hub's own, its HTTP library's, the system's
        by_hand = f"{file} from {page}/tree/main, and give maest.checkpoint=<file>"
        if arch.hub:
            by_hand = (
                f"{CONFIG_NAME} and {WEIGHTS_NAME} from {page}/tree/main into one folder, and give "
                f"maest.checkpoint=<folder>"
            )
        raise _failed(name, arch, f"{repository}/{file}", by_hand, error) from error


def _release_file(name: str, arch: Arch, file: Path) -> None:
    """Download a file; it gets its name when it is whole and has been read as weights."""
    import pooch

    class Checked(pooch.HTTPDownloader):
        def __call__(self, url: str, output_file: str, pooch: object, **options) -> None:
            super().__call__(url, output_file, pooch, **options)
            load_checkpoint(output_file)

    pooch.get_logger().setLevel("WARNING")
    log.info("fetching %s", arch.url)
    try:
        pooch.retrieve(
            arch.url,
            known_hash=None,  # none is published
            fname=file.name,
            path=file.parent,
            downloader=Checked(progressbar=sys.stderr.isatty()),
        )
    except Exception as error:  # the system's, the HTTP library's, ours
        by_hand = f"{arch.url} and put it to {file}, or give maest.checkpoint=<file>"
        raise _failed(name, arch, arch.url, by_hand, error) from error


def _failed(name: str, arch: Arch, what: str, by_hand: str, error: Exception) -> DownloadError:
    cause = error.__cause__ or error.__context__ or error
    reason = str(cause).strip().splitlines()[0] if str(cause).strip() else type(cause).__name__
    other = f"\nThe same weights: {arch.elsewhere} (maest.checkpoint=<file>)" * bool(arch.elsewhere)
    return DownloadError(
        f"{name}: {what} could not be fetched ({reason}), and is not in the cache.\n"
        f"Get {by_hand}.{other}\nmaest.pretrained=False builds the network with fresh weights"
    )

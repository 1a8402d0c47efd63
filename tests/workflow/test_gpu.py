"""What only a GPU can show. `make gpu` runs these, with whatever Python has PyTorch and Lightning.

They use none of the other tests' fixtures, whose packages may be missing there.
``MAEST_TEST_DEVICE=cpu`` tries them without a GPU.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch

from maest.config import Settings, parse
from maest.datasets.batches import ClipBatch
from maest.datasets.datamodule import MaestDataModule
from maest.datasets.groundtruth import read_groundtruth, write_groundtruth
from maest.datasets.melspectrograms import write_mel
from maest.experiments.plan import decided
from maest.experiments.pretrain import build_trainer
from maest.helpers.audio.mel import MelSpectrogram
from maest.helpers.training.checkpoints import LAST, Checkpoints
from maest.models import get_maest
from maest.models.maest import inference
from maest.models.training import MaestModule

DEVICE = os.environ.get("MAEST_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no GPU"),
]
NAME = "maest-tiny-music"
BLOCKS = (0, 7, -1)
# Relative to the norm of the float32 result on a CPU, after twelve blocks.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 6e-2}


def mels(tracks: int = 6, frames: int = 312) -> torch.Tensor:
    return 3 * torch.rand(tracks, 96, frames, generator=torch.Generator().manual_seed(0))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float().cpu() - expected).norm() / expected.norm())


@pytest.mark.parametrize("samples", [1, 5_000, 160_000])
def test_front_end(samples):
    waveform = torch.randn(2, samples, generator=torch.Generator().manual_seed(0))
    found = MelSpectrogram().to(DEVICE)(waveform.to(DEVICE)).cpu()
    torch.testing.assert_close(found, MelSpectrogram()(waveform), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("frames", [120, 312])
def test_network_in_each_precision(dtype, frames):
    net, mel = get_maest(NAME), mels(frames=frames)
    expected = {block: embeddings(net, mel, block) for block in BLOCKS}
    net = net.to(DEVICE)
    with torch.autocast(torch.device(DEVICE).type, dtype, enabled=dtype != torch.float32):
        for block in BLOCKS:
            found = embeddings(net, mel.to(DEVICE), block)
            assert relative(found, expected[block]) < TOLERANCE[dtype], block


def embeddings(net: torch.nn.Module, mel: torch.Tensor, block: int = 7) -> torch.Tensor:
    with inference(net):
        return net(mel, block, melspectrogram_input=True)[1]


@pytest.mark.skipif(DEVICE == "cpu", reason="pinned memory is a GPU's")
def test_pinned_batches_arrive_whole():
    batch = ClipBatch(mels().transpose(1, 2).half(), torch.rand(6, 5)).pin_memory()
    assert batch.mel.is_pinned()
    moved = [batch.to(DEVICE) for _ in range(20)]
    torch.cuda.synchronize()
    for one in moved:
        assert torch.equal(one.mel.cpu(), batch.mel)
        assert torch.equal(one.targets.cpu(), batch.targets)


def test_extractor():
    pytest.importorskip("av")
    pytest.importorskip("soxr")
    from maest.models.extraction import Extractor

    waveform = 0.1 * np.random.default_rng(0).standard_normal(16_000 * 12).astype(np.float32)
    on_cpu, on_device = (
        torch.from_numpy(Extractor(NAME, blocks=[7], device=device)(waveform).embeddings[7])
        for device in ("cpu", DEVICE)
    )
    assert relative(on_device, on_cpu) < TOLERANCE[torch.float16]


def test_compiled_blocks_give_the_same():
    net, mel = get_maest(NAME).to(DEVICE), mels().to(DEVICE)
    expected = embeddings(net, mel).cpu()
    net.compile_blocks(**({"backend": "eager"} if DEVICE == "cpu" else {}))
    assert relative(embeddings(net, mel), expected) < TOLERANCE[torch.float32]


@pytest.fixture(scope="module")
def tracks(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tracks")
    rng = np.random.default_rng(0)
    truth = {}
    for i in range(20):
        mel = rng.random((400, 96), np.float32)
        mel[:, 32 * (i % 3) : 32 * (i % 3) + 32] += 2.5
        write_mel(folder / f"{i}.mmap", mel)
        truth[f"{i}.mmap"] = np.arange(3) == i % 3
    write_groundtruth(folder / "groundtruth.pk", truth)
    return folder


def train(tracks: Path, folder: Path, epochs: int, precision: str, continued: Path | None = None):
    """Train epochs of 5 steps, from a checkpoint or from nothing; the module and a checkpoint."""
    given = {
        "trainer": {
            "max_epochs": epochs,
            "precision": precision,
            "accelerator": "gpu" if DEVICE == "cuda" else DEVICE,
            "deterministic": True,
            "enable_progress_bar": False,
        },
        "module": {"mixup_alpha": 0.3, "time_masks": 4, "freq_masks": 2},
        "datamodule": {"batch_size_train": 4, "clips_per_epoch": None, "num_workers": 2},
    }
    settings = decided(parse(Settings, given), frames=312, tracks=20)
    pl.seed_everything(0, workers=True, verbose=False)
    truth = read_groundtruth(tracks / "groundtruth.pk")
    data = MaestDataModule(
        {"train": truth, "val": truth},
        base_dir=tracks,
        clip_frames=312,
        batch_size_train=4,
        num_workers=2,
    )
    net = get_maest("maest_tiny", n_classes=3, input_t=312, s_patchout_t=15).train()
    module = MaestModule(net, settings.module)
    trainer = build_trainer(settings, folder, [Checkpoints(folder, {})], logger=False)
    trainer.fit(module, data, ckpt_path=continued, weights_only=True)
    assert trainer.global_step == 5 * epochs
    return module, folder / LAST


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true"])
def test_a_continued_training_is_the_same_to_the_last_bit(tracks, tmp_path, precision, monkeypatch):
    if DEVICE == "cpu" and precision != "32-true":
        pytest.skip("a CPU trains in float32")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what determinism needs
    whole, _ = train(tracks, tmp_path / "whole", 4, precision)
    _, half = train(tracks, tmp_path / "half", 2, precision)
    continued, _ = train(tracks, tmp_path / "continued", 4, precision, half)
    for (name, one), other in zip(
        whole.net.state_dict().items(), continued.net.state_dict().values(), strict=True
    ):
        assert torch.isfinite(one).all(), name
        assert torch.equal(one, other), name

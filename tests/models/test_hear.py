"""The HEAR 2021 API: what its evaluation kit asks for, and that embeddings are of what they say."""

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import refuses
from networks import tiny
from torch import nn

from maest.helpers.errors import InputError
from maest.models import Maest, get_maest, hear, save_model

RATE = 16_000
D = 64

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of an input of 5 s."""
    return save_model(tmp_path_factory.mktemp("hear") / "model", tiny())


@pytest.fixture(scope="module")
def model(folder) -> hear.HearModel:
    return hear.load_model(str(folder), transformer_block=1)


@pytest.fixture(scope="module")
def net(folder) -> Maest:
    return get_maest(checkpoint=folder)


def sound(sounds: int, seconds: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand((sounds, int(seconds * RATE)), generator=generator) - 0.5


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def both(audio: torch.Tensor, model: hear.HearModel) -> list[torch.Tensor]:
    return [hear.get_scene_embeddings(audio, model), *hear.get_timestamp_embeddings(audio, model)]


def same(found: list[torch.Tensor], expected: list[torch.Tensor], atol=1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert not one.requires_grad
        close(one, other, atol)


# ---------------------------------------------------------------- load_model


def test_the_module_is_what_the_evaluation_kit_imports():
    first = next(iter(inspect.signature(hear.load_model).parameters.values()))
    assert (first.name, first.default) == ("model_file_path", "")
    for function in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
        assert list(inspect.signature(function).parameters) == ["audio", "model"]


@pytest.mark.parametrize(("block", "size"), [(0, 3 * D), (1, 3 * D), (-1, D), (None, 3 * D)])
def test_the_model_says_its_rate_and_sizes(folder, block, size):
    model = hear.load_model(str(folder), transformer_block=block)
    assert isinstance(model, nn.Module)
    assert not any(module.training for module in model.modules())
    sizes = (model.scene_embedding_size, model.timestamp_embedding_size)
    assert (model.sample_rate, *sizes) == (16000, size, size)
    assert all(type(value) is int for value in (model.sample_rate, *sizes))


@pytest.mark.parametrize("block", [2, -2, 0.5, True, "last", [0, 1], "all"])
def test_other_blocks_are_refused(folder, block):
    with refuses(..., setting="transformer_block"):
        hear.load_model(str(folder), transformer_block=block)


def test_a_name_asks_for_published_weights_and_a_folder_goes_before_it(monkeypatch, tmp_path):
    assert hear.load_model("maest-tiny-music").net.embed_dim == 192
    for name in ("maest_tiny", "maest_tinny", "no/such/model"):  # random weights are no model
        with pytest.raises(InputError):
            hear.load_model(name)
    save_model(tmp_path / "maest_tiny", tiny())
    monkeypatch.chdir(tmp_path)
    assert hear.load_model("maest_tiny", transformer_block=-1).scene_embedding_size == D
    monkeypatch.setattr(hear, "get_maest", lambda name, pretrained: tiny(labels=[name, "b", "c"]))
    assert hear.load_model().net.labels[0] == "discogs-maest-30s-pw-129e"


@pytest.mark.parametrize("block", [0, 1, -1])
@pytest.mark.parametrize("seconds", [2.74, 5.5, 12.0])  # one patch; a remainder left out; 5 + 5 + 2
def test_a_scene_is_the_mean_over_patches_by_seconds(folder, net, block, seconds):
    sounds = sound(2, seconds)
    found = hear.get_scene_embeddings(sounds, hear.load_model(str(folder), transformer_block=block))
    assert (found[0] - found[1]).abs().max() > 1e-3
    for samples, embedding in zip(sounds, found, strict=True):
        patches = net(samples, transformer_block=block)[1].detach().numpy()
        frames = 1 + -(-len(samples) // 256)
        weights = {2.74: [frames], 5.5: [312], 12.0: [312, 312, frames - 624]}[seconds]
        expected = np.average(patches, axis=0, weights=weights)
        close(embedding, torch.from_numpy(expected.astype(np.float32)))


@pytest.mark.parametrize("seconds", [1 / RATE, 0.048, 0.0479, 0.2, 1.07, 4.0, 1200])
def test_timestamps_are_regular_from_the_start_to_the_end(model, monkeypatch, seconds):
    """Without drift in twenty minutes, the longest that HEAR asks for."""
    monkeypatch.setattr(hear.HearModel, "forward", lambda _, mels: torch.zeros(len(mels), 3 * D))
    sounds = torch.zeros(2, int(seconds * RATE))
    embeddings, timestamps = hear.get_timestamp_embeddings(sounds, model)
    assert embeddings.shape == (2, timestamps.shape[1], model.timestamp_embedding_size)
    assert timestamps[0, 0] == 0
    assert torch.equal(timestamps[0], timestamps[1])
    assert (timestamps.diff(dim=1) == 48).all()  # exactly, and not more than 50
    end = 1000 * sounds.shape[1] / RATE
    assert end - 48 < timestamps[0, -1] <= end


@pytest.mark.parametrize("block", [1, -1])
def test_a_window_is_centred_on_its_timestamp(folder, net, block):
    """Each is recomputed from the samples around it: 16 frames, the two beyond them left out."""
    sounds = sound(1, 0.7)
    model = hear.load_model(str(folder), transformer_block=block)
    embeddings, timestamps = hear.get_timestamp_embeddings(sounds, model)
    padded = nn.functional.pad(sounds[0], (3000, 3000))
    for embedding, milliseconds in zip(embeddings[0], timestamps[0], strict=True):
        centre = 3000 + int(milliseconds * 16)
        around = padded[centre - 2176 : centre + 2176]  # 136 ms before, 136 ms after
        mel = net.melspectrogram(around)[:, 1:-1]
        assert mel.shape == (96, 16)
        close(embedding, net(mel[None], transformer_block=block)[1][0])


# ---------------------------------------------------------------- both


@pytest.mark.parametrize("seconds", [1 / RATE, 0.1, 0.6, 7.0])
def test_a_sound_alone_is_as_in_a_batch_and_the_same_again(model, seconds):
    sounds = sound(3, seconds)
    together = both(sounds, model)
    assert all(map(torch.equal, both(sounds, model), together))
    for i in range(3):
        same(both(sounds[i : i + 1], model), [values[i : i + 1] for values in together])


def test_neither_gradients_nor_training_mode(folder, model):
    sounds = sound(1, 0.5).requires_grad_()
    dropping = hear.load_model(str(folder), transformer_block=1)
    dropping.net.pos_drop.p = 0.5
    dropping.train()
    before = sounds.detach().clone()
    same(both(sounds, dropping), both(before, model))
    assert all(module.training for module in dropping.modules())  # as it was
    assert torch.equal(sounds, before)
    # What was computed without gradients can still be the input of something that learns.
    nn.Linear(3 * D, 1)(both(before, model)[0]).sum().backward()


@pytest.mark.parametrize(
    "audio",
    [torch.zeros(800), torch.zeros(2, 0), torch.full((1, 800), float("inf")), [[0.0] * 800]],
)
def test_other_audio_is_refused(model, audio):
    for function in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
        with refuses(..., setting="audio"):
            function(audio, model)


def test_a_half_precision_model_gives_float32(folder, model):
    half = hear.load_model(str(folder), transformer_block=1).to(torch.bfloat16)
    same(both(sound(1, 0.3), half), both(sound(1, 0.3), model), atol=0.1)

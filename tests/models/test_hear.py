"""The HEAR 2021 API: what its evaluation kit asks for, and that embeddings are of what they say."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from maest.helpers.errors import InputError
from maest.models import Maest, get_maest, hear, maest, save_model

ROOT = Path(__file__).resolve().parents[2]
RATE = 16_000
D = 64


pytestmark = pytest.mark.usefixtures("one_thread")


def network(seed: int = 0, **options) -> Maest:
    """A small network whose every weight tells, of an input of 5 s."""
    torch.manual_seed(seed)
    sizes = {"n_classes": 3, "input_t": 312, "embed_dim": D, "num_heads": 1, "depth": 2}
    model = Maest(**(sizes | options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("hear") / "model", network())


@pytest.fixture(scope="module")
def model(folder) -> hear.HearModel:
    return hear.load_model(str(folder), transformer_block=1)


@pytest.fixture(scope="module")
def net(folder) -> Maest:
    """The same network by the front door."""
    return get_maest(checkpoint=folder)


def noise(sounds: int, seconds: float, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((sounds, int(seconds * RATE)), generator=generator) - 0.5


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# ---------------------------------------------------------------- load_model


def test_the_module_is_what_the_evaluation_kit_imports(folder):
    """It is started at the root of the repository, and needs neither trainer nor framework."""
    code = (
        "import importlib, sys; m = importlib.import_module('maest.models.hear');"
        "assert all(callable(getattr(m, n)) for n in ('load_model', 'get_scene_embeddings',"
        " 'get_timestamp_embeddings'));"
        "assert not {'sacred', 'pytorch_lightning', 'lightning'} & set(sys.modules);"
        f"m.load_model({str(folder)!r}, **{{'transformer_block': 0}})"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_signatures_are_those_of_the_api():
    module = importlib.import_module("maest.models.hear")
    first = next(iter(inspect.signature(module.load_model).parameters.values()))
    assert (first.name, first.default) == ("model_file_path", "")
    for function in (module.get_scene_embeddings, module.get_timestamp_embeddings):
        assert list(inspect.signature(function).parameters) == ["audio", "model"]


@pytest.mark.parametrize(("block", "size"), [(0, 3 * D), (1, 3 * D), (-1, D)])
def test_the_model_says_its_rate_and_sizes(folder, block, size):
    model = hear.load_model(str(folder), transformer_block=block)
    assert isinstance(model, nn.Module)
    assert not any(module.training for module in model.modules())
    assert model.sample_rate == 16000
    sizes = (model.scene_embedding_size, model.timestamp_embedding_size)
    assert sizes == (size, size)
    assert all(type(value) is int for value in (model.sample_rate, *sizes))


def test_a_file_of_weights_will_do(tmp_path, net):
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    loaded = hear.load_model(tmp_path / "weights.pt", transformer_block=1)
    sounds = noise(1, 1)
    close(hear.get_scene_embeddings(sounds, loaded), net(sounds[0], transformer_block=1)[1])


def test_block_7_is_the_default_or_the_last_of_a_shallower_network(tmp_path, folder):
    assert hear.load_model(str(folder)).transformer_block == 1
    deep = save_model(tmp_path / "deep", network(depth=9, embed_dim=32, num_heads=1))
    sounds = noise(1, 1)
    found = hear.get_scene_embeddings(sounds, hear.load_model(str(deep)))
    close(found, get_maest(checkpoint=deep)(sounds[0], transformer_block=7)[1])


@pytest.mark.parametrize("block", [2, -2, 0.5, True, "last", [0, 1], "all"])
def test_other_blocks_are_refused(folder, block):
    with pytest.raises(InputError) as error:
        hear.load_model(str(folder), transformer_block=block)
    assert error.value.setting == "transformer_block"


@pytest.mark.parametrize(
    ("given", "arch"), [("", "discogs-maest-30s-pw-129e"), ("maest_tiny", "maest_tiny")]
)
def test_a_name_asks_for_published_weights(monkeypatch, tmp_path, given, arch):
    calls = []

    def fetch(*args, **kwargs):
        calls.append((args, kwargs))
        return network(depth=8, embed_dim=16, num_heads=1)

    monkeypatch.setattr(hear, "get_maest", fetch)
    monkeypatch.chdir(tmp_path)
    hear.load_model(given)
    assert calls == [((arch,), {"pretrained": True})]


def test_random_weights_are_no_model():
    with pytest.raises(InputError, match="maest_tiny"):
        hear.load_model("maest_tiny")


def test_a_folder_goes_before_a_name(monkeypatch, tmp_path):
    save_model(tmp_path / "maest_tiny", network(embed_dim=16))
    monkeypatch.chdir(tmp_path)
    assert hear.load_model("maest_tiny", transformer_block=-1).scene_embedding_size == 16


def test_what_is_neither_file_nor_name_is_refused():
    with pytest.raises(InputError) as error:
        hear.load_model("maest_tinny")
    assert "'maest_tiny'" in error.value.hint
    with pytest.raises(InputError, match="no/such/model"):
        hear.load_model("no/such/model")


# ---------------------------------------------------------------- scenes


@pytest.mark.parametrize("block", [0, 1, -1])
@pytest.mark.parametrize("seconds", [2.74, 5.5, 12.0])  # one patch; a remainder left out; 5 + 5 + 2
def test_a_scene_is_the_mean_over_patches_by_seconds(folder, net, block, seconds):
    sounds = noise(2, seconds)
    found = hear.get_scene_embeddings(sounds, hear.load_model(str(folder), transformer_block=block))
    assert found.dtype == torch.float32
    for sound, embedding in zip(sounds, found, strict=True):
        patches = net(sound, transformer_block=block)[1].detach().numpy()
        frames = 1 + -(-len(sound) // 256)
        weights = {2.74: [frames], 5.5: [312], 12.0: [312, 312, frames - 624]}[seconds]
        expected = np.average(patches, axis=0, weights=weights)
        close(embedding, torch.from_numpy(expected.astype(np.float32)))


def test_scenes_of_different_sounds_differ(model):
    one, other = hear.get_scene_embeddings(noise(2, 1), model)
    assert (one - other).abs().max() > 1e-3


# ---------------------------------------------------------------- timestamps


@pytest.mark.parametrize("seconds", [1.07, 1.98, 4.0, 1 / RATE, 0.048, 0.0479, 0.2, 6.3])
def test_timestamps_are_regular_from_the_start_to_the_end(model, seconds):
    sounds = noise(2, seconds)
    embeddings, timestamps = hear.get_timestamp_embeddings(sounds, model)
    assert embeddings.dtype == timestamps.dtype == torch.float32
    assert embeddings.shape == (2, timestamps.shape[1], model.timestamp_embedding_size)
    assert timestamps.shape[0] == 2
    assert timestamps[0, 0] == 0
    assert torch.equal(timestamps[0], timestamps[1])
    assert (timestamps.diff(dim=1) == 48).all()  # exactly, and not more than 50
    end = 1000 * sounds.shape[1] / RATE
    assert end - 48 < timestamps[0, -1] <= end


def test_timestamps_do_not_drift(model, monkeypatch):
    """Twenty minutes, the longest that HEAR asks for: the last is where it belongs."""
    monkeypatch.setattr(hear.HearModel, "forward", lambda _, mels: torch.zeros(len(mels), 1))
    _, timestamps = hear.get_timestamp_embeddings(torch.zeros(1, 1200 * RATE), model)
    assert timestamps.shape == (1, 25_001)
    assert timestamps[0, -1] == 1_200_000


@pytest.mark.parametrize("block", [1, -1])
def test_a_window_is_centred_on_its_timestamp(folder, net, block):
    """Each is recomputed from the samples around it: 16 frames, the two beyond them left out."""
    sounds = noise(1, 0.7)
    model = hear.load_model(str(folder), transformer_block=block)
    embeddings, timestamps = hear.get_timestamp_embeddings(sounds, model)
    silence = torch.zeros(3000)
    sound = torch.cat((silence, sounds[0], silence))
    for embedding, milliseconds in zip(embeddings[0], timestamps[0], strict=True):
        centre = len(silence) + int(milliseconds * 16)
        around = sound[centre - 2176 : centre + 2176]  # 136 ms before, 136 ms after
        mel = net.melspectrogram(around)[:, 1:-1]
        assert mel.shape == (96, 16)
        close(embedding, net(mel[None], transformer_block=block)[1][0])


@pytest.mark.parametrize("at", [0.0, 0.333, 0.6, 1.19])  # s
def test_an_event_is_heard_where_it_is_and_nowhere_else(model, at):
    first = int(at * RATE)
    sounds = torch.zeros(1, int(1.2 * RATE))
    sounds[0, first : first + 64] = noise(1, 64 / RATE)[0]  # 4 ms
    silence, _ = hear.get_timestamp_embeddings(torch.zeros_like(sounds), model)
    close(silence, silence[:, :1].expand_as(silence), atol=1e-6)
    embeddings, timestamps = hear.get_timestamp_embeddings(sounds, model)
    change = (embeddings - silence)[0].abs().amax(dim=1)
    distance = (timestamps[0] - 1000 * (at + 0.002)).abs()
    assert (distance > 138).any()
    assert change[distance > 138].max() < 1e-6
    assert change[distance <= 124].min() > 1e-3


def test_a_later_sound_has_later_embeddings(model):
    """768 samples more of silence in front: one timestamp later, and nothing else."""
    sounds = noise(1, 1)
    before, _ = hear.get_timestamp_embeddings(sounds, model)
    later = torch.cat((torch.zeros(1, 768), sounds), dim=1)
    after, _ = hear.get_timestamp_embeddings(later, model)
    close(after[:, 1:], before)


# ---------------------------------------------------------------- both


def both(audio: torch.Tensor, model: hear.HearModel) -> list[torch.Tensor]:
    return [hear.get_scene_embeddings(audio, model), *hear.get_timestamp_embeddings(audio, model)]


@pytest.mark.parametrize("seconds", [1 / RATE, 0.1, 0.6, 7.0])
def test_a_sound_alone_is_as_in_a_batch(model, seconds):
    sounds = noise(3, seconds)
    together = both(sounds, model)
    for i in range(3):
        for alone, among in zip(both(sounds[i : i + 1], model), together, strict=True):
            close(alone[0], among[i])


def test_the_same_sounds_give_the_same_embeddings(model):
    sounds = noise(2, 1)
    for one, again in zip(both(sounds, model), both(sounds, model), strict=True):
        assert torch.equal(one, again)


@pytest.mark.parametrize("tokens", [1, 40, 2000])
def test_passes_have_no_seam_and_are_bounded(model, monkeypatch, tokens):
    sounds = noise(3, 11.5)
    expected = both(sounds, model)
    seen = []
    encode = Maest.encode

    def record(self, mel, *args):
        seen.append(mel.shape)
        return encode(self, mel, *args)

    monkeypatch.setattr(Maest, "encode", record)
    monkeypatch.setattr(maest, "TOKENS_PER_PASS", tokens)
    for found, whole in zip(both(sounds, model), expected, strict=True):
        close(found, whole)
    # Positions of a patch: 9 rows, and a column for each 10 frames, the first for 16.
    assert all(b == 1 or b * (2 + 9 * ((t - 16) // 10 + 1)) <= tokens for b, _, t in seen)
    if tokens == 2000:  # windows of several sounds go together
        assert torch.Size((181, 96, 16)) in seen


def test_any_floating_type_and_layout_is_taken(model):
    sounds = noise(2, 0.5)
    for found, expected in zip(both(sounds.double(), model), both(sounds, model), strict=True):
        assert found.dtype == torch.float32
        close(found, expected)
    strided = torch.stack((sounds, sounds), dim=2)[..., 0]
    assert not strided.is_contiguous()
    for found, expected in zip(both(strided, model), both(sounds, model), strict=True):
        close(found, expected)


def test_arrays_and_16_bit_samples_are_taken(model):
    samples = (32768 * noise(2, 0.5)).short()
    expected = both(samples / 32768, model)
    for given in (samples, samples.numpy(), (samples / 32768).numpy()):
        for one, other in zip(both(given, model), expected, strict=True):
            close(one, other)


def test_neither_gradients_nor_training_mode(folder, model):
    sounds = noise(1, 0.5).requires_grad_()
    dropping = hear.load_model(str(folder), transformer_block=1)
    dropping.net.pos_drop.p = 0.5
    dropping.train()
    before = sounds.detach().clone()
    for found, expected in zip(both(sounds, dropping), both(before, model), strict=True):
        assert not found.requires_grad
        close(found, expected)
    assert all(module.training for module in dropping.modules())  # as it was
    assert torch.equal(sounds, before)
    # What was computed without gradients can still be the input of something that learns.
    nn.Linear(3 * D, 1)(both(before, model)[0]).sum().backward()


def test_a_half_precision_model_gives_float32(folder, model):
    half = hear.load_model(str(folder), transformer_block=1).to(torch.bfloat16)
    sounds = noise(1, 0.3)
    for found, expected in zip(both(sounds, half), both(sounds, model), strict=True):
        assert found.dtype == torch.float32
        close(found, expected, atol=0.1)


@pytest.mark.parametrize(
    "audio",
    [
        torch.zeros(800),
        torch.zeros(1, 2, 800),
        torch.zeros(()),
        torch.zeros(0, 800),
        torch.zeros(2, 0),
        torch.zeros(2, 800, dtype=torch.int32),
        torch.zeros(2, 800, dtype=torch.complex64),
        torch.tensor([[0.0] * 800, [0.0, float("nan")] * 400]),
        torch.full((1, 800), float("inf")),
    ],
)
def test_other_audio_is_refused(model, audio):
    for function in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
        with pytest.raises(InputError) as error:
            function(audio, model)
        assert error.value.setting == "audio"


def test_what_is_no_tensor_and_no_model_is_refused(model, net):
    for function in (hear.get_scene_embeddings, hear.get_timestamp_embeddings):
        with pytest.raises(TypeError, match="list"):
            function([[0.0] * 800], model)
        with pytest.raises(TypeError, match="Maest"):
            function(noise(1, 0.1), net)

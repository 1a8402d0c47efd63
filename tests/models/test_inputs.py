"""Waveforms and spectrograms that a network takes, and those that it refuses."""

import math
from functools import partial

import networks
import numpy as np
import pytest
import torch
from made_up import refuses
from networks import noise

from maest.helpers.audio.mel import MelSpectrogram
from maest.helpers.errors import InputError

INPUT_T = 165  # frames of a patch: 16 positions, and 15 patch columns
MEL = {"melspectrogram_input": True}

tiny = partial(networks.tiny, input_t=INPUT_T)
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)


@pytest.fixture(autouse=True)
def no_gradients(one_thread):
    with torch.no_grad():
        yield


def waves(*shape: int) -> torch.Tensor:
    return 0.3 * noise(*shape, seed=2)


@pytest.mark.parametrize(
    ("shape", "options", "patches"),
    [
        ((1,), {}, 1),
        ((INPUT_T * 256,), {}, 1),
        ((2 * INPUT_T * 256 + 16_000,), {}, 3),
        ((4, 3000), {}, 4),
        ((96, 1), MEL, 1),
        ((96, 2 * INPUT_T + 63), MEL, 3),
        ((3, 96, 1), {}, 3),
        ((3, 1, 96, 40), MEL, 3),
    ],
)
def test_shapes(shape, options, patches):
    model, x = tiny(), waves(*shape)
    before = x.clone()
    logits, embeddings = model(x, **options)
    assert (logits.shape, embeddings.shape) == ((patches, 3), (patches, 64))
    nothing, embeddings = model(x, transformer_block=0, **options)
    assert (nothing, embeddings.shape) == (None, (patches, 192))
    model.predict_labels(x, **options)
    model.train()(x, **options)
    assert torch.equal(x, before)
    if x.ndim == 4:
        close(model.eval()(x)[0], model(x[:, 0])[0])


@pytest.mark.parametrize("n", [1, 3839, 3840, 3841, 20_000, 2 * INPUT_T * 256 + 20_000])
def test_waveform_and_spectrogram_give_the_same(n):
    model, wave = tiny(norm_mean=1.0, norm_std=0.25), waves(n)
    mel = model.melspectrogram(wave)
    assert mel.shape == (96, 1 + -(-n // 256))
    close(mel, (MelSpectrogram()(wave) - 1) / 0.5)
    for block in (-1, 0):
        close(model(wave, block)[1], model(mel, block, melspectrogram_input=True)[1])
    if n < INPUT_T * 256:
        close(model.melspectrogram(wave[None]), mel[None])
        close(model(wave[None])[0], model(mel[None])[0])
        close(model(wave)[0], model(wave[None])[0])


def test_casting_the_network_leaves_the_front_end():
    model, wave = tiny().to(torch.bfloat16), waves(5000)
    assert torch.equal(model.melspectrogram(wave), tiny().melspectrogram(wave))
    logits, _ = model(wave)
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


@pytest.mark.parametrize("frames", [1, 2, 15])
def test_short_inputs_are_padded_with_silence(frames):
    model, mel = tiny(norm_mean=1.5, norm_std=2.0), noise(96, frames)
    padded = torch.full((96, 16), -1.5 / 4)
    close(padded, model.melspectrogram(torch.zeros(15 * 256)))
    padded[:, :frames] = mel
    for block in (-1, 0):
        expected = model(padded[None], block)[1]
        assert torch.equal(model(mel, block, melspectrogram_input=True)[1], expected)
        assert torch.equal(model(mel[None, None], block)[1], expected)
    if frames == 2:  # the same as a sound with zeros after it
        sound = waves(256)
        mel = model.melspectrogram(torch.cat((sound, torch.zeros(14 * 256))))
        mel[:, 2:] = -1.5 / 4  # the frame that reaches into the sound from outside of it
        close(model(sound)[0], model(mel[None])[0])


@pytest.mark.parametrize("block", [-1, 1])
def test_a_long_input_is_its_patches_one_after_the_other(monkeypatch, block):
    monkeypatch.setattr("maest.models.maest.TOKENS_PER_PASS", 3 * (2 + 9 * 8))  # three patches
    length = 90
    model, wave = tiny(input_t=length), waves((7 * length + 70) * 256)
    passes = []
    model.blocks[0].register_forward_hook(lambda _m, _i, out: passes.append(len(out)))
    mel = model.melspectrogram(wave)
    pieces = mel[None].split(length, dim=-1)
    assert [piece.shape[-1] for piece in pieces[-2:]] == [length, 71]
    expected = [model(piece, block) for piece in pieces]
    embeddings = torch.cat([one[1] for one in expected])
    for found in (model(wave, block), model(mel, block, melspectrogram_input=True)):
        assert passes[-4:] == [3, 3, 1, 1]
        close(found[1], embeddings)
        if block < 0:
            close(found[0], torch.cat([one[0] for one in expected]))
    # 40 frames more than whole patches: less than a second, left out
    found = model(mel[:, : 2 * length + 40], block, melspectrogram_input=True)
    close(found[1], embeddings[:2])


@pytest.mark.parametrize("training", [False, True])
def test_how_long_an_input_may_be_where_it_is_not_cut(training):
    model = tiny(input_t=625).train(training)
    for shape in ((1, 96, 635), (1, 1, 96, 635), (1, 634 * 256)):
        assert model(waves(*shape))[0].shape == (1, 3)
        with refuses("invalid", setting="x"):
            model(waves(*shape[:-1], shape[-1] + 1))


PCM = torch.zeros(2, 96, 50, dtype=torch.int16)  # spectrograms are none


@pytest.mark.parametrize("x", [[0.0], None, PCM, PCM[0, 0].int(), PCM[0, 0] > 0, np.array(["a"])])
def test_other_types_are_refused(x):
    with pytest.raises(TypeError):
        tiny()(x)


@pytest.mark.parametrize(
    ("shape", "options", "kind", "hint"),
    [
        ((0,), {}, "empty", "[samples]"),
        ((0, 16_000), {}, "empty", "[samples]"),
        ((96, 0), MEL, "empty", "[F, T]"),
        ((0, 96, 50), {}, "empty", "[B, F, T]"),
        ((), {}, "invalid", "[samples]"),
        ((1, 1, 1, 96, 50), {}, "invalid", "[B, F, T]"),
        ((95, 50), MEL, "mismatch", "96 bands"),
        ((2, 128, 50), {}, "mismatch", "96 bands"),
        ((2, 1, 64, 50), {}, "mismatch", "96 bands"),
        ((50, 96), MEL, "mismatch", "transposed"),
        ((2, 1, 50, 96), {}, "mismatch", "transposed"),
        ((2, 2, 96, 50), {}, "invalid", "[B, 1, F, T]"),
        ((16_000,), MEL, "invalid", "melspectrogram_input"),
        # Two dimensions that would be waveforms, and are meant otherwise
        ((96, 1875), {}, "invalid", "melspectrogram_input=True"),
        ((312, 96), {}, "invalid", "x.T"),
        ((2, 480_000), {}, "invalid", "x.mean(0)"),
        ((480_000, 2), {}, "invalid", "x.mean(1)"),
        ((20, 480_000), {}, "invalid", "[samples]"),
    ],
)
def test_other_shapes_are_refused(shape, options, kind, hint):
    """The hint says what to give instead."""
    with pytest.raises(InputError) as caught:
        tiny()(torch.zeros(shape), **options)
    assert (caught.value.kind, caught.value.setting) == (kind, "x")
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "as_given",
    [
        lambda wave: wave.numpy(),
        lambda wave: wave.numpy().astype(np.float64),
        lambda wave: wave.numpy().astype(">f4"),
        lambda wave: wave.numpy()[::-1].copy()[::-1],  # which torch does not take
        lambda wave: wave.double(),
        lambda wave: (wave * 32768).short(),
        lambda wave: (wave * 32768).short().numpy(),
    ],
)
def test_waveforms_in_any_form(as_given):
    model = tiny()
    for wave in (waves(50_000), waves(2, 20_000)):
        wave = (0.1 * wave).clamp(-1, 1).mul(32768).round() / 32768  # what 16 bits hold
        given = as_given(wave)
        assert torch.equal(model(given)[0], model(wave)[0])
        assert torch.equal(model.melspectrogram(given), model.melspectrogram(wave))
        np.testing.assert_array_equal(*(model.predict_labels(x)[0] for x in (given, wave)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("shape", "at", "options"),
    [
        ((2, 5000), (1, 0), {}),
        ((2, 1, 96, 10), (1, 0, 0, 0), {}),
        # in the half second that is left out at the end of a long track
        ((INPUT_T * 256 + 9000,), (INPUT_T * 256 + 8000,), {}),
        ((96, INPUT_T + 30), (0, INPUT_T + 29), MEL),
    ],
)
def test_what_is_not_finite_is_refused_in_eval_only(shape, at, options, value):
    model, x = tiny(), noise(*shape)
    x[at] = value
    with refuses("corrupt", setting="x"):
        model(x, **options)
    assert model.train()(x, **options)[0].shape[1] == 3

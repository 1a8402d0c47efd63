"""Extraction in Python: file → waveform → patches → outputs, without Sacred and Lightning."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from maest.helpers.audio.log_mel import log_mel
from maest.helpers.audio.reading import AudioError, read_audio
from maest.helpers.errors import InputError
from maest.models import get_maest, save_model
from maest.models.extraction import Extractor, patch_plan

RATE = 16_000

pytestmark = pytest.mark.usefixtures("one_thread")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    path = tmp_path_factory.mktemp("music") / "song.flac"
    rng, t = np.random.default_rng(0), np.arange(int(12.5 * 44_100)) / 44_100
    tones = sum(np.sin(2 * np.pi * f * t * (1 + 0.02 * np.sin(t))) for f in (220, 330, 1_000))
    stereo = np.stack((tones, tones * np.sin(3 * t)), 1) * 0.1 + rng.normal(0, 0.01, (len(t), 2))
    soundfile.write(path, stereo, 44_100)
    return path


def stored(song) -> torch.Tensor:
    """The song's log-mel as it would be on disk: [96, T], of float16 values."""
    return torch.from_numpy(log_mel(read_audio(song)).astype(np.float32)).T


def test_three_lines(song):
    extract = Extractor("maest-tiny-scores", blocks=[7])
    embedding = extract(song).embeddings[7]
    assert embedding.shape == (3, 192)
    net = get_maest("maest-tiny-scores")
    with torch.no_grad():
        mel = net.normalise(stored(song))
        rows = net(mel, 7, melspectrogram_input=True)[1].view(-1, 3, 192)
        plain = net(torch.from_numpy(read_audio(song)), 7)[1].view(-1, 3, 192)
    weights = [312, 312, 159]  # frames: 12.5 s are 783
    expected = np.average(rows.numpy(), axis=0, weights=weights)
    np.testing.assert_allclose(embedding, expected, rtol=1e-4, atol=1e-3)
    in_float32 = np.average(plain.numpy(), axis=0, weights=weights)
    cosine = torch.cosine_similarity(*map(torch.from_numpy, (embedding, in_float32)), dim=-1)
    assert cosine.min() > 0.999999


def test_the_ladder_gives_what_the_file_gives(song):
    extract = Extractor("maest-tiny-scores", blocks=[6, -1], logits=True, activations=True)
    whole = extract(song)
    waveform = read_audio(song)
    rungs = extract.outputs(extract.log_mel(waveform))
    for one, other in (
        (whole.embeddings[6], rungs.embeddings[6]),
        (whole.embeddings[-1], rungs.embeddings[-1]),
        (whole.logits, rungs.logits),
        (whole.activations, rungs.activations),
    ):
        np.testing.assert_array_equal(one, other)
    assert whole.times.tolist() == rungs.times.tolist()
    tensor = extract.outputs(extract.log_mel(torch.from_numpy(waveform)))
    np.testing.assert_array_equal(tensor.logits, whole.logits)


def test_activations_are_those_of_predict_labels(song):
    extract = Extractor("maest-tiny-scores", blocks=[], activations=True)
    result, net = extract(song), get_maest("maest-tiny-scores")
    activations, labels = net.predict_labels(net.normalise(stored(song)), True)
    np.testing.assert_allclose(result.activations, activations, atol=1e-5)
    assert extract.labels == labels
    assert result.patch_activations.shape == (3, len(labels))


def test_all_blocks_of_a_model_folder(song, tmp_path):
    net = get_maest("maest_tiny", n_classes=3, input_t=312, depth=3)
    save_model(tmp_path / "model", net)
    extract = Extractor(tmp_path / "model", blocks="all", pool="none")
    result = extract(song)
    assert {b: e.shape for b, e in result.embeddings.items()} == {b: (3, 3, 192) for b in range(3)}
    assert result.times[:, 0].tolist() == pytest.approx([0, 4.992, 9.984])


def test_a_network_of_ones_own_and_other_patches(song):
    net = get_maest("maest-tiny-scores", s_patchout_t_interleaved=2)
    extract = Extractor(net, blocks=-1, patch_seconds=4, hop_seconds=2, tail="pad", pool="none")
    result = extract(song)
    assert result.times[:, 0].tolist() == [0, 2, 4, 6, 8]
    assert result.embeddings[-1].shape == (5, 192)
    assert result.times[-1, 2] == 12  # what is left is less than a second


def test_the_network_is_left_as_it_is(song):
    net = get_maest("maest-tiny-scores").train()
    types = [type(module) for module in net.modules()]
    extract = Extractor(net, blocks=-1)
    result = extract(song)
    assert all(module.training for module in net.modules())
    assert [type(module) for module in net.modules()] == types
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    other = Extractor(net.eval(), blocks=-1)(song)
    np.testing.assert_array_equal(result.embeddings[-1], other.embeddings[-1])


@on_gpu
def test_another_device_leaves_the_network_where_it_is(song):
    net = get_maest("maest-tiny-scores")
    extract = Extractor(net, device="cuda", precision="32-true")
    assert {p.device.type for p in net.parameters()} == {"cpu"}
    expected, found = Extractor(net)(song).embeddings[7], extract(song).embeddings[7]
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-2)


@on_gpu
def test_precision_on_a_gpu_is_the_commands(song):
    half, single = (
        Extractor("maest-tiny-scores", logits=True, precision=precision)
        for precision in (None, "32-true")
    )
    assert half.extraction.engine.device.type == "cuda"
    one, other = half(song), single(song)
    assert not np.array_equal(one.logits, other.logits)
    np.testing.assert_allclose(one.logits, other.logits, rtol=0.02, atol=0.05)


def test_the_default_block_is_7_or_the_last_of_a_shallower_network():
    assert Extractor("maest-tiny-scores").extraction.spec.blocks == (7,)
    net = get_maest("maest_tiny", n_classes=3, input_t=312, depth=3)
    assert Extractor(net).extraction.spec.blocks == (2,)


@pytest.mark.parametrize(
    "blocks", [np.array([6, 7]), torch.tensor([6, 7]), (6.0, 7), [np.int64(6), 7], range(6, 8)]
)
def test_blocks_as_numbers_of_any_kind(blocks):
    assert Extractor("maest-tiny-scores", blocks=blocks).extraction.spec.blocks == (6, 7)


def test_int8_is_close_and_says_how_close(song):
    exact = Extractor("maest-tiny-scores", blocks=[6], logits=True)
    coarse = Extractor("maest-tiny-scores", blocks=[6], logits=True, quantize="int8")
    one, other = exact(song), coarse(song)
    assert not np.array_equal(one.logits, other.logits)
    cosine = torch.cosine_similarity(
        torch.from_numpy(one.embeddings[6]), torch.from_numpy(other.embeddings[6]), dim=-1
    )
    assert cosine.min() > 0.99
    assert coarse.extraction.engine.similarity.keys() == {"block 6", "logits"}
    assert all(0.99 < value <= 1.0001 for value in coarse.extraction.engine.similarity.values())


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    extract = Extractor("maest-tiny-scores")
    (tmp_path / "broken.mp3").write_bytes(b"no music")
    for name in ("broken.mp3", "missing.wav"):
        with pytest.raises(AudioError) as error:
            extract(tmp_path / name)
        assert error.value.path == tmp_path / name


def test_a_track_that_is_too_short_for_tail_drop(tmp_path):
    soundfile.write(tmp_path / "short.wav", np.zeros(RATE), RATE)
    with pytest.raises(AudioError) as error:
        Extractor("maest-tiny-scores", tail="drop")(tmp_path / "short.wav")
    assert error.value.path == tmp_path / "short.wav"


def test_no_sample_is_no_track():
    extract = Extractor("maest-tiny-scores")
    with pytest.raises(AudioError) as error:
        extract(np.zeros(0, np.float32))
    assert error.value.kind == "empty"


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"patch_seconds": 6}, "patch_seconds"),
        ({"patch_seconds": 0.1}, "patch_seconds"),
        ({"hop_seconds": 0}, "hop_seconds"),
        ({"tail": "cut"}, "tail"),
        ({"blocks": [12]}, "blocks"),
        ({"blocks": [7, 7]}, "blocks"),
        ({"blocks": True}, "blocks"),
        ({"blocks": 7.5}, "blocks"),
        ({"blocks": [None]}, "blocks"),
        ({"blocks": []}, "blocks"),
        ({"pool": "max"}, "pool"),
        ({"precision": "16-true"}, "precision"),
        ({"precision": "16-mixed", "device": "cpu"}, "precision"),
    ],
)
def test_options_that_are_none(options, setting):
    with pytest.raises(InputError) as error:
        Extractor("maest-tiny-scores", **options)
    assert setting in str(error.value)


def test_patchout_that_leaves_little():
    net = get_maest("maest-tiny-scores", s_patchout_f_indices=list(range(1, 9)))
    Extractor(net)  # one row of nine


def test_gaps_between_patches_are_told(caplog):
    Extractor("maest-tiny-scores", hop_seconds=5)
    assert not caplog.records  # 5 s are the length of a patch: 312 frames
    Extractor("maest-tiny-scores", hop_seconds=10)
    assert "not heard" in caplog.text


# ------------------------------------------------------------------ waveforms


@pytest.mark.parametrize(
    "made", [np.float64, np.float32, np.float16, torch.from_numpy, lambda x: torch.tensor(x).half()]
)
def test_a_waveform_of_any_float_type(song, made):
    extract, waveform = Extractor("maest-tiny-scores"), read_audio(song)
    given = waveform.astype(made) if isinstance(made, type) else made(waveform)
    expected, found = extract(song).embeddings[7], extract(given).embeddings[7]
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


def test_samples_of_16_bits_are_scaled(song):
    extract, waveform = Extractor("maest-tiny-scores"), read_audio(song)
    samples = np.round(waveform * 32768).astype(np.int16)
    expected = extract(samples.astype(np.float32) / 32768).embeddings[7]
    for given in (samples, torch.from_numpy(samples)):
        np.testing.assert_array_equal(extract(given).embeddings[7], expected)
    pieces = extract.outputs(extract.log_mel([samples[:50_000], samples[50_000:]]))
    np.testing.assert_array_equal(pieces.embeddings[7], expected)


@pytest.mark.parametrize(
    "waveform",
    [
        np.zeros((2, 100), np.float32),
        np.zeros(100, np.int32),
        np.zeros(100, bool),
        torch.zeros(2, 100),
        np.array(0.5),
    ],
)
def test_what_is_no_waveform(waveform):
    with pytest.raises(InputError) as error:
        Extractor("maest-tiny-scores")(waveform)
    assert error.value.setting == "waveform"


def test_doubtful_waveforms_have_warnings(song):
    extract, waveform = Extractor("maest-tiny-scores"), read_audio(song)
    assert extract(waveform).warnings == extract(song).warnings == []
    assert extract(np.zeros(2 * RATE)).warnings == ["silent"]
    assert extract(waveform[: RATE // 10]).warnings == ["0.1 s only"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_no_numbers(value):
    extract = Extractor("maest-tiny-scores")
    with pytest.raises(InputError, match="NaN"):
        extract(np.full(RATE, value, np.float32))
    with pytest.raises(InputError, match="NaN"):
        extract.log_mel([np.zeros(RATE), np.full(RATE, value)])


def test_an_unknown_model():
    with pytest.raises(InputError) as error:
        Extractor("maest-tiny-score")
    assert "'maest-tiny-scores'" in error.value.hint


def test_the_plan_is_the_models_own_by_default():
    net = get_maest("maest-tiny-scores")
    found = patch_plan(net, None, None, "keep")
    assert (found.length, found.hop, found.tail) == (312, None, "keep")


def test_neither_lightning_nor_sacred_is_needed():
    code = (
        "import sys, maest.models.extraction\n"
        "others = ('sacred', 'pytorch_lightning', 'lightning_fabric')\n"
        "print([name for name in others if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

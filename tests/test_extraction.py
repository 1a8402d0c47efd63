"""Extraction in Python: file → waveform → patches → outputs, without Sacred and Lightning."""

import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from helpers.audio import AudioError, read_audio
from helpers.errors import InputError
from models import get_maest, save_model
from models.extraction import Extractor, cutting

RATE = 16_000

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    path = tmp_path_factory.mktemp("music") / "song.flac"
    rng, t = np.random.default_rng(0), np.arange(int(12.5 * 44_100)) / 44_100
    tones = sum(np.sin(2 * np.pi * f * t * (1 + 0.02 * np.sin(t))) for f in (220, 330, 1_000))
    stereo = np.stack((tones, tones * np.sin(3 * t)), 1) * 0.1 + rng.normal(0, 0.01, (len(t), 2))
    soundfile.write(path, stereo, 44_100)
    return path


def test_three_lines(song):
    extract = Extractor("maest-tiny-scores", blocks=[7])
    embedding = extract(song).embeddings[7]
    assert embedding.shape == (3, 192)
    net = get_maest("maest-tiny-scores")
    with torch.no_grad():
        rows = net(torch.from_numpy(read_audio(song)), transformer_block=7)[1].view(-1, 3, 192)
    weights = [312, 312, 159]  # frames: 12.5 s are 783
    expected = np.average(rows.numpy(), axis=0, weights=weights)
    np.testing.assert_allclose(embedding, expected, rtol=1e-4, atol=1e-3)


def test_the_ladder_gives_what_the_file_gives(song):
    extract = Extractor("maest-tiny-scores", blocks=[6, -1], logits=True, activations=True)
    whole = extract(song)
    waveform = read_audio(song)
    rungs = extract.outputs(extract.patches(waveform))
    for one, other in (
        (whole.embeddings[6], rungs.embeddings[6]),
        (whole.embeddings[-1], rungs.embeddings[-1]),
        (whole.logits, rungs.logits),
        (whole.activations, rungs.activations),
    ):
        np.testing.assert_array_equal(one, other)
    assert whole.times.tolist() == rungs.times.tolist()
    tensor = extract.outputs(extract.patches(torch.from_numpy(waveform)))
    np.testing.assert_array_equal(tensor.logits, whole.logits)


def test_activations_are_those_of_predict_labels(song):
    extract = Extractor("maest-tiny-scores", blocks=[], activations=True)
    result, net = extract(song), get_maest("maest-tiny-scores")
    activations, labels = net.predict_labels(torch.from_numpy(read_audio(song)))
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
    extract = Extractor(net, patch_seconds=4, hop_seconds=2, tail="pad", pool="none")
    result = extract(song)
    assert result.times[:, 0].tolist() == [0, 2, 4, 6, 8]
    assert result.embeddings[-1].shape == (5, 192)
    assert result.times[-1, 2] == 12  # what is left is less than a second


def test_the_networks_mode_and_gradients_stay_as_they_are(song):
    net = get_maest("maest-tiny-scores").train()
    result = Extractor(net)(song)
    assert net.training
    np.testing.assert_array_equal(result.embeddings[-1], Extractor(net.eval())(song).embeddings[-1])
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_int8_is_close_and_says_how_close(song):
    exact = Extractor("maest-tiny-scores", blocks=[6], logits=True)
    coarse = Extractor("maest-tiny-scores", blocks=[6], logits=True, quantize="int8")
    one, other = exact(song), coarse(song)
    assert not np.array_equal(one.logits, other.logits)
    cosine = torch.cosine_similarity(
        torch.from_numpy(one.embeddings[6]), torch.from_numpy(other.embeddings[6]), dim=-1
    )
    assert cosine.min() > 0.99
    assert coarse.encoder.similarity.keys() == {"block 6", "logits"}
    assert all(0.99 < value <= 1.0001 for value in coarse.encoder.similarity.values())


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    extract = Extractor("maest-tiny-scores")
    (tmp_path / "broken.mp3").write_bytes(b"no music")
    for name in ("broken.mp3", "missing.wav"):
        with pytest.raises(AudioError, match=name):
            extract(tmp_path / name)


def test_a_track_that_is_too_short_for_tail_drop(tmp_path):
    soundfile.write(tmp_path / "short.wav", np.zeros(RATE), RATE)
    with pytest.raises(AudioError, match=r"short\.wav.*too short"):
        Extractor("maest-tiny-scores", tail="drop")(tmp_path / "short.wav")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"patch_seconds": 6}, "patches of 6 s: the model takes 0.26 to 4.992 s"),
        ({"patch_seconds": 0.1}, "patches of 0.1 s"),
        ({"hop_seconds": 0}, "every 0 s"),
        ({"tail": "cut"}, "tail is 'cut'"),
        ({"blocks": [12]}, r"\[12\].*0 to 11"),
        ({"pool": "max"}, "pool is 'max'"),
        ({"blocks": []}, "nothing is wanted"),
    ],
)
def test_options_that_are_none(options, what):
    with pytest.raises(ValueError, match=what):
        Extractor("maest-tiny-scores", **options)


@pytest.mark.parametrize("waveform", [np.zeros((2, 100), np.float32), np.zeros(100, np.int16)])
def test_what_is_no_waveform(waveform):
    with pytest.raises(ValueError, match=r"expected floats \[samples\]"):
        Extractor("maest-tiny-scores").patches(waveform)


def test_an_unknown_model():
    with pytest.raises((InputError, FileNotFoundError), match="no-such-model"):
        Extractor("no-such-model")


def test_cutting_is_the_models_own_by_default():
    net = get_maest("maest-tiny-scores")
    found = cutting(net, None, None, "keep")
    assert (found.longest, found.hop, found.tail) == (312, None, "keep")


def test_neither_lightning_nor_sacred_is_needed():
    code = (
        "import sys, models.extraction\n"
        "others = ('sacred', 'pytorch_lightning', 'lightning_fabric')\n"
        "print([name for name in others if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"

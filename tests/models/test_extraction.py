"""Extraction in Python: file → waveform → patches → outputs, of one track and of many."""

import numpy as np
import pytest
import soundfile
import torch
from made_up import refuses

from maest.helpers.audio.log_mel import log_mel
from maest.helpers.audio.patches import PatchPlan, new_frames, times
from maest.helpers.audio.reading import AudioError, read_audio
from maest.helpers.results.tracks import Track, TrackResult
from maest.models import Maest, get_maest
from maest.models.extraction import Extraction, Extractor, OutputSpec

RATE = 16_000
NAME = "maest-tiny-music"

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- one track -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def song(tmp_path_factory):
    path = tmp_path_factory.mktemp("music") / "song.flac"
    rng, t = np.random.default_rng(0), np.arange(int(12.5 * 44_100)) / 44_100
    tones = sum(np.sin(2 * np.pi * f * t * (1 + 0.02 * np.sin(t))) for f in (220, 330, 1_000))
    stereo = np.stack((tones, tones * np.sin(3 * t)), 1) * 0.1 + rng.normal(0, 0.01, (len(t), 2))
    soundfile.write(path, stereo, 44_100)
    return path


@pytest.fixture(scope="module")
def extract() -> Extractor:
    return Extractor(NAME, blocks=[6, 7, -1], logits=True, activations=True)


def equal(one: TrackResult, other: TrackResult) -> None:
    for block, values in one.embeddings.items():
        np.testing.assert_array_equal(values, other.embeddings[block])
    for name in ("logits", "activations", "times"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def cosine(*embeddings: np.ndarray) -> float:
    return torch.cosine_similarity(*map(torch.from_numpy, embeddings), dim=-1).min().item()


def test_a_file_gives_what_the_network_gives(song, extract):
    result, net = extract(song), get_maest(NAME)
    stored = torch.from_numpy(log_mel(read_audio(song)).astype(np.float32)).T  # as on disk
    waveform = torch.from_numpy(read_audio(song))
    mel = net.normalise(stored)
    with torch.no_grad():
        rows = net(mel, 7, melspectrogram_input=True)[1].view(-1, 3, 192)
        plain = net(waveform, 7)[1].view(-1, 3, 192)
    weights = [625, 158]  # frames: 12.5 s are 783
    expected, exact = (np.average(x.numpy(), axis=0, weights=weights) for x in (rows, plain))
    found = result.embeddings[7]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    assert cosine(found, exact) > 0.999999
    coarse = Extractor(NAME, quantize="int8")
    near = coarse(song).embeddings[7]
    assert cosine(found, near) > 0.99
    assert not np.array_equal(found, near)
    assert coarse.extraction.engine.similarity["block 7"] > 0.99
    activations, labels = net.predict_labels(mel, True)
    np.testing.assert_allclose(result.activations, activations, atol=1e-5)
    assert (extract.labels, result.patch_activations.shape) == (labels, (2, len(labels)))
    equal(extract.outputs(extract.log_mel(waveform)), result)  # step by step


def test_any_network_and_other_patches(song):
    net = get_maest(NAME, s_patchout_t_interleaved=2, s_patchout_f_indices=list(range(1, 9)))
    options = {"patch_seconds": 4, "hop_seconds": 2, "tail": "pad", "pool": "none"}
    result = Extractor(net, blocks=-1, **options)(song)
    assert result.times[:, 0].tolist() == [0, 2, 4, 6, 8]
    assert result.embeddings[-1].shape == (5, 192)
    assert result.times[-1, 2] == 12  # what is left is less than a second


def test_blocks_are_numbers_of_any_kind_and_7_or_the_last_by_default():
    net = get_maest("maest_tiny", n_classes=3, input_t=312, depth=3)
    assert [Extractor(model).extraction.spec.blocks for model in (NAME, net)] == [(7,), (2,)]
    for blocks in (np.array([0, 2]), torch.tensor([0, 2]), (0.0, np.int64(2)), range(0, 3, 2)):
        assert Extractor(net, blocks=blocks).extraction.spec.blocks == (0, 2)


def test_tracks_that_cannot_be_read_are_named(tmp_path, extract):
    (tmp_path / "broken.mp3").write_bytes(b"no music")
    soundfile.write(tmp_path / "short.wav", np.zeros(RATE), RATE)
    for name in ("broken.mp3", "missing.wav", "short.wav"):
        with pytest.raises(AudioError) as error:
            (Extractor(NAME, tail="drop") if name == "short.wav" else extract)(tmp_path / name)
        assert error.value.path == tmp_path / name
    with pytest.raises(AudioError) as error:
        extract(np.zeros(0, np.float32))
    assert error.value.kind == "empty"


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("patch_seconds", 11),
        ("patch_seconds", 0.1),
        ("hop_seconds", 0),
        ("tail", "cut"),
        *(("blocks", blocks) for blocks in ([12], [7, 7], True, 7.5, [None], [])),
        ("pool", "max"),
        ("precision", "16-true"),
        ("precision", "16-mixed"),
        ("quantize", "int4"),
    ],
)
def test_options_that_are_none(setting, value):
    with refuses(..., setting=setting):
        Extractor(NAME, device="cpu", **{setting: value})


def test_gaps_between_patches_are_warned_of(caplog):
    Extractor(NAME, hop_seconds=10)
    assert not caplog.records  # 10 s are the length of a patch: 625 frames
    Extractor(NAME, hop_seconds=20)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_waveforms_of_any_type_and_in_pieces(song, extract):
    samples = np.round(read_audio(song) * 32768).astype(np.int16)
    wave = samples.astype(np.float32) / 32768
    expected = extract(wave)
    for given in (samples, torch.from_numpy(samples), wave.astype(np.float64), torch.tensor(wave)):
        equal(extract(given), expected)
    equal(extract.outputs(extract.log_mel([samples[:50_000], samples[50_000:]])), expected)
    half, limit = wave.astype(np.float16), 0.02 * np.abs(expected.embeddings[7]).max()
    for given in (half, torch.from_numpy(half)):
        np.testing.assert_allclose(extract(given).embeddings[7], expected.embeddings[7], atol=limit)


@pytest.mark.parametrize(
    "waveform",
    [
        np.zeros((2, 100), np.float32),
        np.zeros(100, np.int32),
        np.zeros(100, bool),
        torch.zeros(2, 100),
        np.array(0.5),
        np.full(RATE, np.nan, np.float32),
        [np.zeros(RATE), np.full(RATE, np.inf)],
    ],
)
def test_what_is_no_waveform(extract, waveform):
    with refuses(..., setting="waveform"):
        extract(waveform)


def test_doubtful_waveforms_have_warnings(song, extract):
    waveform = read_audio(song)
    assert extract(waveform).warnings == extract(song).warnings == []
    assert extract(np.zeros(2 * RATE)).warnings == ["silent"]
    assert extract(waveform[: RATE // 10]).warnings == ["0.1 s only"]


# ---- many tracks: each is what it is alone -------------------------------------------------------

LENGTH = 60  # frames of a patch
PLAIN = PatchPlan(LENGTH)
FIRST = OutputSpec((0,))
SIZES = {"n_classes": 4, "input_t": LENGTH, "embed_dim": 32, "num_heads": 2, "depth": 3}


@pytest.fixture(scope="module")
def net() -> Maest:
    torch.manual_seed(0)
    net = Maest(**SIZES)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return net.eval()


def tracks_of(*lengths: int) -> list[Track]:
    """Tracks of so many samples."""
    rng = np.random.default_rng(1)
    waves = [rng.normal(0, 0.1, n).astype(np.float32) for n in lengths]
    return [Track(f"track {i}", i, log_mel(wave)) for i, wave in enumerate(waves)]


def extraction(net: Maest, spec: OutputSpec, plan=PLAIN, patches_per_pass=None) -> Extraction:
    return Extraction(net, plan, spec, patches_per_pass, device="cpu")


def run(what: Extraction, tracks: list[Track]) -> list[TrackResult | Track]:
    found = list(what.results(tracks))
    assert [(r.index, r.key) for r in found] == [(t.index, t.key) for t in tracks]
    return found


@torch.no_grad()
def by_hand(net: Maest, track: Track, plan: PatchPlan = PLAIN):
    """Outputs of each patch, one at a time, and the weights: the definition."""
    mel = net.normalise(torch.from_numpy(track.mel.astype(np.float32)).T)
    spans, silence = plan.spans(mel.shape[1]), float(net.normalise(torch.zeros(())))
    outputs = []
    for first, last in spans:
        missing = plan.length - (last - first) if plan.tail == "pad" else 0
        patch = torch.nn.functional.pad(mel[:, first:last], (0, missing), value=silence)
        outputs.append(net.encode(patch[None], (0, 1, -1)))
    rows = {"logits": torch.cat([one.logits for one in outputs])}
    rows |= {block: torch.cat([one.embeddings[block] for one in outputs]) for block in (0, 1, -1)}
    return {name: v.numpy() for name, v in rows.items()}, np.array(new_frames(spans)), spans


@pytest.mark.parametrize("per_pass", [1, 3, None])
@pytest.mark.parametrize(
    "plan",
    [
        PatchPlan(LENGTH),
        PatchPlan(LENGTH, hop=25),
        PatchPlan(LENGTH, hop=90),
        PatchPlan(LENGTH, tail="pad"),
        PatchPlan(LENGTH, hop=17, tail="pad"),
        PatchPlan(LENGTH, most=2),
    ],
)
def test_every_track_is_what_it_is_alone(net, plan, per_pass):
    tracks = tracks_of(100, 4_000, 15_000, 47_000, 80_000)  # from one short patch to six
    pooled, single = (
        run(extraction(net, OutputSpec((0, 1, -1), True, True, pool), plan, per_pass), tracks)
        for pool in ("mean", "none")
    )
    for track, mean, each in zip(tracks, pooled, single, strict=True):
        rows, weights, spans = by_hand(net, track, plan)
        for name, values in rows.items():
            own, patches = (
                r.logits if name == "logits" else r.embeddings[name] for r in (mean, each)
            )
            expected = np.average(values, axis=0, weights=weights)
            np.testing.assert_allclose(own, expected, rtol=1e-4, atol=2e-5)
            np.testing.assert_allclose(patches, values, rtol=1e-4, atol=2e-5)
            assert own.dtype == np.float32
        activations = 1 / (1 + np.exp(-rows["logits"].astype(np.float64)))
        for result in (mean, each):
            np.testing.assert_allclose(result.patch_activations, activations, atol=2e-5)
            expected = np.average(activations, axis=0, weights=weights)
            np.testing.assert_allclose(result.activations, expected, atol=2e-5)
            assert result.times.tolist() == [list(t) for t in times(spans, len(track.mel))]
            assert result.seconds == pytest.approx((len(track.mel) - 1) * 0.016)


@pytest.mark.parametrize(
    ("frames", "at_once", "passes"),
    [
        ([122] * 6, 4, [4, 4, 4]),  # two whole patches each, and no remainder of a second
        ([26, 29, 35], 8, [3]),  # all have two columns: frames that none covers do not tell
    ],
)
def test_patches_of_different_tracks_share_a_pass(net, frames, at_once, passes):
    what = extraction(net, FIRST, patches_per_pass=at_once)
    sizes, engine = [], what.engine

    class Counting:
        device = engine.device

        def __call__(self, mels):
            sizes.append(len(mels))
            return engine(mels)

    what.engine = Counting()
    tracks = tracks_of(*(256 * (n - 1) for n in frames))
    found = run(what, tracks)
    assert sizes == passes
    for track, result in zip(tracks, found, strict=True):
        expected = by_hand(net, track)[0][0].mean(0)
        np.testing.assert_allclose(result.embeddings[0], expected, rtol=1e-4, atol=2e-5)


def test_no_more_tracks_than_fill_some_passes_are_read_ahead(net):
    taken, (track,) = [], tracks_of(15_104)  # a patch
    results = extraction(net, FIRST, patches_per_pass=2).results(
        taken.append(track) or track for _ in iter(int, 1)
    )
    for expected in [8] * 8 + [16]:
        next(results)
        assert len(taken) == expected


def test_tracks_that_fail_leave_the_others_alone(net):
    some = tracks_of(80_000, 4_000, 80_000)
    some[0] = Track("track 0", 0, error="damaged")
    found = run(extraction(net, FIRST, PatchPlan(LENGTH, tail="drop")), some)
    assert found[0].error == "damaged"
    assert found[1].error
    (alone,) = run(extraction(net, FIRST), some[2:])
    np.testing.assert_allclose(found[2].embeddings[0], alone.embeddings[0], atol=1e-5)
    thinned = Maest(**SIZES, s_patchout_t_indices=[0]).eval()
    found = run(extraction(thinned, FIRST), tracks_of(2_000, 20_400))  # a column and a second more
    assert [type(result) for result in found] == [Track, TrackResult]
    assert found[0].error


def test_the_picture_is_of_the_whole_track(net):
    (track,) = tracks_of(47_000)
    what = extraction(net, OutputSpec((0,), pictures=True))
    picture, whole = run(what, [track])[0].picture, len(track.mel) // 4
    assert picture.shape == (96, -(-len(track.mel) // 4))
    expected = track.mel[: 4 * whole].astype("f4").T.reshape(96, whole, 4).mean(2)
    np.testing.assert_allclose(picture[:, :whole], expected, atol=1e-5)
    long = Track("long", 0, np.tile(track.mel, (100, 1)))
    assert 2048 < run(what, [long])[0].picture.shape[1] <= 4096

"""Patches of many tracks through the network: any mixture of chunks gives each track its own."""

import random

import numpy as np
import pytest
import torch

from maest.helpers.chunks import Chunk, Cutting, TrackResult, stream_patches
from maest.helpers.errors import InputError
from maest.helpers.melspectrogram import n_frames
from maest.helpers.patches import fresh, times
from maest.models import Maest
from maest.models.batching import Batcher, Encoder, Failure, Wanted

LONGEST = 60  # frames of a patch
PLAIN = Cutting(LONGEST)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def net() -> Maest:
    torch.manual_seed(0)
    net = Maest(n_classes=4, input_t=LONGEST, embed_dim=32, num_heads=2, depth=3)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return net.eval()


def waves(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(0, 0.1, n).astype(np.float32) for n in lengths]


def chunks_of(waveform, index, cutting=PLAIN, per_chunk=2) -> list[Chunk]:
    return list(stream_patches([waveform], cutting, per_chunk, f"track {index}", index))


def run(batcher: Batcher, chunks) -> dict[str, TrackResult | Failure]:
    found = [result for chunk in chunks for result in batcher.feed(chunk)] + batcher.flush()
    assert len({result.key for result in found}) == len(found)  # each track once
    return {result.key: result for result in found}


def mixed(tracks: list[list[Chunk]], seed: int = 0) -> list[Chunk]:
    """Chunks of several tracks in a random mixture; those of one track in order."""
    rng, left, out = random.Random(seed), [list(track) for track in tracks], []
    while any(left):
        out.append(rng.choice([track for track in left if track]).pop(0))
    return out


def by_hand(net: Maest, waveform: np.ndarray, cutting: Cutting = PLAIN):
    """Outputs of each patch, one at a time, and the weights: the definition."""
    with torch.no_grad():
        mel = net.melspectrogram(torch.from_numpy(waveform))
        spans = cutting.spans(mel.shape[1])
        silence = net.normalise(torch.zeros(()))
        rows = {"logits": [], 0: [], 1: [], -1: []}
        for first, last in spans:
            patch = mel[None, :, first:last]
            if cutting.tail == "pad":
                missing = cutting.longest - (last - first)
                patch = torch.nn.functional.pad(patch, (0, missing), value=float(silence))
            for block in (0, 1):
                rows[block].append(net(patch, transformer_block=block)[1].view(3, -1).numpy())
            logits, final = net(patch)
            rows["logits"].append(logits[0].numpy())
            rows[-1].append(final[0].numpy())
    return {name: np.stack(values) for name, values in rows.items()}, np.array(fresh(spans)), spans


ALL = Wanted((0, 1, -1), logits=True, activations=True)
LENGTHS = (100, 4_000, 15_000, 40_000, 47_000, 80_000)  # from one short patch to six


@pytest.mark.parametrize("per_pass", [1, 3, None])
@pytest.mark.parametrize(
    "cutting",
    [
        Cutting(LONGEST),
        Cutting(LONGEST, hop=25),
        Cutting(LONGEST, hop=90),
        Cutting(LONGEST, tail="pad"),
        Cutting(LONGEST, hop=17, tail="pad"),
    ],
)
def test_every_track_is_what_it_is_alone(net, cutting, per_pass):
    waveforms = waves(*LENGTHS)
    tracks = [chunks_of(w, i, cutting) for i, w in enumerate(waveforms)]
    found = run(Batcher(Encoder(net, ALL), per_pass), mixed(tracks))
    assert len(found) == len(waveforms)
    for i, waveform in enumerate(waveforms):
        rows, weights, spans = by_hand(net, waveform, cutting)
        result = found[f"track {i}"]
        for name, values in rows.items():
            mean = np.average(values, axis=0, weights=weights)
            own = result.logits if name == "logits" else result.embeddings[name]
            np.testing.assert_allclose(own, mean, rtol=1e-4, atol=2e-5)
            assert own.dtype == np.float32
        activations = 1 / (1 + np.exp(-rows["logits"].astype(np.float64)))
        np.testing.assert_allclose(result.patch_activations, activations, atol=2e-5)
        np.testing.assert_allclose(
            result.activations, np.average(activations, axis=0, weights=weights), atol=2e-5
        )
        frames = n_frames(len(waveform))
        assert result.index == i
        assert result.times.tolist() == [list(t) for t in times(spans, frames)]
        assert result.seconds == pytest.approx((frames - 1) * 0.016)


def test_without_pooling_each_patch_is_kept(net):
    (waveform,) = waves(47_000)
    encoder = Encoder(net, Wanted((1, -1), logits=True, pool="none"))
    result = run(Batcher(encoder), chunks_of(waveform, 0))["track 0"]
    rows, _, spans = by_hand(net, waveform)
    assert result.embeddings[1].shape == (len(spans), 3, 32)
    np.testing.assert_allclose(result.embeddings[1], rows[1], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(result.embeddings[-1], rows[-1], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(result.logits, rows["logits"], rtol=1e-4, atol=2e-5)
    assert result.activations is None
    assert result.patch_activations is None


def passes_of(encoder: Encoder) -> list[int]:
    """Will have the number of patches of each pass."""
    sizes = []
    encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    return sizes


def test_patches_of_different_tracks_share_a_pass(net):
    encoder = Encoder(net, Wanted((0,)))
    sizes = passes_of(encoder)
    run(
        Batcher(encoder, 4),
        mixed([chunks_of(w, i) for i, w in enumerate(waves(*[31_000] * 6))]),
    )
    assert sizes == [4, 4, 4]  # two whole patches each, and no remainder of a second


def test_shorter_patches_of_one_number_of_columns_share_a_pass(net):
    """Frames that no patch embedding covers make no difference, and no group of their own."""
    encoder = Encoder(net, Wanted((0,)))
    sizes = passes_of(encoder)
    lengths = [256 * (frames - 1) for frames in (26, 29, 35)]  # all have two columns
    found = run(Batcher(encoder, 8), [chunks_of(w, i)[0] for i, w in enumerate(waves(*lengths))])
    assert sizes == [3]
    for i, waveform in enumerate(waves(*lengths)):
        own = found[f"track {i}"].embeddings[0]
        np.testing.assert_allclose(own, by_hand(net, waveform)[0][0][0], rtol=1e-4, atol=2e-5)


def test_a_short_patch_does_not_wait_for_ever(net):
    short, *others = waves(4_000, *[15_104] * 40)
    batcher = Batcher(Encoder(net, Wanted((0,))), 2)
    assert batcher.feed(chunks_of(short, 0)[0]) == []
    done = []
    for i, waveform in enumerate(others, 1):
        done += [result.key for result in batcher.feed(chunks_of(waveform, i)[0])]
        if "track 0" in done:
            break
    assert "track 0" in done
    assert 10 <= len(done) <= 20  # after eight passes of two


def test_a_track_appears_with_its_last_patch(net):
    batcher = Batcher(Encoder(net, Wanted((0,))), 1)
    first, second = chunks_of(waves(45_000)[0], 0)
    assert not first.last
    assert batcher.feed(first) == []
    assert [result.key for result in batcher.feed(second)] == ["track 0"]
    assert batcher.flush() == []


def test_a_track_that_fails_on_the_way_leaves_nothing_behind(net):
    bad, good = (chunks_of(w, i) for i, w in enumerate(waves(80_000, 80_000)))
    broken = Chunk("track 0", 0, error="damaged")
    found = run(Batcher(Encoder(net, Wanted((0,))), 64), [bad[0], good[0], broken, *good[1:]])
    assert found["track 0"] == Failure("track 0", 0, "damaged")
    alone = run(Batcher(Encoder(net, Wanted((0,))), 64), good)["track 1"]
    np.testing.assert_allclose(found["track 1"].embeddings[0], alone.embeddings[0], atol=1e-5)


def test_a_second_attempt_makes_the_first_one_void(net):
    (waveform,) = waves(80_000)
    chunks = chunks_of(waveform, 0)
    alone = run(Batcher(Encoder(net, Wanted((0,))), 2), chunks)["track 0"]
    again = chunks_of(waveform, 0)
    for chunk in again:
        chunk.attempt = 1
    for per_pass in (2, 64):  # what came first has been computed, or waits
        batcher = Batcher(Encoder(net, Wanted((0,))), per_pass)
        found = run(batcher, [*chunks_of(waveform, 0)[:2], *again])["track 0"]
        np.testing.assert_array_equal(found.times, alone.times)
        np.testing.assert_allclose(found.embeddings[0], alone.embeddings[0], atol=1e-5)


def test_a_track_without_a_patch_fails(net):
    (waveform,) = waves(4_000)
    chunks = chunks_of(waveform, 0, Cutting(LONGEST, tail="drop"))
    found = run(Batcher(Encoder(net, Wanted((0,)))), chunks)["track 0"]
    assert isinstance(found, Failure)
    assert "too short" in found.reason


def test_log_mel_files_of_two_types_in_one_pass(net):
    """A store may have .mmap (float16) and .npy (float32)."""
    rng = np.random.default_rng(0)
    mel = torch.from_numpy(rng.random((1, LONGEST, 96), np.float32)).half()
    spans, new = np.array([[0, LONGEST]]), np.array([LONGEST])
    chunks = [
        Chunk(name, i, 0, values, spans, new, LONGEST)
        for i, (name, values) in enumerate({"half": mel, "single": mel.float()}.items())
    ]
    found = run(Batcher(Encoder(net, Wanted((0,))), 2), chunks)
    np.testing.assert_array_equal(found["half"].embeddings[0], found["single"].embeddings[0])


def test_the_thumbnail_is_of_the_whole_track(net):
    (waveform,) = waves(47_000)
    encoder = Encoder(net, Wanted((0,), pictures=True))
    for hop in (None, 20):
        chunks = chunks_of(waveform, 0, Cutting(LONGEST, hop))
        picture = run(Batcher(encoder), chunks)["track 0"].picture
        mel = net.frontend(torch.from_numpy(waveform)).numpy()
        used = 4 * (Cutting(LONGEST, hop).spans(mel.shape[1])[-1][1] // 4)
        expected = mel[:, :used].reshape(96, -1, 4).mean(2)
        np.testing.assert_allclose(picture[:, : expected.shape[1]], expected, atol=1e-5)


@pytest.mark.parametrize("block", [3, -2])
def test_a_block_that_is_not_there(net, block):
    with pytest.raises(InputError) as error:
        Encoder(net, Wanted((block,)))
    assert error.value.setting == "blocks"


def test_options_that_are_none(net):
    with pytest.raises(InputError) as error:
        Wanted()
    assert error.value.kind == "empty"
    with pytest.raises(InputError, match="pool"):
        Wanted((0,), pool="median")
    with pytest.raises(InputError, match="quantize"):
        Encoder(net, Wanted((0,)), quantize="int4")


def test_only_the_blocks_that_are_needed_are_computed(net):
    runs = []
    handles = [
        layer.register_forward_hook(lambda *_, number=number: runs.append(number))
        for number, layer in enumerate(net.blocks)
    ]
    try:
        mel = torch.rand(2, LONGEST, 96)
        with torch.no_grad():
            Encoder(net, Wanted((0,)))(mel)
            assert runs == [0]
            runs.clear()
            Encoder(net, Wanted((1, 0)))(mel)
            assert runs == [0, 1]
            runs.clear()
            Encoder(net, Wanted((0, 2), logits=True))(mel)
            assert runs == [0, 1, 2]
    finally:
        for handle in handles:
            handle.remove()


def test_patchout_that_leaves_nothing_of_a_short_patch_costs_that_track(net):
    some = Maest(
        n_classes=4, input_t=LONGEST, embed_dim=32, num_heads=2, depth=1, s_patchout_t_indices=[0]
    ).eval()
    short, long, other = waves(2_000, 31_000, 20_400)  # of the last a patch of one column remains
    chunks = [chunks_of(short, 0), chunks_of(long, 1), chunks_of(other, 2)]
    found = run(Batcher(Encoder(some, Wanted((0,)))), mixed(chunks))
    assert isinstance(found["track 1"], TrackResult)
    assert found["track 0"].reason.startswith("patchout leaves nothing of a patch of 0.2")
    assert isinstance(found["track 2"], TrackResult)


def test_no_more_than_some_passes_wait(net):
    """Tracks of many lengths, none of which fills a pass."""
    batcher = Batcher(Encoder(net, Wanted((0,))), 4)
    done = []
    for i in range(60):
        frames = 16 + 10 * (i % 5)
        (waveform,) = waves(256 * (frames - 1))
        done += batcher.feed(chunks_of(waveform, i)[0])
    many = Batcher(Encoder(net, Wanted((0,))), 2)
    sizes = []
    for i in range(40):
        many.feed(chunks_of(waves(256 * (15 + 10 * (i % 5)))[0], i)[0])
        sizes.append(sum(len(group) for group in many._groups.values()))
    assert len(done) > 40
    assert max(sizes) <= 2 * 8


def test_the_rest_of_a_track_that_failed_is_passed_over(net):
    bad = chunks_of(waves(80_000)[0], 0)
    batcher = Batcher(Encoder(net, Wanted((0,))), 1)
    batcher._void[0] = 0
    assert [batcher.feed(chunk) for chunk in bad] == [[]] * len(bad)
    assert batcher.flush() == []

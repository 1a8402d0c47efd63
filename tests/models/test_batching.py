"""Patches of many tracks share batches: each track's result is what it is alone."""

import numpy as np
import pytest
import torch

from maest.helpers.audio.log_mel import log_mel
from maest.helpers.audio.patches import PatchPlan, new_frames, times
from maest.helpers.errors import InputError
from maest.helpers.results.tracks import Track, TrackResult
from maest.models import Maest
from maest.models.extraction import Extraction, OutputSpec

LENGTH = 60  # frames of a patch
PLAIN = PatchPlan(LENGTH)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def net() -> Maest:
    torch.manual_seed(0)
    net = Maest(n_classes=4, input_t=LENGTH, embed_dim=32, num_heads=2, depth=3)
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


def run(what: Extraction, tracks: list[Track]) -> dict[str, TrackResult | Track]:
    found = list(what.results(tracks))
    assert [result.index for result in found] == [track.index for track in tracks]
    return {result.key: result for result in found}


def by_hand(net: Maest, track: Track, plan: PatchPlan = PLAIN):
    """Outputs of each patch, one at a time, and the weights: the definition."""
    with torch.no_grad():
        mel = net.normalise(torch.from_numpy(track.mel.astype(np.float32)).T)
        spans = plan.spans(mel.shape[1])
        silence = net.normalise(torch.zeros(()))
        rows = {"logits": [], 0: [], 1: [], -1: []}
        for first, last in spans:
            patch = mel[None, :, first:last]
            if plan.tail == "pad":
                missing = plan.length - (last - first)
                patch = torch.nn.functional.pad(patch, (0, missing), value=float(silence))
            for block in (0, 1):
                rows[block].append(net(patch, transformer_block=block)[1].view(3, -1).numpy())
            logits, final = net(patch)
            rows["logits"].append(logits[0].numpy())
            rows[-1].append(final[0].numpy())
    return {name: np.stack(v) for name, v in rows.items()}, np.array(new_frames(spans)), spans


ALL = OutputSpec((0, 1, -1), logits=True, activations=True)
LENGTHS = (100, 4_000, 15_000, 40_000, 47_000, 80_000)  # from one short patch to six


@pytest.mark.parametrize("per_pass", [1, 3, None])
@pytest.mark.parametrize(
    "plan",
    [
        PatchPlan(LENGTH),
        PatchPlan(LENGTH, hop=25),
        PatchPlan(LENGTH, hop=90),
        PatchPlan(LENGTH, tail="pad"),
        PatchPlan(LENGTH, hop=17, tail="pad"),
    ],
)
def test_every_track_is_what_it_is_alone(net, plan, per_pass):
    tracks = tracks_of(*LENGTHS)
    found = run(extraction(net, ALL, plan, patches_per_pass=per_pass), tracks)
    for track in tracks:
        rows, weights, spans = by_hand(net, track, plan)
        result = found[track.key]
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
        assert result.times.tolist() == [list(t) for t in times(spans, len(track.mel))]
        assert result.seconds == pytest.approx((len(track.mel) - 1) * 0.016)


def test_without_pooling_each_patch_is_kept(net):
    (track,) = tracks_of(47_000)
    spec = OutputSpec((1, -1), logits=True, pool="none")
    result = run(extraction(net, spec), [track])["track 0"]
    rows, _, spans = by_hand(net, track)
    assert result.embeddings[1].shape == (len(spans), 3, 32)
    np.testing.assert_allclose(result.embeddings[1], rows[1], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(result.embeddings[-1], rows[-1], rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(result.logits, rows["logits"], rtol=1e-4, atol=2e-5)
    assert result.activations is None
    assert result.patch_activations is None


def passes_of(what: Extraction) -> list[int]:
    """Will have the number of patches of each pass."""
    sizes, engine = [], what.engine

    class Counting:
        device = engine.device

        def __call__(self, mels):
            sizes.append(len(mels))
            return engine(mels)

    what.engine = Counting()
    return sizes


def test_patches_of_different_tracks_share_a_pass(net):
    what = extraction(net, OutputSpec((0,)), patches_per_pass=4)
    sizes = passes_of(what)
    run(what, tracks_of(*[31_000] * 6))
    assert sizes == [4, 4, 4]  # two whole patches each, and no remainder of a second


def test_shorter_patches_of_one_number_of_columns_share_a_pass(net):
    """Frames that no patch embedding covers make no difference, and no batch of their own."""
    what = extraction(net, OutputSpec((0,)), patches_per_pass=8)
    sizes = passes_of(what)
    tracks = tracks_of(*[256 * (frames - 1) for frames in (26, 29, 35)])  # all have two columns
    found = run(what, tracks)
    assert sizes == [3]
    for track in tracks:
        own = found[track.key].embeddings[0]
        np.testing.assert_allclose(own, by_hand(net, track)[0][0][0], rtol=1e-4, atol=2e-5)


def test_no_more_tracks_than_fill_some_passes_are_read_ahead(net):
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield tracks_of(15_104)[0]

    results = extraction(net, OutputSpec((0,)), patches_per_pass=2).results(endless())
    next(results)
    assert taken == 8  # a patch each
    for _ in range(8):
        next(results)
    assert taken == 16


def test_tracks_that_fail_leave_the_others_alone(net):
    some = tracks_of(80_000, 4_000, 80_000)
    some[0] = Track("track 0", 0, error="damaged")
    found = run(extraction(net, OutputSpec((0,)), PatchPlan(LENGTH, tail="drop")), some)
    assert found["track 0"].error == "damaged"
    assert "shorter than a patch (0.96 s)" in found["track 1"].error
    alone = run(extraction(net, OutputSpec((0,))), some[2:])["track 2"]
    np.testing.assert_allclose(found["track 2"].embeddings[0], alone.embeddings[0], atol=1e-5)


def test_the_picture_is_of_the_whole_track(net):
    (track,) = tracks_of(47_000)
    what = extraction(net, OutputSpec((0,), pictures=True))
    picture = run(what, [track])["track 0"].picture
    assert picture.shape == (96, -(-len(track.mel) // 4))
    whole = len(track.mel) // 4
    expected = track.mel[: 4 * whole].astype("f4").T.reshape(96, whole, 4).mean(2)
    np.testing.assert_allclose(picture[:, :whole], expected, atol=1e-5)
    long = Track("long", 0, np.tile(track.mel, (100, 1)))
    assert 2048 < run(what, [long])["long"].picture.shape[1] <= 4096


def test_options_that_are_none(net):
    with pytest.raises(InputError) as error:
        OutputSpec()
    assert error.value.kind == "empty"
    with pytest.raises(InputError, match="pool"):
        OutputSpec((0,), pool="median")


def test_only_the_blocks_that_are_needed_are_computed(net):
    """A block that is not computed may have any weights."""
    (track,) = tracks_of(31_000)
    expected = run(extraction(net, OutputSpec((0, 1))), [track])["track 0"].embeddings
    broken = Maest(n_classes=4, input_t=LENGTH, embed_dim=32, num_heads=2, depth=3)
    broken.load_state_dict(net.state_dict())
    with torch.no_grad():
        for parameter in broken.blocks[2].parameters():
            parameter.fill_(torch.nan)
    found = run(extraction(broken.eval(), OutputSpec((1, 0))), [track])["track 0"].embeddings
    for block in (0, 1):
        np.testing.assert_array_equal(found[block], expected[block])


def test_patchout_that_leaves_nothing_of_a_short_patch_costs_that_track(net):
    some = Maest(
        n_classes=4, input_t=LENGTH, embed_dim=32, num_heads=2, depth=1, s_patchout_t_indices=[0]
    ).eval()
    tracks = tracks_of(2_000, 31_000, 20_400)  # of the last a patch of one column remains
    found = run(extraction(some, OutputSpec((0,))), tracks)
    assert isinstance(found["track 1"], TrackResult)
    assert found["track 0"].error.startswith("patchout leaves nothing of a patch of 0.2")
    assert isinstance(found["track 2"], TrackResult)

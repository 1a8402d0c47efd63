"""benchmarks/extraction.py: a smoke run of its parts, whose figures are not looked at for speed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import extraction, extraction_ways
from benchmarks.extraction_bench import Bench, medians
from benchmarks.extraction_ways import Case, Way
from maest.helpers.audio import read_audio

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """What a smoke run writes."""
    path = tmp_path_factory.mktemp("record") / "record.json"
    extraction.main(["--quick", "--parts", "embeddings", "readers", "--record", str(path)])
    return json.loads(path.read_text())


def test_all_ways_give_the_same_embeddings(record):
    ways = record["embeddings"]["5 s"]["ways"]
    assert list(ways) == list(extraction.CPU_WAYS)
    assert record["embeddings"]["5 s"]["differences_to"] == "plain, 7 blocks"
    for name, way in extraction.CPU_WAYS.items():
        row = ways[name]
        assert row["largest_value"] > 0.1, name
        assert row["seconds"] > 0, name
        if way.quantize or way.every:
            assert row["largest_difference"] > 1e-4, name
            assert 0.99 < row["cosine"]["lowest"] < 1, name
        else:
            assert row["largest_difference"] < 1e-5, name


def test_the_record_says_what_was_measured_and_where(record):
    assert record["machine"]["cores"] > 0
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert record["arguments"]["arch"] == "maest_tiny"
    assert set(record["readers"]) == {"1", "2"}
    assert "encoder" not in record


@pytest.mark.slow
def test_the_blocks_are_a_share_of_a_ceiling():
    record = extraction.main(["--quick", "--parts", "encoder", "--ways", "ours"])
    ours = record["encoder"]["5 s"]["ours"]
    tokens = 2 + 9 * 30  # of 96 bands and 312 frames
    assert (ours["tokens"], ours["batch"]) == (tokens, 4096 // tokens)
    # Of 7 blocks of 192 channels: products with the weights, and attention.
    flop = 7 * (2 * tokens * 12 * 192**2 + 4 * tokens**2 * 192)
    assert ours["blocks"]["tflop"] == pytest.approx(ours["batch"] * flop / 1e12)
    share = ours["blocks"]["share_of_ceiling"]["fastest"]
    rate = ours["batch"] * flop / ours["blocks"]["seconds"]
    assert share == pytest.approx(rate / 1e12 / ours["ceilings_tflops"]["fastest"])


def bench(tmp_path, *line: str) -> Bench:
    args = extraction.arguments(["--quick", *line])
    return Bench(args, tmp_path, extraction.chosen_ways(args))


def test_music_is_stereo_at_44100_and_may_have_several_names(tmp_path):
    folder = bench(tmp_path).music(3, 1.5, different=2)
    first, second, third = sorted(folder.iterdir())
    assert [len(read_audio(path)) for path in (first, second)] == [24_000, 24_000]
    assert not np.array_equal(read_audio(first), read_audio(second))
    assert third.samefile(first)


def test_memory_and_first_results(tmp_path):
    made = bench(tmp_path)
    audio = made.music(1, 2)
    found = made.measure("remember", Way(), extraction.TRAINED, audio, warmup=0)
    assert found["peak_mib"] >= found["loaded_mib"] > 50
    found = made.measure("first_result", Way(), extraction.TRAINED, audio / "0000.flac", rounds=1)
    assert found["first"] > 0
    assert len(found["all"]) == 2


def test_mixed_precision_as_lightning_has_it(tmp_path):
    made = bench(tmp_path)
    audio = made.music(1, 6)
    arrays = []
    for precision in ("32-true", "bf16-mixed"):
        found = made.measure("embed", Way(precision=precision), extraction.TRAINED, audio, warmup=0)
        arrays.append(np.load(found["out"] / "0000.flac.embeddings.npy"))
    assert arrays[0].shape == arrays[1].shape == (3, 192)
    assert abs(arrays[0] - arrays[1]).max() > 1e-4
    assert extraction_ways.cosine(*arrays) > 0.99


def test_a_track_that_cannot_be_read_is_no_result(tmp_path):
    (tmp_path / "music").mkdir()
    (tmp_path / "music/song.flac").write_bytes(b"fLaC but no more")
    case = Case(extraction.TRAINED, str(tmp_path / "music"), str(tmp_path / "out"), workers=0)
    with pytest.raises(RuntimeError, match=r"song\.flac"):
        extraction_ways.embed(Way(), case)


def test_arguments_of_the_two_devices():
    cpu = extraction.arguments([])
    assert (cpu.lengths, cpu.tracks, cpu.track_seconds) == ([30, 10, 5], 4, 90)
    assert "threads" not in cpu.parts
    assert "threads" in extraction.arguments(["--threads"]).parts
    cuda = extraction.arguments(["--device", "cuda"])
    assert cuda.lengths == [30]
    assert "trained" not in cuda.parts
    ways = extraction.chosen_ways(cuda)
    assert ways["ours, bf16, compiled"] == Way(precision="bf16-mixed", compile=True)
    assert all(way.quantize is None for way in ways.values())
    for line in (["--ways", "nobody's"], ["--ways", "plain, 7 blocks"]):
        with pytest.raises(SystemExit, match="way"):
            extraction.chosen_ways(extraction.arguments(line))


def test_without_a_gpu_it_says_so():
    with pytest.raises(SystemExit, match="no CUDA device"):
        extraction.main(["--device", "cuda"])


def test_medians_are_of_all_turns():
    runs = [{"seconds": s, "out": Path("x")} for s in (3.0, 1.0, 2.0)]
    assert medians(runs) == {"seconds": 2.0, "all_seconds": [3.0, 1.0, 2.0]}


@pytest.mark.slow
def test_a_measurement_in_a_process_of_its_own_and_the_command(tmp_path):
    made = bench(tmp_path)
    made.args.quick = False
    audio = made.music(1, 6)
    found = made.measure("embed", Way(), extraction.TRAINED, audio)
    assert found["seconds"] > 0
    assert (found["out"] / "0000.flac.embeddings.npy").is_file()
    assert extraction.command(made, extraction.TRAINED, audio / "0000.flac")["first"] > 1
    with pytest.raises(RuntimeError, match="no such"):
        made.measure("embed", Way(), tmp_path, audio)

"""benchmarks/harness.py: how figures come about."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness import Way, in_turns, medians, with_before


def where(names: list[str]) -> dict[str, str]:
    """Which file each module is."""
    return {name: str(sys.modules[name].__file__) for name in names}


def of_maest() -> dict[str, str]:
    """The files that two of our modules are read from."""
    import maest.helpers.errors  # noqa: F401

    return where(["maest.helpers.errors"])


def fails() -> None:
    raise ValueError("on purpose")


def test_a_measurement_is_of_the_tree_that_is_named(tmp_path):
    (tmp_path / "helpers").mkdir()  # as checkouts were before the package had a name
    (tmp_path / "helpers/errors.py").write_text("")
    ways = with_before({"ours": Way(of_maest, {}), "other": Way(of_maest, {})}, tmp_path)
    assert list(ways) == ["before: ours", "ours", "other"]
    found = {name: runs[0]["maest.helpers.errors"] for name, runs in in_turns(ways, 1).items()}
    assert found["before: ours"] == str(tmp_path / "helpers/errors.py")
    assert Path(found["ours"]) == harness.ROOT / "helpers/errors.py"
    with pytest.raises(RuntimeError, match="on purpose"):
        Way(fails, {}).apart()


def test_figures_are_medians_of_turns():
    order = []
    ways = {name: Way(lambda n: {"seconds": order.append(n) or n}, {"n": n}) for n, name in
            [(1.0, "a"), (4.0, "b")]}  # fmt: skip
    runs = in_turns(ways, 2, apart=False)
    assert order == [1.0, 4.0, 1.0, 4.0]
    rows = medians({"a": [{"seconds": s, "what": "x"} for s in (3.0, 1.0, 2.0)], "b": runs["b"]})
    assert rows["a"] == {"seconds": 2.0, "all_seconds": [3.0, 1.0, 2.0]}
    harness.times_as_fast(rows, "a")
    assert rows["b"]["times_as_fast"] == 0.5


def test_a_command_has_its_time_and_its_output(tmp_path):
    line = [
        sys.executable,
        "-c",
        "import time; time.sleep(0.1); print('done'); raise SystemExit(3)",
    ]
    found = harness.command(line, tmp_path)
    assert found["seconds"] > 0.1
    assert found["cpu_seconds"] > 0
    assert (found["exit_code"], found["output"]) == (3, "done\n")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_the_highest():
    with harness.watching(lambda: harness.memory_mib("RssAnon"), 0.001) as highest:
        before = harness.memory_mib("RssAnon")
        data = bytearray(b"x" * 2**26)
    assert highest[0] > before + 60
    del data
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert child.pid in harness.children()
    finally:
        child.communicate(b"\n")


def test_a_record_says_what_was_measured_and_where(tmp_path):
    args = harness.parser("Speed.\n\nMore.").parse_args(["--record", str(tmp_path / "r.json")])
    record = harness.start_record(args, "torch", "no-such-package")
    harness.save(args, record)
    record = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert record["machine"]["cores"] > 0
    assert set(record["versions"]) == {"python", "torch"}
    assert record["arguments"] == {"repeats": 3, "quick": False}

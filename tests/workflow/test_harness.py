"""benchmarks/harness.py: how figures come about."""

import json
from pathlib import Path

import pytest

import harness
from harness import Bench, Way, in_turns, medians, with_before


def of_maest() -> dict[str, str]:
    import maest.helpers.errors

    return {"file": str(maest.helpers.errors.__file__)}


def fails() -> None:
    raise ValueError("on purpose")


def test_a_measurement_is_of_the_tree_that_is_named(tmp_path):
    (tmp_path / "maest/helpers").mkdir(parents=True)
    for name in ("maest/__init__.py", "maest/helpers/errors.py"):
        (tmp_path / name).write_text("")
    ways = with_before({"ours": Way(of_maest), "other": Way(of_maest)}, tmp_path)
    assert list(ways) == ["before: ours", "ours", "other"]
    found = {name: runs[0]["file"] for name, runs in in_turns(ways, 1).items()}
    assert found["before: ours"] == str(tmp_path / "maest/helpers/errors.py")
    assert Path(found["ours"]) == harness.ROOT / "helpers/errors.py"
    with pytest.raises(RuntimeError, match="on purpose"):
        Way(fails).measured()


def test_figures_are_medians_of_turns():
    order = []
    timed = {"a": 1.0, "b": 4.0}
    ways = {k: Way(lambda n: {"seconds": order.append(n) or n}, {"n": n}) for k, n in timed.items()}
    runs = in_turns(ways, 2, apart=False)
    assert order == [1.0, 4.0, 1.0, 4.0]
    rows = medians({"a": [{"seconds": s, "what": "x"} for s in (3.0, 1.0, 2.0)], "b": runs["b"]})
    assert rows["a"] == {"seconds": 2.0, "all_seconds": [3.0, 1.0, 2.0]}
    harness.times_as_fast(rows, "a")
    assert rows["b"]["times_as_fast"] == 0.5


def test_a_record_says_what_was_measured_and_where(tmp_path):
    given = ["--record", str(tmp_path / "r.json"), "--sizes", "1"]
    options = {"sizes": ([3, 4], [2]), "arch": ("base", "tiny")}
    bench = Bench("Speed.\n\nMore.", given, ("torch", "no-such-package"), **options)
    bench.show("Figures", {"ours": {"seconds": 0.25}, "other": {}}, {"s": "{seconds:.1f}"})
    record = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert record["machine"]["cores"] > 0
    assert set(record["versions"]) == {"python", "torch"}
    assert record["arguments"] == {"repeats": 3, "quick": False, "sizes": [1], "arch": "base"}
    assert record["results"]["Figures"]["ours"] == {"seconds": 0.25}
    assert vars(Bench("", ["--quick"], (), **options).args)["sizes"] == [2]

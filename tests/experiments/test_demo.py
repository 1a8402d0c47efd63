"""`make demo`: its steps are commands that exist, and its report says what came of them."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
from pathlib import Path

import command_line
import pytest

from maest.experiments import demo
from maest.helpers.files.atomic import write_json

METRIC = {"mean": 0.5, "std": 0.01, "values": [0.5, 0.5]}
RESULTS = {
    **{"steps": 600, "seconds": 120, "val_ap": 0.25, "ap": METRIC, "roc_auc": METRIC},
    **{"chance": {"ap": 0.25, "roc_auc": 0.5}, "tracks": {"train": 11, "test": 9}},
    "per_label": [{"label": "Cello", "ap": METRIC}, {"label": "Lute", "ap": None}],
}
TAGS = {"Voice---Choir": 0.9, "Genre---Folk": 0.75, "Voice---Soprano": 0.5, "loud": 0.25}


@pytest.mark.parametrize("line", [line for line in demo.STEPS.values() if line.startswith("ex_")])
def test_each_step_has_settings_that_exist(tmp_path, line):
    words = dict.fromkeys(("works", "epochs"), "") | {"audio": "song.mp3"}
    script, *typed = shlex.split(line.format(*map(str, range(9)), **words))
    settings = " ".join(word.replace(" ", "") for word in typed[typed.index("with") :])
    command_line.good(script, f"print_config {settings}", tmp_path)


def test_a_step_runs_as_it_would_by_itself(tmp_path, monkeypatch, capfd):
    (tmp_path / "step.py").write_text(
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "print(__name__, sys.argv[1:])\n"
        "if sys.argv[1] == 'interrupted': raise KeyboardInterrupt\n"
        "if sys.argv[1] != 'good': sys.exit(int(sys.argv[1]))\n"
    )
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    typed, before = ["demo.py"], signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("sys.argv", typed)
    codes = [demo.run(f"step.py {word} 'two words'") for word in ("good", "0", "3", "interrupted")]
    assert codes == [0, 0, 3, 130]
    assert "__main__ ['good', 'two words']" in capfd.readouterr().out
    assert demo.sys.argv is typed
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def typed(tmp_path, monkeypatch) -> list[str]:
    """The lines of the steps, which leave results in place of running."""
    lines: list[str] = []

    def step(line: str) -> int:
        lines.append(line)
        if "--works 0" in line:
            return 3
        folder = Path("exp_logs", str(len(list(Path("exp_logs").glob("[0-9]*"))) + 1))
        tags = tmp_path / "tags"
        for own in (folder, *(folder / f"probe-{i}" for i in (1, 2, 3))):
            write_json(own / "results.json", RESULTS)
        write_json(folder / "run.json", {"result": {"folder": str(tags)}})
        entries = [{"label": label, "activation": value} for label, value in TAGS.items()]
        track = {"track": "song.mp3", "seconds": 9, "task": "multi-label", "labels": entries}
        write_json(tags / "song.mp3.predictions.json", track | {"patches": []})
        (tags / "song.mp3.predictions.png").write_bytes(b"a picture")
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "run", step)
    (tmp_path / "song.mp3").write_bytes(b"music")
    return lines


def arguments(monkeypatch, *words: str) -> None:
    monkeypatch.setattr("sys.argv", ["demo.py", *words])


def test_report_and_record(typed, tmp_path, monkeypatch):
    (tmp_path / "records").mkdir()
    record = ("--record", "records/demo.json")
    arguments(monkeypatch, "audio=song.mp3", "--epochs", "1", *record)
    assert demo.main() == 0
    assert len(typed) == len(demo.STEPS)
    assert all(" trainer.max_epochs=1" in typed[i] for i in (1, 2))
    assert typed[3].endswith(" maest.checkpoint=exp_logs/2/model")
    assert typed[4].endswith(" maest.checkpoint=exp_logs/3/model")
    assert " runs=[exp_logs/7] " in typed[7]
    assert " inference.audio=song.mp3 " in typed[8]

    report = (tmp_path / "exp_logs/demo/report.md").read_text()
    assert report.count("0.5000 ± 0.0100") == 8
    assert all(f"| {name} " in report for name in (*demo.NAMES, demo.MEL, "chance"))
    assert "- Genre: Folk 0.75\n- Other: loud 0.25\n- Voice: Choir 0.90, Soprano 0.50" in report
    for name in ("demo-tags.png", "demo-instruments.png"):
        assert f"({name})" in report
        assert (tmp_path / "records" / name).is_file()
    assert (tmp_path / "records/demo.md").read_text() == report
    figures = json.loads((tmp_path / "records/demo.json").read_text())
    assert [training["val_ap"] for training in figures["trainings"]] == [0.25, 0.25]
    assert [probe["name"] for probe in figures["probes"]] == [*demo.NAMES, demo.MEL]
    assert list(figures["seconds"]) == [*demo.STEPS, "total"]


def test_it_goes_on_where_it_was_stopped(typed, tmp_path, monkeypatch, capsys):
    arguments(monkeypatch, "audio=song.mp3", "--works", "0")
    assert demo.main() == 3
    assert capsys.readouterr().err.endswith("demo audio=song.mp3 --works 0 --start=1\n")
    arguments(monkeypatch, "audio=song.mp3")
    assert demo.main() == 0
    for start, first in ((3, " ckpt_path=last"), (4, "/model")):
        for number in range(start, 10):
            shutil.rmtree(tmp_path / "exp_logs" / str(number))
        typed.clear()
        arguments(monkeypatch, "audio=song.mp3", f"--start={start}")
        assert demo.main() == 0
        assert len(typed) == len(demo.STEPS) + 1 - start
        assert typed[0].endswith(first)


def test_missing_music_is_refused_before_anything_runs(typed, monkeypatch, capsys):
    arguments(monkeypatch, "audio=nothing.mp3")
    with pytest.raises(SystemExit):
        demo.main()
    assert not typed
    assert "nothing.mp3" in capsys.readouterr().err


def test_the_excerpt_is_small_and_there():
    assert demo.EXCERPT.stat().st_size < 400_000

"""What a person reads at the end: tables, curves and bars."""

from __future__ import annotations

import json
import shutil

from maest.experiments import demo
from maest.helpers.files.atomic import write_json
from maest.helpers.reports.report import pretraining_table, table

PRETRAINING = {
    "epochs": [
        {"epoch": 1, "train_loss": 0.5, "val_ap": 0.25, "val_roc_auc": 0.5, "val_loss": 0.6},
        {"epoch": 2, "train_loss": 0.4},  # an epoch without validation
        {"epoch": 3, "train_loss": 0.3, "val_ap": 0.75, "val_roc_auc": 0.875, "val_loss": 0.4},
    ],
    **{"val_ap": 0.75, "val_tracks": 11, "best_epoch": 3, "best_steps": 30},
    "chance": {"ap": 0.25, "roc_auc": 0.5},
    "label_frequencies": {"ap": 0.2, "roc_auc": 0.5},
}


def test_table_lines_up():
    lines = table(["a", "bb"], [["long", "1"], ["x", "22.5"]]).splitlines()
    assert lines == ["| a    |   bb |", "|------|-----:|", "| long |    1 |", "| x    | 22.5 |"]


def test_pretraining_table():
    text = pretraining_table(PRETRAINING)
    assert "epoch 1 " in text
    assert "epoch 2" not in text
    (kept,) = (line for line in text.splitlines() if "(kept)" in line)
    assert [cell.strip() for cell in kept.split("|")[1:-1]] == [
        *("epoch 3 (kept)", "0.3000", "0.7500", "0.8750"),
    ]
    assert "| chance: random scores " in text
    assert "0.2500" in text.splitlines()[-1]


def test_demo_streams_and_says_how_to_go_on(tmp_path, monkeypatch, capfd):
    """Each step is a child process; the demo ends at one that fails, and can resume there."""
    (tmp_path / "step.py").write_text("import sys; print('step', sys.argv[1:]); sys.exit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    monkeypatch.setattr(demo, "STEPS", {"first": "step.py one{works}", "second": "step.py two"})
    monkeypatch.setattr("sys.argv", ["demo.py", "--works", "7"])
    assert demo.main() == 3
    out, err = capfd.readouterr()
    assert "step ['one', '--works', '7']" in out
    assert "two" not in out
    assert err.endswith("demo --works 7 --start=1\n")


def test_the_demos_steps_and_record(tmp_path, monkeypatch, capsys):
    """The comparison is of the four probes; the record has their metrics, too."""
    typed: list[str] = []

    def step(line: str) -> int:
        typed.append(line)
        folder = tmp_path / "exp_logs" / str(len(typed))
        folder.mkdir(parents=True)
        metric = {"mean": 0.5, "std": 0.01, "values": [0.5, 0.5]}
        labels = [{"label": "Cello", "ap": metric}, {"label": "Lute", "ap": None}]
        probe = {"name": str(len(typed)), "ap": metric, "roc_auc": metric, "per_label": labels}
        write_json(folder / "results.json", PRETRAINING | probe | {"tracks": {"test": 9}})
        (folder / "learning_curve.png").write_bytes(b"a curve")
        model = tmp_path / "exp_logs/latest/model"
        model.mkdir(parents=True, exist_ok=True)
        write_json(model / "config.json", {"sizes": {"norm_mean": 2, "norm_std": 1.25}})
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "run", step)
    monkeypatch.setattr("sys.argv", ["demo.py", "--epochs", "1", "--record", "record.json"])
    assert demo.main() == 0
    assert typed[1].endswith(" trainer.max_epochs=1")
    assert typed[3].endswith(" maest.norm_mean=2 maest.norm_std=1.25")
    assert typed[9].endswith(" runs=[exp_logs/6,exp_logs/7,exp_logs/8,exp_logs/9]")
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["pretraining"]["name"] == "2"
    assert [row["name"] for row in record["probes"]] == ["6", "7", "8", "9"]
    assert len(record["seconds"]) == 11
    report = (tmp_path / "exp_logs/demo/report.md").read_text()
    assert "3.0 times" in report  # chance
    assert report.count("0.5000 ± 0.0100") == 8
    for picture in ("learning_curve.png", "instruments.png"):
        assert f"({picture})" in report
        assert (tmp_path / "exp_logs/demo" / picture).is_file()

    monkeypatch.setattr("sys.argv", ["demo.py", "--start", "10"])
    shutil.rmtree(tmp_path / "exp_logs/10")
    typed.pop()
    assert demo.main() == 0
    assert len(typed) == 10

"""What may import what, and that both scripts can be imported."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = {"config", "datasets", "helpers", "models"}
MAY_IMPORT = {"config": set(), "helpers": set(), "models": {"helpers"}, "datasets": {"helpers"}}
# Files beside the experiments that may know Lightning.
LIGHTNING = {
    *("models/module.py", "models/extraction_module.py", "models/probe.py"),
    "datasets/datamodule.py",
}


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
    return names


FILES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    relative = path.relative_to(ROOT)
    package = relative.parts[0]
    names = imported(path)
    assert names & OURS <= MAY_IMPORT[package] | {package}
    assert not any(name.startswith("ex_") or name == "demo" for name in names)
    assert "sacred" not in names
    if package != "helpers" and str(relative) not in LIGHTNING:
        assert not names & {"pytorch_lightning", "lightning"}


def test_every_file_is_looked_at():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == OURS


def test_scripts_have_a_module_level_experiment():
    code = (
        "import ex_maest, ex_tl; from sacred import Experiment;"
        "assert isinstance(ex_maest.ex, Experiment); assert isinstance(ex_tl.ex, Experiment);"
        "assert {'print_config'} < ex_maest.ex.commands.keys() & ex_tl.ex.commands.keys()"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_looking_at_ground_truths_and_help_need_no_torch():
    """Its import takes seconds."""
    code = (
        "import sys, datasets.groundtruth_command, datasets.preprocess, datasets.mtt.preprocess,"
        "datasets.jamendo.preprocess, datasets.scores.preprocess; assert 'torch' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_nothing_tracked_is_large_or_names_a_home_folder():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    for name in filter(None, files.stdout.split("\0")):
        path = ROOT / name
        if path.is_file():
            assert path.stat().st_size < 12 * 2**20, name
            assert not re.search(rb"/(root|home)/[a-z]", path.read_bytes()), name

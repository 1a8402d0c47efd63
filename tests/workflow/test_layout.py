"""What may import what, and that both scripts can be imported."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import command_line  # isort: skip (first: it quiets warnings)
import pytest

ROOT = Path(__file__).resolve().parents[2]
# The packages that each may import. Experiments read config, and hand plain arguments on.
MAY_IMPORT = {
    "config": {"helpers"},
    "helpers": set(),
    "models": {"helpers"},
    "datasets": {"helpers"},
    "experiments": {"config", "datasets", "helpers", "models"},
    "maest": {"datasets", "helpers", "models"},
}
OURS = set(MAY_IMPORT)
# Files beside the experiments that may know Lightning.
LIGHTNING = {"models/training.py", "datasets/datamodule.py"}


def imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """The modules that statements import; a name in one counts as one."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module}.{a.name}" for a in node.names)


def imported(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it."""
    return set(imports(ast.walk(ast.parse(path.read_text("utf-8")))))


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The statements that run when a module is imported, not those in its functions."""
    for child in ast.iter_child_nodes(node):
        is_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not is_for_types and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
            yield from at_import(child)


FILES = sorted(path for package in OURS for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    relative = path.relative_to(ROOT)
    package = relative.parts[0]
    names = imported(path)
    ours = {name.split(".")[1] for name in names if name.startswith("maest.")} & OURS
    assert ours <= MAY_IMPORT[package] | {package}
    tops = {name.partition(".")[0] for name in names}
    assert not any(name.startswith("ex_") for name in tops) or package == "experiments"
    assert "sacred" not in tops or package == "experiments"
    if package not in ("helpers", "experiments") and str(relative) not in LIGHTNING:
        assert not tops & {"pytorch_lightning", "lightning"}


def test_no_modules_import_each_other_in_a_circle():
    modules = {}
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in ("maest", *parts) if part != "__init__")
        modules[name.replace("maest.maest", "maest")] = path
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = set(imports(at_import(ast.parse(path.read_text("utf-8")))))
        # Of `from maest.a import b`, b is a module or something in a.
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = found & modules.keys()
    assert sum(map(len, graph.values())) > len(FILES)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"circle: {' <- '.join(error.args[1])}")


def test_the_packages_have_one_name():
    """With two names, a class would be two classes."""
    older = OURS - {"maest"}
    for path in ROOT.rglob("*.py"):
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts):
            assert not {name.partition(".")[0] for name in imported(path)} & older, path


def succeeds(code: str, cwd: Path = ROOT) -> None:
    run = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_older_names_are_the_same_objects():
    succeeds(
        "import warnings; warnings.simplefilter('error', DeprecationWarning)\n"
        "try: import models\n"
        "except DeprecationWarning: pass\n"
        "else: raise SystemExit('no warning')\n"
        "warnings.simplefilter('ignore')\n"
        "from models import get_maest; from models.extraction import Extractor\n"
        "from helpers.audio import read_audio; import models.hear, datasets.groundtruth, config\n"
        "import maest, maest.models.hear, maest.datasets.groundtruth, maest.config\n"
        "assert get_maest is maest.get_maest and Extractor is maest.Extractor\n"
        "assert read_audio is maest.read_audio and models.hear is maest.models.hear\n"
        "assert datasets.groundtruth is maest.datasets.groundtruth and config is maest.config\n"
    )


def test_every_public_name_is_there():
    import maest

    assert all(hasattr(maest, name) for name in maest.__all__)
    with pytest.raises(AttributeError):
        maest.get_mest  # noqa: B018


@pytest.mark.parametrize("script", ["ex_maest", "ex_tl"])
def test_what_was_typed_is_looked_at_without_heavy_imports(tmp_path, script):
    succeeds(
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {script} as script\n"
        "from maest.experiments.runs import run_command_line\n"
        "for line, expected in [('print_config', 0), ('print_named_configs', 0),\n"
        "                       ('help predict', 0), ('with seeed=1', 1)]:\n"
        f"    try: code = run_command_line(script.ex, ['{script}.py', *line.split()])\n"
        "    except SystemExit as end: code = end.code\n"
        "    assert code == expected, (line, code)\n"
        "    heavy = {'torch', 'pytorch_lightning', 'timm', 'torchvision', 'sklearn'}\n"
        "    heavy = {*heavy, 'matplotlib'} & sys.modules.keys()\n"
        "    assert not heavy, (line, heavy)\n",
        tmp_path,
    )
    assert not list(tmp_path.iterdir())  # none of these is a run


def test_looking_at_ground_truths_and_help_need_no_torch():
    """Its import takes seconds."""
    succeeds(
        "import sys, maest.datasets.groundtruth_command, maest.datasets.preprocess,"
        "maest.datasets.mtt.preprocess, maest.datasets.jamendo.preprocess,"
        "maest.datasets.recordings.preprocess, maest.datasets.scores.preprocess;"
        "assert 'torch' not in sys.modules"
    )


def test_tagging_needs_neither_sacred_nor_lightning():
    succeeds(
        "import sys, torch, maest.models.hear, maest.models.extraction, maest.models.probe\n"
        "maest.models.get_maest('maest-tiny-music').predict_labels(torch.zeros(9))\n"
        "assert not {'sacred', 'pytorch_lightning', 'lightning'} & set(sys.modules)"
    )


def test_nothing_tracked_is_large_or_names_a_home_folder():
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    for name in filter(None, files.stdout.split("\0")):
        path = ROOT / name
        if path.is_file():
            assert path.stat().st_size < 12 * 2**20, name
            assert not re.search(rb"/(root|home)/[a-z]", path.read_bytes()), name


def test_no_colour_codes_in_a_pipe(tmp_path):
    for line in ("print_config with seed=1", "print_named_configs"):
        assert "\x1b" not in command_line.good("ex_maest.py", line, tmp_path)

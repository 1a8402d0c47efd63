"""The repository as a package: what a wheel holds, and that it works away from a checkout."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from packaging.requirements import Requirement

import maest
from maest.helpers.files.data_folder import data_folder

# Packages of the extras, which tagging and embedding do without
OPTIONAL = ["dask", "git", "librosa", "matplotlib", "music21", "pytorch_lightning", "sacred"]
OPTIONAL += ["sklearn", "soundfile", "symusic", "tensorboard", "timm", "torchvision"]
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def pins(name: str) -> dict[str, Requirement]:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    found = [Requirement(line) for x in lines if (line := re.split(r"(?:^|\s)#|^-", x)[0].strip())]
    return {requirement.name.lower(): requirement for requirement in found}


def test_every_package_is_named():
    tops = ("maest", *(path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()))
    folders = {path.parent for top in tops for path in (ROOT / top).rglob("*.py")}
    names = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    expected = {"maest", *(f"maest.{name.removeprefix('maest.')}" for name in names - {"maest"})}
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == expected


def test_what_is_required_is_pinned_and_locked():
    project = SETTINGS["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    pinned = pins("requirements.txt") | pins("requirements-dev.txt") | pins("requirements-docs.txt")
    locked = pins("requirements.lock")
    for line in [*project["dependencies"], *extras]:
        wanted = Requirement(line)
        if wanted.name != "maest":
            version = str(locked[wanted.name.lower()].specifier).removeprefix("==")
            assert wanted.specifier.contains(version, prereleases=True), line
            assert pinned[wanted.name.lower()].specifier.contains(version, prereleases=True), line
    for requirement in locked.values():
        assert re.fullmatch(r"==[\w.]+", str(requirement.specifier)), requirement
        assert requirement.url is None


def test_the_papers_say_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    changes = re.findall(r"^## (.*)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert citation["version"] == maest.__version__
    assert f"{maest.__version__} - {citation['date-released']}" in changes
    assert citation["license"] == SETTINGS["project"]["license"]


def test_where_data_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("MAEST_DATA", raising=False)
    assert data_folder() == ROOT / "datasets"
    monkeypatch.setenv("MAEST_DATA", str(tmp_path))
    assert data_folder() == tmp_path


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder as site-packages are: of a wheel, built from a source distribution."""
    tmp = tmp_path_factory.mktemp("package")
    query = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(query, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tmp / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp / "tree" / name)

    build = f"from setuptools.build_meta import build_{{}} as build; build({str(tmp)!r})"
    run(build.format("sdist"), tmp / "tree")
    with tarfile.open(next(tmp.glob("*.tar.gz"))) as archive:
        archive.extractall(tmp / "unpacked", filter="data")
    run(build.format("wheel"), next((tmp / "unpacked").iterdir()))
    with zipfile.ZipFile(next(tmp.glob("*.whl"))) as archive:
        archive.extractall(tmp / "site")
    return tmp / "site"


def run(code: str, folder: Path, *options: str) -> str:
    """What Python prints that was started in a folder."""
    environment = {k: v for k, v in os.environ.items() if k != "MAEST_DATA"}
    environment["XDG_CACHE_HOME"] = str(folder / "cache")
    line = [sys.executable, *options, "-c", code]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
def test_an_installed_package_works_anywhere(installed, tmp_path):
    assert [path.name for path in installed.iterdir() if path.suffix != ".dist-info"] == ["maest"]
    for name in ("page.css", "page.html", "page.js", "py.typed"):
        assert (installed / "maest" / name).is_file()
    (tmp_path / "site").mkdir()
    (tmp_path / "site/datasets.py").write_text("OF = 'another project'")
    soundfile.write(tmp_path / "song.wav", np.ones(80_000, np.float32) / 9, 16_000)
    code = (
        f"import sys; sys.path[:] = [{str(installed)!r}, *sys.path, {str(tmp_path / 'site')!r}]\n"
        f"sys.modules.update(dict.fromkeys({OPTIONAL}))\n"
        "import maest, maest.datasets.preprocess, datasets, numpy\n"
        "from maest import Extractor, get_maest\n"
        f"assert maest.__file__.startswith({str(installed)!r})\n"
        "assert datasets.OF == 'another project'\n"
        "net = get_maest('maest-tiny-music')\n"
        "activations, labels = net.predict_labels(numpy.zeros(80_000, numpy.float32))\n"
        "assert len(activations) == len(labels)\n"
        "assert Extractor('maest-tiny-music')('song.wav').embeddings[7].shape == (3, 192)\n"
        "from maest.command import create_app\n"
        "create_app()(['tag', 'song.wav'], standalone_mode=False)\n"
        "print(maest.__version__)"
    )
    version = run(code, tmp_path, "-I").splitlines()[-1]
    (scripts,) = installed.glob("*.dist-info/entry_points.txt")
    assert "maest = maest.command:main" in scripts.read_text("utf-8")
    (metadata,) = installed.glob("*.dist-info/METADATA")
    assert f"Version: {version}\n" in metadata.read_text("utf-8")
    data = (
        f"import sys; sys.path.insert(0, {str(installed)!r})\n"
        "from maest.datasets.scores import DATA_DIR; print(DATA_DIR)\n"
        "from maest.datasets.scores.tables import COLLECTIONS; assert COLLECTIONS"
    )
    assert run(data, tmp_path, "-I") == str(tmp_path / "cache/maest/scores/data")
    assert run(data, ROOT, "-I") == str(ROOT / "datasets/scores/data")

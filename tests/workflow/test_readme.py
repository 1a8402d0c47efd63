"""The README: its Python runs, its links lead somewhere, and its figures are in the records."""

import contextlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from maest.models.archs import ARCHS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, re.S)


def section(heading: str) -> str:
    return TEXT.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def rows(table: str) -> list[list[str]]:
    """The cells of a table, without its heading."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_python_of_the_readme(tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "my/music").mkdir(parents=True)
    sound = 0.1 * rng.standard_normal(16_000 * 12)
    soundfile.write(tmp_path / "my/music/song.ogg", sound, 16_000)
    names: dict[str, Any] = {}
    with contextlib.chdir(tmp_path):
        for block in BLOCKS:
            exec(compile(block, "README.md", "exec"), names)
    tags, embedding = capsys.readouterr().out.splitlines()
    assert "song.ogg [" in tags
    assert "song.ogg (1, 3, 192)" in embedding
    assert names["activations"].shape == (43,) == (len(names["labels"]),)
    assert names["embeddings"].shape == (2, 576)


def test_the_readme_is_short():
    assert len(TEXT.splitlines()) <= 200


def test_every_page_of_the_guide_is_linked():
    pages = {f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")}
    assert pages <= set(re.findall(r"\]\((docs/[^)#]+)", TEXT))


def numbers(value: Any) -> Iterator[float]:
    """The numbers of a record, and the ratios of rows that stand beside each other in it."""
    if isinstance(value, dict | list):
        parts = list(value.values() if isinstance(value, dict) else value)
        for part in parts:
            yield from numbers(part)
        for one, other in itertools.permutations([p for p in parts if isinstance(p, dict)], 2):
            for key in one.keys() & other.keys():
                if isinstance(one[key], float) and isinstance(other[key], float) and other[key]:
                    yield one[key] / other[key]
    elif isinstance(value, int | float):
        yield value


def test_figures_are_in_the_records():
    for what, figures, link in rows(section("Figures")):
        record = re.fullmatch(r"\[.*\]\((benchmarks/records/.*\.json)\)", link)
        assert record, what
        known = list(numbers(json.loads((ROOT / record[1]).read_text("utf-8"))))
        found = re.findall(r"(?<![\w-])\d+\.\d+", figures)
        assert found, what
        for figure in found:
            digits = len(figure.partition(".")[2])
            assert any(f"{number:.{digits}f}" == figure for number in known), (what, figure)


def test_every_published_model_is_in_the_table():
    """Of names that differ in one part only, the later ones give that part."""
    table = section("Models")
    for name, arch in ARCHS.items():
        if name not in table:
            assert f"…-{arch.clip_length:g}s-…" in table, name
        elif arch.shipped or arch.hub:
            [row] = [row for row in rows(table) if f"`{name}`" in row[0]]
            assert (arch.licence or "").replace("-", " ") == row[3].replace("-", " "), name


def test_every_cell_about_others_has_a_source():
    table = section("Beside other music models")
    sources = set(re.findall(r"^\[(\d+)\]: https://\S+$", table, re.M))
    cited = set(re.findall(r"\[\[(\d+)\]\]", table))
    assert cited == sources
    for what, _, *others in rows(table):
        for cell in others:
            assert cell == "–" or re.search(r"\[\[(\d+)\]\]\[\1\]", cell), (what, cell)

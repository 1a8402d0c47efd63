"""No link between the files of this repository is dead."""

import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from pages import ROOT

FOLDERS = (".github", "datasets", "docs", "models")
FILES = {path for name in FOLDERS for path in (ROOT / name).rglob("*.md")}
FILES = sorted({*ROOT.glob("*.md"), *FILES})
_PARSER = MarkdownIt().enable("table")


def links(path: Path) -> list[str]:
    found = []
    for token in _PARSER.parse(path.read_text("utf-8")):
        for part in (token, *(token.children or [])):
            found += [str(part.attrs[name]) for name in ("href", "src") if name in part.attrs]
            if part.type.startswith("html"):
                found += re.findall(r"""\b(?:href|src)=["']([^"']+)""", part.content)
    return found


def anchors(path: Path) -> set[str]:
    """The names of headings, as GitHub and MyST make them."""
    seen, names = Counter[str](), set()
    tokens = _PARSER.parse(path.read_text("utf-8"))
    for token, inline in pairwise(tokens):
        if token.type == "heading_open":
            parts = (part.content for part in inline.children or [] if "html" not in part.type)
            name = re.sub(r"[^\w\- ]", "", "".join(parts).lower()).replace(" ", "-")
            names.add(f"{name}-{seen[name]}" if seen[name] else name)
            seen[name] += 1
    return names


def is_dead(path: Path, link: str) -> bool:
    target, _, anchor = link.partition("#")
    file = (path.parent / unquote(target)).resolve() if target else path
    if not file.exists() or not file.is_relative_to(ROOT):
        return True
    return bool(anchor) and file.suffix == ".md" and anchor not in anchors(file)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_inside_the_repository_lead_somewhere(path):
    inside = [link for link in links(path) if not re.match(r"\w[\w+.-]*:", link)]
    assert not [link for link in inside if is_dead(path, link)]


def test_a_dead_link_is_noticed(tmp_path):
    page = ROOT / "docs" / "index.md"
    assert is_dead(page, "no-such-page.md")
    assert is_dead(page, "settings.md#no-such-section")
    assert not is_dead(page, "settings.md#maest")
    assert not is_dead(page, "../README.md")
    (tmp_path / "page.md").write_text("# A `b`: c\n\n## A `b`: c\n\n[x](y.md) ![z](z.png)\n")
    assert anchors(tmp_path / "page.md") == {"a-b-c", "a-b-c-1"}
    assert links(tmp_path / "page.md") == ["y.md", "z.png"]

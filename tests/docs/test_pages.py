"""The command blocks of the README and the guide run, as they are typed."""

from pathlib import Path

import pages
import pytest

PAGES = [pages.ROOT / name for name in ("README.md", "CONTRIBUTING.md")]
PAGES = [path for path in (*PAGES, *sorted((pages.ROOT / "docs").glob("*.md"))) if path.is_file()]


@pytest.fixture(scope="session")
def my_music(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pages") / "my"
    pages.make_music(folder)
    return folder


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(pages.ROOT)))
def test_the_blocks_of_a_page_run(page, my_music, tmp_path):
    try:
        pages.run_page(page, tmp_path, my_music)
    except pages.PageError as error:
        pytest.fail(str(error), pytrace=False)

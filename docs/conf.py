"""How `make docs` builds the guide: Markdown by MyST, the Python API from docstrings."""

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import maest

project = "MAEST"
author = "the authors of MAEST"
copyright = f"{author}, Apache License 2.0"
release = version = maest.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["examples", "miniature"]
suppress_warnings = ["misc.highlighting_failure"]  # blocks may have "…" for what a reader adds

# Links to sections, as on GitHub: page.md#a-section
myst_heading_anchors = 4
# `name` in a docstring: a link if this guide has it, else code
default_role = "py:obj"
python_use_unqualified_type_names = True
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
smartquotes = False  # "Genre---Rock" is a label
autoclass_content = "class"
napoleon_google_docstring, napoleon_numpy_docstring = True, False

html_theme = "furo"
html_title = f"MAEST {release}"
html_show_sphinx = False
html_copy_source = False
# Prompts are not copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def setup(app: Any) -> None:
    # To a Markdown file outside of docs/, which is no page of the guide, a link is to the file.
    def link_to_files(app: Any, page: str, source: list[str]) -> None:
        source[0] = re.sub(r"\]\((\.\./[^)#]+\.md)(#[^)]*)?\)", r"](path:\1)", source[0])

    app.connect("source-read", link_to_files)

    # Napoleon, at priority 500, takes a field's comment "scores: one a label" for its type and
    # meaning.
    comments: dict[str, list[str]] = {}

    def keep(app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
        if what == "attribute":
            comments[name] = list(lines)

    def put_back(
        app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]
    ) -> None:
        lines[:] = comments.pop(name, lines)

    app.connect("autodoc-process-docstring", keep, priority=400)
    app.connect("autodoc-process-docstring", put_back, priority=600)

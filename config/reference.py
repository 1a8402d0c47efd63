"""Write the reference of all settings: ``python -m maest.config.reference > docs/settings.md``."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from maest.config import ProbeSettings, Settings
from maest.config.schema import Setting, plain, settings_of
from maest.config.settings import DATASETS

_HEAD = """# Settings

Made by `python -m maest.config.reference`: change `config/`, not this page. A setting is typed as
`name=value` after `with`. `auto` (or `None`) is worked out; a number stays within its bounds.
"""


def sections(root: type) -> Iterator[tuple[str, type]]:
    """Yield name and class of each section."""
    kinds = get_type_hints(root)
    return ((f.name, kinds[f.name]) for f in fields(root) if is_dataclass(kinds[f.name]))


def listing(root: type, section: str) -> str:
    """Return a section's settings as text for a terminal."""
    kind = dict(sections(root))[section]
    lines = [f"{section}: {kind.__doc__}", ""]
    for known in settings_of(kind, f"{section}."):
        lines.append(f"{known.name} = {_default(known)}\n    {known.meaning}\n    {known.values()}")
    return "\n".join(lines)


def page() -> str:
    """Return all settings of both scripts as Markdown."""
    parts = [_HEAD]
    for script, root in (("ex_maest.py", Settings), ("ex_tl.py", ProbeSettings)):
        alone = [known for known in settings_of(root) if "." not in known.name]
        parts.append(_table(f"## `{script}`", alone))
        for name, kind in sections(root):
            parts.append(_table(f"### `{name}`", list(settings_of(kind, f"{name}."))))
    return "\n".join(parts)


def _table(title: str, settings: list[Setting]) -> str:
    rows = [title, "", "| setting | default | value | meaning |", "|---|---|---|---|"]
    for known in settings:
        cells = (f"`{known.name}`", f"`{_default(known)}`", known.values(), known.meaning)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _default(known: Setting) -> str:
    """Return the default as it is typed; paths start at the data folder."""
    default = "auto" if known.auto else str(plain(known.default))
    return default.replace(str(DATASETS), DATASETS.name)


if __name__ == "__main__":
    print(page(), end="")

"""Write the reference of all settings: ``python -m maest.config.reference > docs/settings.md``."""

import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from maest.config import ProbeSettings, Settings
from maest.config.schema import Setting, plain, settings_of
from maest.config.settings import DATASETS

_HEAD = """# Settings

```bash
python ex_maest.py print_config with paper_recipe module.lr=1e-4    # all, and what these two change
python ex_maest.py print_named_configs                              # settings that go together
python ex_tl.py help compare                                        # those of one section
```

```text
{listing}
```

A setting is typed as `name=value` after `with`; a list as `name=[1,2]`. `auto` (or `None`) means
that the value is worked out. A number stays within its bounds. A setting that does not exist is
refused, with the nearest that does.

`python -m maest.config.reference` makes this page: change `config/`, not the page.
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
    parts = [_HEAD.format(listing=listing(ProbeSettings, "compare"))]
    for script, root in (("ex_maest.py", Settings), ("ex_tl.py", ProbeSettings)):
        alone = [known for known in settings_of(root) if "." not in known.name]
        parts.append(_table(f"## `{script}`", alone))
        for name, kind in sections(root):
            title = f"### `{name}`\n\n{_first_sentence(kind)}"
            parts.append(_table(title, list(settings_of(kind, f"{name}."))))
    return "\n".join(parts)


def _table(title: str, settings: list[Setting]) -> str:
    rows = [title, "", "| setting | default | value | meaning |", "|---|---|---|---|"]
    for known in settings:
        meaning = re.sub(r"<(?=\w)", r"\\<", known.meaning)  # or it would be taken for HTML
        cells = (f"`{known.name}`", f"`{_default(known)}`", known.values(), meaning)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _first_sentence(section: type) -> str:
    return re.split(r"(?<=\.)\s", section.__doc__ or "", maxsplit=1)[0]


def _default(known: Setting) -> str:
    """Return the default as it is typed; paths start at the data folder."""
    default = "auto" if known.auto else str(plain(known.default))
    return default.replace(str(DATASETS), DATASETS.name)


if __name__ == "__main__":
    print(page(), end="")

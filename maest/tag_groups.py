"""What labels are about: genre, mood, instrument …; and what of them goes into which field."""

from __future__ import annotations

from collections.abc import Iterable

from maest.tag_entries import MEANINGS

# What a label is about, by what stands before "---"; another word there is a genre, and its style
# follows, as in the released models.
_FACETS = {
    "genre": "genre",
    "style": "style",
    "mood": "mood",
    "theme": "mood",
    "mood/theme": "mood",
}
# Players have no fields for these.
_COMMENT_ONLY = {"instrument", "voice", "texture", "metre", "mode"}
GROUPS = {"genre", "mood", *_COMMENT_ONLY}  # those that a model may have labels of


def group_of(label: str) -> str:
    """Return a label's group, "genre" or another in lower case; "" for a label without one.

    A style belongs to the genres: "Electronic---Techno" has the group "genre".
    """
    facet = label.rpartition("---")[0].strip().casefold()
    group = _FACETS.get(facet, facet if facet in _COMMENT_ONLY or not facet else "genre")
    return "genre" if group == "style" else group


def by_meaning(tags: Iterable[tuple[str, float]]) -> dict[str, list[str]]:
    """Sort labels into "genre", "style" and "mood"; "comment" has all. The highest come first."""
    texts: dict[str, dict[str, None]] = {name: {} for name in MEANINGS}
    for label, _ in sorted(tags, key=lambda tag: -tag[1]):
        facet, _, name = (part.strip() for part in label.rpartition("---"))
        known = facet.casefold()
        if meaning := _FACETS.get(known):
            texts[meaning][name] = None
        elif facet and known not in _COMMENT_ONLY:
            texts["genre"][facet] = None
            texts["style"][name] = None
            texts["comment"][facet] = None
        texts["comment"][name] = None
    return {meaning: list(names) for meaning, names in texts.items()}

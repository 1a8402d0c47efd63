"""Labels, groups and splits of clips, from scores and, for instruments, the rendered audio."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from maest.datasets.scores.corpus import Work, generator
from maest.datasets.scores.reading import Score
from maest.datasets.scores.tables import COLLECTIONS, DANCES, ORIGINS
from maest.datasets.splitting import SPLITS

# A label of most clips teaches little; one with few positives cannot be measured.
# "tags": all labels, to pre-train on.
MAX_SHARE = {"style": 0.25, "instrument": 0.4, "tags": 0.5}
MIN_POSITIVES = {
    "style": {"train": 15, "validation": 6, "test": 6},
    "instrument": {"train": 15, "validation": 4, "test": 4},
    "tags": {"train": 15, "validation": 6, "test": 6},
}
# The counts above are for a build with this many clips or more; smaller builds need fewer.
FULL_SIZE = 400

_METRES = {2: "Duple", 3: "Triple", 4: "Quadruple", 6: "Compound Duple", 9: "Compound Triple"}
_TEXTURES = {1: "Single Line", 2: "Two or Three Voices", 3: "Two or Three Voices", 4: "Four Voices"}


def dance_of(work: Work, score: Score) -> str | None:
    """The dance in the rhythm field or, failing that, a title; only in books of tunes."""
    texts = (score.metadata.genre, *score.metadata.titles)
    for text in texts if COLLECTIONS[work.collection].tunes else ():
        for name, pattern in DANCES.items():
            if re.search(rf"\b({pattern})\b", text.lower()):
                return name
    return None


def kind_of(work: Work, score: Score) -> str:
    """The kind of music, a key of `tables.ENSEMBLES`."""
    if dance_of(work, score) == "March":
        return "march"
    is_piano = any("piano" in part.lower() for part in score.metadata.parts)
    return COLLECTIONS[work.collection].kind or ("keyboard" if is_piano else "chamber")


def style_labels(work: Work, score: Score) -> list[str]:
    """All style labels of a work, "Genre---Style", rare and frequent ones too."""
    collection, metadata = COLLECTIONS[work.collection], score.metadata
    is_typical = {
        "palestrina": re.search(r"\bmass\b", metadata.genre.lower()) is not None,
        "bach": score.n_parts >= 4,
    }.get(collection.name, True)
    labels = [collection.style] if collection.style and is_typical else []
    # One field names borderlands ("Deutschland / Frankreich, Lothringen"): several may fit.
    origin = metadata.origin.lower()
    labels += [name for place, name in ORIGINS.items() if re.search(rf"\b{place}\b", origin)]
    if dance := dance_of(work, score):
        labels.append(f"Dance---{dance}")
    if metadata.metre and (name := _METRES.get(int(metadata.metre.split("/")[0]))):
        labels.append(f"Metre---{name}")
    if metadata.mode and (work.text or work.path.endswith(".krn") or collection.has_mode):
        labels.append(f"Mode---{metadata.mode.title()}")
    if kind_of(work, score) != "keyboard":  # two staves of a piano are not two voices
        labels.append(f"Texture---{_TEXTURES.get(score.n_parts, 'Five or More Voices')}")
    return labels


# ---- groups and splits ---------------------------------------------------------------------------

_TITLE_NOISE = re.compile(
    r"\b(the|a|an|das|der|die|of|o|and|reel|jig|gigg?|hornpipe|strathspey|clog|fling|highland|slip|"
    r"double|single|polka|waltz|minuet|march|quick ?step|air|song|tune|setting|version|way|"
    r"first|second|third|1st|2nd|3rd|i{1,3}|iv|vi{0,3}|\d+)\b"
)


def normal_title(title: str) -> str:
    """Reduce a title to what variants share: no articles, dances, numbers or punctuation."""
    text = unicodedata.normalize("NFKD", title.lower())
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"['’`]", "", text)
    text = re.sub(r"\bs\. ?\d+|\(.*?\)|\[.*?\]", " ", text)  # page numbers and remarks
    text = re.sub(r"[^a-z0-9]+", " ", text)
    text = re.sub(r"\bmac", "mc", text)
    return re.sub(r"[^a-z]", "", _TITLE_NOISE.sub(" ", text))


def _group_marks(work: Work, score: Score) -> list[str]:
    """Marks that variants share: opus, title, and the first twelve melodic intervals."""
    marks = []
    if score.metadata.opus:
        marks.append(f"opus {work.collection} {score.metadata.opus.lower()}")
    if work.text is not None:
        titles = {normal_title(title) for title in score.metadata.titles}
        marks += [f"title {title}" for title in sorted(titles) if len(title) >= 5]
    top = score.notes[score.notes[:, 0] == 0]
    order = np.lexsort((-top[:, 3], top[:, 1]))
    _, first = np.unique(top[order, 1], return_index=True)  # the highest note of each chord
    steps = np.diff(top[order][first, 3])
    steps = steps[steps != 0][:12]  # variants repeat notes with the syllables of the text
    if len(steps) == 12:
        marks.append(f"opening {steps.tolist()}")
    return marks


def group_works(works: Sequence[Work], scores: Mapping[str, Score], seed: int) -> dict[str, Work]:
    """Group variants, in the order of ``works``: work id → the first work of its group.

    A work joins the first group with one of its marks. If its marks are in groups of different
    splits, it has no entry. So no mark is in two splits, and later works never move earlier ones.
    """
    groups: dict[str, Work] = {}  # mark → the first work of the group that has it
    leaders = {}
    for work in works:
        marks = _group_marks(work, scores[work.id])
        joined = [groups[mark] for mark in marks if mark in groups]
        if len({split_of(leader, seed) for leader in joined}) > 1:
            continue
        leader = leaders[work.id] = joined[0] if joined else work
        for mark in marks:
            groups.setdefault(mark, leader)
    return leaders


def split_of(leader: Work, seed: int) -> str:
    """The split of a group, from its first work: close to 71/14/14 in every collection."""
    # The works of a collection take turns through seven days; collections start on different days.
    days = generator(f"days {seed}", 8).permutation(["train"] * 5 + ["validation", "test"])
    starts = generator(f"collections {seed}", 8).permutation(len(COLLECTIONS))
    start = starts[list(COLLECTIONS).index(leader.collection)]
    return str(days[(leader.rank + start) % len(days)])


# ---- which labels stay ---------------------------------------------------------------------------


def choose_labels(
    clips: Sequence[tuple[str, Iterable[str]]], max_share: float, min_positives: Mapping[str, int]
) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """Choose labels of clips (split, labels), on at most ``max_share`` of all clips.

    Returns label → split → positives, sorted by label; and, of the labels left out, label → reason.
    Builds below ``FULL_SIZE`` clips need proportionally fewer ``min_positives`` in each split.
    """
    count: dict[str, Counter[str]] = defaultdict(Counter)
    for split, labels in clips:
        for label in set(labels):
            count[label][split] += 1
    scale = min(1.0, len(clips) / FULL_SIZE)
    needed = {split: max(1, int(number * scale)) for split, number in min_positives.items()}
    counts, dropped = {}, {}
    for label, by_split in sorted(count.items()):
        few = [f"{by_split[s]} in {s} (of {needed[s]})" for s in SPLITS if by_split[s] < needed[s]]
        share = by_split.total() / len(clips)
        if share > max_share:
            dropped[label] = f"on {share:.0%} of the clips, more than {max_share:.0%}"
        elif few:
            dropped[label] = f"too few positives: {', '.join(few)}"
        else:
            counts[label] = {split: by_split[split] for split in SPLITS}
    return counts, dropped

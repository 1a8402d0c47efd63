"""What a clip is called, with whom it is grouped, and on which side of the split it stands.

Labels come from the headers and the notes of the score and, for instruments, from what was
rendered. Where a header is silent there is no label.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maest.datasets.scores.corpus import COLLECTIONS, Score, Work

SPLITS = ("train", "validation", "test")
# A label that most clips have teaches little; one with a handful of positives cannot be measured.
# "tags": all that is known of a clip, to pre-train on.
MAX_SHARE = {"style": 0.25, "instrument": 0.4, "tags": 0.5}
MIN_POSITIVES = {
    "style": {"train": 15, "validation": 6, "test": 6},
    "instrument": {"train": 15, "validation": 4, "test": 4},
    "tags": {"train": 15, "validation": 6, "test": 6},
}
# The counts above are for a build of at least so many clips; smaller ones need fewer, at least 1.
FULL_SIZE = 400

_FOLK = {
    "ryan": "Folk---American Fiddle",
    "oneill": "Folk---Irish",
    "aird": "Folk---Aird's Airs",  # Scotch, English, Irish and Foreign: not Scottish alone
    "minstrelsy": "Folk---Northumbrian",
    "fife": "Folk---Fife and Drum",
}
_ORIGINS = (
    (r"\bchina\b", "Folk---Chinese Song"),
    (r"\bdeutschland\b", "Folk---German Song"),
    (r"\bluxemburg\b", "Folk---Luxembourg Song"),
    (r"\blothringen\b", "Folk---Lorraine Song"),
    (r"\birland\b", "Folk---Irish"),
)
# The first that matches counts: a slip jig is not a jig, and a reel called "The March" is a reel.
_DANCES = (
    (r"slip[ -]?jigs?", "Slip Jig"),
    (r"(double |single )?jigs?|gigg?s?", "Jig"),
    (r"hornpipes?", "Hornpipe"),
    (r"strathspeys?", "Strathspey"),
    (r"(highland )?flings?", "Highland Fling"),
    (r"clogs?", "Clog"),
    (r"reels?", "Reel"),
    (r"polkas?", "Polka"),
    (r"(waltz|waltzes)", "Waltz"),
    (r"minuets?", "Minuet"),
    (r"(quick ?step|march)(es|s)?", "March"),
)
_TUNES = frozenset({"ryan", "oneill", "aird", "minstrelsy", "fife"})
_TUNE_KINDS = {
    "ryan": "american fiddle tune",
    "oneill": "irish tune",
    "aird": "scottish tune",
    "minstrelsy": "northumbrian tune",
}
_SONGS = frozenset({"german", "luxembourg", "lorraine", "irish-songs"})
# MusicXML must say "major" or "minor", so editors write "major" by habit: not for modal music.
_MODE_IN_MUSICXML = frozenset({"bach", "quartets"})


def dance_of(work: Work, score: Score) -> str | None:
    """The dance that the rhythm field names, or else the title; only in books of tunes."""
    if work.collection not in _TUNES:
        return None
    for text in (score.metadata.genre, *score.metadata.titles):
        for pattern, name in _DANCES:
            if re.search(rf"\b({pattern})\b", text.lower()):
                return name
    return None


def kind_of(work: Work, score: Score) -> str:
    """The kind of music, as `orchestration.ENSEMBLES` knows it."""
    kinds = {
        "palestrina": "mass",
        "bach": "chorale",
        "monteverdi": "madrigal",
        "trecento": "trecento",
        "quartets": "quartet",
        "chinese": "chinese song",
    }
    if work.collection in kinds:
        return kinds[work.collection]
    if work.collection in _SONGS:
        return "song"
    if work.collection in _TUNES:
        if dance_of(work, score) == "March" or work.collection == "fife":
            return "march"
        return _TUNE_KINDS[work.collection]
    is_piano = any("piano" in part.lower() for part in score.metadata.parts)
    return "keyboard" if is_piano else "chamber"


def style_labels(work: Work, score: Score) -> list[str]:
    """The style labels of a work, "Genre---Style"; before rare and frequent ones are left out."""
    metadata, labels = score.metadata, []
    if work.collection == "palestrina" and re.search(r"\bmass\b", metadata.genre.lower()):
        labels.append("Renaissance---Mass")
    elif work.collection == "monteverdi":
        labels.append("Renaissance---Madrigal")
    elif work.collection == "trecento":
        labels.append("Medieval---Trecento")
    elif work.collection == "bach" and score.n_parts >= 4:
        labels.append("Baroque---Chorale")
    elif work.collection == "quartets":
        labels.append("Classical---String Quartet")
    elif work.collection in _FOLK:
        labels.append(_FOLK[work.collection])
    # Borderlands are named in one field ("Deutschland / Frankreich, Lothringen"): several may fit.
    labels += [name for place, name in _ORIGINS if re.search(place, metadata.origin.lower())]

    if dance := dance_of(work, score):
        labels.append(f"Dance---{dance}")
    if metadata.metre:
        labels += _metre_label(metadata.metre)
    if metadata.mode and (work.text or work.path.endswith(".krn") or _trusts_mode(work)):
        labels.append(f"Mode---{metadata.mode.title()}")
    if kind_of(work, score) != "keyboard":  # two staves of a piano are no two voices
        labels.append(_texture_label(score.n_parts))
    return labels


def _trusts_mode(work: Work) -> bool:
    return work.collection in _MODE_IN_MUSICXML


def _metre_label(metre: str) -> list[str]:
    beats = int(metre.split("/")[0])
    names = {2: "Duple", 3: "Triple", 4: "Quadruple", 6: "Compound Duple", 9: "Compound Triple"}
    return [f"Metre---{names[beats]}"] if beats in names else []


def _texture_label(n_parts: int) -> str:
    names = {1: "Single Line", 2: "Two or Three Voices", 3: "Two or Three Voices", 4: "Four Voices"}
    return f"Texture---{names.get(n_parts, 'Five or More Voices')}"


# ---- groups and splits ---------------------------------------------------------------------------

_TITLE_NOISE = re.compile(
    r"\b(the|a|an|das|der|die|of|o|and|reel|jig|gigg?|hornpipe|strathspey|clog|fling|highland|slip|"
    r"double|single|polka|waltz|minuet|march|quick ?step|air|song|tune|setting|version|way|"
    r"first|second|third|1st|2nd|3rd|i{1,3}|iv|vi{0,3}|\d+)\b"
)


def normal_title(title: str) -> str:
    """A title without what differs between variants: article, dance, number, spelling signs.

    >>> normal_title("Miss McLeod's -- Reel"), normal_title("Miss MacLeods, The (2nd setting)")
    ('missmcleods', 'missmcleods')
    """
    text = unicodedata.normalize("NFKD", title.lower())
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"['’`]", "", text)
    text = re.sub(r"\bs\. ?\d+|\(.*?\)|\[.*?\]", " ", text)  # page numbers and remarks
    text = re.sub(r"[^a-z0-9]+", " ", text)
    text = re.sub(r"\bmac", "mc", text)
    return re.sub(r"[^a-z]", "", _TITLE_NOISE.sub(" ", text))


def opening(score: Score, intervals: int = 12) -> tuple[int, ...] | None:
    """The first melodic intervals of the highest part, in semitones; None for a shorter part.

    Repeated notes are left out: variants differ in them with the syllables of the text. Of a chord
    the highest note counts.
    """
    top = score.notes[score.notes[:, 0] == 0]
    order = np.lexsort((-top[:, 3], top[:, 1]))
    _, first = np.unique(top[order, 1], return_index=True)
    steps = np.diff(top[order][first, 3])
    steps = steps[steps != 0][:intervals]
    return tuple(int(step) for step in steps) if len(steps) == intervals else None


def group_marks(work: Work, score: Score) -> list[str]:
    """What a work has in common with its variants: works that share a mark form one group."""
    marks = []
    if score.metadata.opus:
        marks.append(f"opus {work.collection} {score.metadata.opus.lower()}")
    if work.text is not None:
        titles = {normal_title(title) for title in score.metadata.titles}
        marks += [f"title {title}" for title in sorted(titles) if len(title) >= 5]
    if (steps := opening(score)) is not None:
        marks.append(f"opening {steps}")
    return marks


def group_works(works: Sequence[Work], scores: Mapping[str, Score], seed: int) -> dict[str, str]:
    """Work id → id of the first work of its group, in the order given.

    A work joins the group that has one of its marks already. One whose marks are in groups on
    different sides of the split is a variant of both, and is left out: it has no entry. So no mark
    is on two sides, and works that come later in the order move none that came before.
    """
    groups: dict[str, Work] = {}  # mark → the first work of the group that has it
    leaders = {}
    for work in works:
        marks = group_marks(work, scores[work.id])
        found = [groups[mark] for mark in marks if mark in groups]
        if len({split_of(leader, seed) for leader in found}) > 1:
            continue
        leader = found[0] if found else work
        leaders[work.id] = leader.id
        for mark in marks:
            groups.setdefault(mark, leader)
    return leaders


def split_of(leader: Work, seed: int) -> str:
    """The split of a group, decided by its first work.

    The works of a collection take turns at the places of a week: five days of training, one of
    validation, one of test, in an order drawn by seed. The collections start on different days. So
    every collection, and any number of works, is split close to 71/14/14.
    """
    days = np.array(["train"] * 5 + ["validation", "test"])
    days = _generator(seed, "days").permutation(days)
    names = [collection.name for collection in COLLECTIONS]
    starts = _generator(seed, "collections").permutation(len(names))
    return str(days[(leader.rank + starts[names.index(leader.collection)]) % len(days)])


def _generator(seed: int, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{purpose} {seed}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


# ---- which labels stay ---------------------------------------------------------------------------


@dataclass(frozen=True)
class LabelSet:
    """The labels that stay, sorted, and for each that does not, why."""

    names: list[str]
    dropped: dict[str, str]
    counts: dict[str, dict[str, int]]


def choose_labels(
    clips: Iterable[tuple[str, Iterable[str]]], max_share: float, min_positives: Mapping[str, int]
) -> LabelSet:
    """Decide which labels stay: enough positives in each split, and not on too many clips.

    Args:
        clips: (split, labels) of every clip.
        max_share: of the clips, that may have a label.
        min_positives: of a label, for each split, in a build of full size.
    """
    clips = [(split, set(labels)) for split, labels in clips]
    count: dict[str, Counter[str]] = defaultdict(Counter)
    for split, labels in clips:
        for label in labels:
            count[label][split] += 1
    scale = min(1.0, len(clips) / FULL_SIZE)
    needed = {split: max(1, int(number * scale)) for split, number in min_positives.items()}
    names, dropped = [], {}
    for label in sorted(count):
        few = [s for s in SPLITS if count[label][s] < needed[s]]
        share = count[label].total() / len(clips)
        if share > max_share:
            dropped[label] = f"on {share:.0%} of the clips, more than {max_share:.0%}"
        elif few:
            found = ", ".join(f"{count[label][s]} in {s} (of {needed[s]})" for s in few)
            dropped[label] = f"too few positives: {found}"
        else:
            names.append(label)
    counts = {name: {split: count[name][split] for split in SPLITS} for name in names}
    return LabelSet(names, dropped, counts)

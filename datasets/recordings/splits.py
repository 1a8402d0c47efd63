"""Which split a recording goes to: albums and copies stay whole, known splits stay as they are."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from maest.datasets.recordings.facts import Facts, Track
from maest.datasets.recordings.known import Known, of_track
from maest.datasets.splitting import SPLITS, Joined

SHARES = (0.8, 0.9)  # where train ends, and validation


class Recording(NamedTuple):
    key: str
    album: str  # unique among all sources
    fixed: str | None = None  # its split, of a ground truth or a source that is held out
    known: bool = False  # of a ground truth, whose splits are taken as they are


def split_recordings(
    recordings: Sequence[Recording], copies: Iterable[tuple[str, str]], seed: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Choose the split of each recording. Returns key → split, and keys left out → the reason.

    ``copies`` are pairs of keys. Albums that share a copy are one group; a group goes to the split
    of its fixed members, or by a hash of the group and ``seed``: 80, 10 and 10 % on average, so
    that more recordings leave the others where they are. Copies of fixed recordings in several
    splits are left out, unless they are known ones.
    """
    groups, twins = Joined(), Joined()
    albums = {recording.key: recording.album for recording in recordings}
    for one, other in copies:
        twins.join(one, other)
        groups.join(albums[one], albums[other])
    fixed, members, sides = defaultdict(set), defaultdict(list), defaultdict(set)
    for recording in recordings:
        group = groups.leader(recording.album)
        members[group].append(recording)
        if recording.fixed:
            fixed[group].add(recording.fixed)
            sides[twins.leader(recording.key)].add(recording.fixed)
    splits, left_out = {}, {}
    for group, together in members.items():
        by_hash = _by_hash(min(recording.album for recording in together), seed)
        common = next(iter(fixed[group])) if len(fixed[group]) == 1 else None
        for recording in together:
            its_sides = sides[twins.leader(recording.key)]
            if len(its_sides) > 1 and not recording.known:
                left_out[recording.key] = f"copies of it are in {' and '.join(sorted(its_sides))}"
                continue
            own_side = next(iter(its_sides)) if len(its_sides) == 1 else by_hash
            splits[recording.key] = recording.fixed or common or own_side
    return splits, left_out


def _by_hash(album: str, seed: int) -> str:
    digest = hashlib.sha256(f"{seed}\n{album}".encode("utf-8", "surrogateescape")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return SPLITS[sum(place >= share for share in SHARES)]


def album_names(source: str, names: Sequence[str], tags: Sequence[str]) -> list[str]:
    """The album of each audio file of a source: its tag; else its folder, if there are several."""
    folders = [name.rpartition("/")[0] for name in names]
    by_file = len(set(folders)) == 1
    return [
        f"{source}/album {tag}" if tag else f"{source}/{name if by_file else folder}"
        for name, folder, tag in zip(names, folders, tags, strict=True)
    ]


def list_recordings(
    tracks: Mapping[str, Track],
    facts: Mapping[str, Facts],
    known_of: Mapping[str, Known],
    hold_out: Sequence[str],
    left_out: dict[str, str],
) -> list[Recording]:
    """The tracks to split, without those ``left_out``; adds those that a ground truth lacks."""
    by_source: dict[str, list[Track]] = defaultdict(list)
    for track in tracks.values():
        by_source[track.source].append(track)
    recordings = []
    for source, members in by_source.items():
        album_tags = [facts[track.key].album for track in members]
        albums = album_names(source, [track.name for track in members], album_tags)
        for (key, *_), album in zip(members, albums, strict=True):
            fixed, is_known = "test" if source in hold_out else None, False
            if source in known_of and key not in left_out:
                if (row := of_track(known_of[source], key)) is None:
                    left_out[key] = "it is not in the ground truth of its source"
                else:
                    fixed, is_known = fixed or row[0], True
            if key not in left_out:
                recordings.append(Recording(key, album, fixed, is_known))
    return recordings

"""The split of each recording: albums and copies stay together, and known splits are kept."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from maest.datasets.recordings.facts import Facts, Track
from maest.datasets.recordings.known import Known, of_track
from maest.datasets.splitting import SPLITS

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

    ``copies`` are pairs of keys. Albums that share a copy are one group. Its fixed recordings
    keep their splits. The others follow them, if these agree. If not, a copy of a fixed recording
    follows that one, and the rest a hash of the group and ``seed``: 80, 10 and 10 % on average. So
    more recordings move others only by joining their groups. A recording with copies in several
    fixed splits is left out, unless it is a known one.
    """
    from scipy.cluster.hierarchy import DisjointSet  # takes a second to import

    albums = {recording.key: recording.album for recording in recordings}
    groups, twins = DisjointSet(albums.values()), DisjointSet(albums)
    for one, other in copies:
        twins.merge(one, other)
        groups.merge(albums[one], albums[other])
    fixed, members, fixed_copies = defaultdict(set), defaultdict(list), defaultdict(set)
    for recording in recordings:
        group = groups[recording.album]
        members[group].append(recording)
        if recording.fixed:
            fixed[group].add(recording.fixed)
            fixed_copies[twins[recording.key]].add(recording.fixed)
    splits, left_out = {}, {}
    for group, together in members.items():
        by_hash = _by_hash(min(recording.album for recording in together), seed)
        common = next(iter(fixed[group])) if len(fixed[group]) == 1 else None
        for recording in together:
            of_copies = sorted(fixed_copies[twins[recording.key]])
            if len(of_copies) > 1 and not recording.known:
                left_out[recording.key] = f"copies of it are in {' and '.join(of_copies)}"
                continue
            of_copy = of_copies[0] if len(of_copies) == 1 else None
            splits[recording.key] = recording.fixed or common or of_copy or by_hash
    return splits, left_out


def _by_hash(album: str, seed: int) -> str:
    digest = hashlib.sha256(f"{seed}\n{album}".encode("utf-8", "surrogateescape")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    return SPLITS[sum(place >= share for share in SHARES)]


def album_name(source: str, name: str, tag: str) -> str:
    """The album of an audio file of a source: its tag, else its folder below the source's.

    Without either, it is an album by itself. Other files do not change it.
    """
    return f"{source}/album {tag}" if tag else f"{source}/{name.rpartition('/')[0] or name}"


def list_recordings(
    tracks: Mapping[str, Track],
    facts: Mapping[str, Facts],
    known_of: Mapping[str, Known],
    hold_out: Sequence[str],
    left_out: dict[str, str],
) -> list[Recording]:
    """The tracks to split, without those ``left_out``; adds those that a ground truth lacks."""
    recordings = []
    for key, track in tracks.items():
        album = album_name(track.source, track.name, facts[key].album)
        fixed, is_known = "test" if track.source in hold_out else None, False
        if track.source in known_of and key not in left_out:
            if (row := of_track(known_of[track.source], key)) is None:
                left_out[key] = "it is not in the ground truth of its source"
            else:
                fixed, is_known = fixed or row[0], True
        if key not in left_out:
            recordings.append(Recording(key, album, fixed, is_known))
    return recordings

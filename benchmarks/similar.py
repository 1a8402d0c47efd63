"""What `maest similar` finds, and how long it takes.

python benchmarks/similar.py --music FOLDER… [--model maest-tiny-music] [--tracks 100000]
    [--record FILE.json]

Speed: a library of made-up tracks is opened; the first question reads its embeddings, later ones
have them. Albums: of each track of FOLDER… that has others of its album, the share of the ten
nearest tracks (or of as many as the album has) that are of it: by the model, by the mean and
deviation of each mel band, and by chance.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

from harness import Bench, Figures, Way, memory_mib

TOP = 10
STATISTICS = "mel statistics"


def main(given: list[str] | None = None) -> dict:
    bench = Bench(
        __doc__,
        given,
        ("numpy", "torch"),
        3,
        music=([""], [""]),
        model=("maest-tiny-music", "maest-tiny-music"),
        tracks=(100_000, 500),
    )
    ways = {f"{bench.args.tracks:,} tracks": Way(asked, {"tracks": bench.args.tracks})}
    columns = {"first question, s": "{seconds:.2f}", "next, s": "{next_seconds:.3f}"}
    columns |= {"memory, MiB": "{memory_mib:.0f}"}
    bench.show("similar: speed", bench.measure(ways), columns)
    with tempfile.TemporaryDirectory() as folder:
        music = [made_up(Path(folder))] if bench.args.quick else bench.args.music
        rows = albums(Path(folder), music, bench.args.model)
    columns = {"same album": "{same_album:.3f}", "tracks": "{tracks}", "albums": "{albums}"}
    bench.show("similar: of the same album among the nearest", rows, columns)
    return bench.record


def asked(tracks: int) -> Figures:
    from maest import Library
    from maest.library_types import Model

    path = Path("library.sqlite").absolute()
    rng = np.random.default_rng(0)
    with Library(path) as library:
        library._model_id(Model("made up", "0"), make=True)
    with sqlite3.connect(path) as db:  # 100,000 files to scan would take minutes
        rows = [(i, i.to_bytes(8, "big"), 200 + i % 97) for i in range(1, tracks + 1)]
        db.executemany("INSERT INTO sounds VALUES (?, ?, ?)", rows)
        files = ((i, f"/music/{i // 12}/{i}.flac") for i in range(1, tracks + 1))
        db.executemany(
            "INSERT INTO files VALUES (?, ?, ?, 1, 1, ?, '/', 'here', '', '', '', '')",
            ((i, name.encode(), name, i) for i, name in files),
        )
        values = (rng.normal(size=576).astype(np.float16).tobytes() for _ in range(tracks))
        command = "INSERT INTO results VALUES (?, 1, ?, '[]', '[]', NULL)"
        db.executemany(command, enumerate(values, 1))
        db.execute("UPDATE models SET shape = '[3, 192]'")
    db.close()
    with Library(path, read_only=True) as library:
        seconds = []
        for number in (0, 1, 2):
            started = time.perf_counter()
            found = library.similar(f"/music/{number}/{12 * number + 1}.flac", TOP)
            seconds.append(time.perf_counter() - started)
            assert len(found) == TOP
    return {"seconds": seconds[0], "next_seconds": seconds[2], "memory_mib": memory_mib("VmHWM")}


def albums(work: Path, music: Sequence[str | Path], name: str) -> dict[str, Figures]:
    from maest import Analyser, Library
    from maest.library_types import Model, Track

    analyser, statistics = Analyser(name), Model(STATISTICS, STATISTICS)
    with Library(work / "library.sqlite") as library:
        for folder in music:
            library.index(folder, analyser.model, analyser, at_once=64)
            library.index(folder, statistics, statistics_of, at_once=64)
        failed = library.failed()
        tracks = [track for track in library.tracks() if track.path not in failed]
        one_each = list({track.sound: track for track in tracks}.values())
        mates = {t.path: sum(t.same_album(o) for o in one_each) - 1 for t in one_each}
        of_albums = [track for track in one_each if mates[track.path]]

        def share(nearest: Sequence[Track], track: Track) -> float:
            most = min(TOP, mates[track.path])
            return sum(track.same_album(other) for other in nearest[:most]) / most

        rows = {}
        for title, model in ((name, analyser.model), (STATISTICS, statistics)):
            found = [
                share([near for near, _ in library.similar(t.path, TOP, model=model)], t)
                for t in of_albums
            ]
            rows[title] = {"same_album": float(np.mean(found)), "each": found}
    own, others = (np.array(rows[title].pop("each")) for title in (name, STATISTICS))
    groups = of_same_album(of_albums)
    low, high = paired(own - others, groups)
    rows[name] |= {"over_statistics_from": low, "over_statistics_to": high}
    expected = [mates[track.path] / (len(one_each) - 1) for track in of_albums]
    rows["chance"] = {"same_album": float(np.mean(expected))}
    sizes = {"tracks": len(of_albums), "albums": len(groups)}
    return {title: row | sizes for title, row in rows.items()}


def statistics_of(paths: Sequence[Path]) -> Iterator[tuple]:
    """Yield what a library keeps: each file with its mel statistics."""
    import os

    from maest.datasets.tracks import AudioTracks, read_tracks
    from maest.helpers.errors import InputError
    from maest.library_types import Analysis

    tracks = AudioTracks(os.sep, [str(path) for path in paths])
    for track in read_tracks(tracks, range(len(paths)), 1):
        path = paths[track.index]
        if track.error:
            yield path, InputError(track.error, kind="corrupt")
            continue
        mel = np.asarray(track.mel, np.float32)
        values = np.concatenate((mel.mean(axis=0), mel.std(axis=0)))
        yield path, Analysis([], values.astype(np.float16), len(mel) * 0.016)


def of_same_album(tracks: Sequence) -> list[list[int]]:
    """The tracks' numbers, album by album."""
    groups: list[list[int]] = []
    for i, track in enumerate(tracks):
        own = next((group for group in groups if tracks[group[0]].same_album(track)), None)
        if own is None:
            groups.append([i])
        else:
            own.append(i)
    return groups


def paired(differences: np.ndarray, groups: Sequence[Sequence[int]]) -> tuple[float, float]:
    """The 95 % interval of the mean: percentiles of 2,000 resamples of whole albums."""
    rng = np.random.default_rng(0)
    sums = np.array([differences[group].sum() for group in groups])
    sizes = np.array([len(group) for group in groups])
    draws = rng.integers(len(groups), size=(2000, len(groups)))
    low, high = np.percentile(sums[draws].sum(axis=1) / sizes[draws].sum(axis=1), (2.5, 97.5))
    return float(low), float(high)


def made_up(folder: Path) -> Path:
    """Two albums of three tracks, of low and of high tones, for a trial."""
    seconds = np.arange(16_000 * 6) / 16_000
    for album, base in (("low", 100), ("high", 2000)):
        (folder / "music" / album).mkdir(parents=True)
        for i in range(3):
            tone = 0.1 * np.sin(2 * np.pi * base * (1 + i / 20) * seconds)
            soundfile.write(folder / "music" / album / f"{i}.wav", tone, 16_000)
    return folder / "music"


if __name__ == "__main__":
    main()

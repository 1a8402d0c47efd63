"""Embeddings of a large collection, in parts that need no communication.

    python docs/examples/extract_sharded.py my/music my/embeddings --parts 2     # both, here
    python docs/examples/extract_sharded.py my/music my/embeddings --part 3/100  # a job of an array
    python docs/examples/extract_sharded.py my/music my/embeddings --gather      # into one array

Part 3/100 has every hundredth track, from the third on. A part that was stopped does what is
missing when it is started again. --gather writes embeddings.npy, float32 [tracks, 3, D], which need
not fit into memory, and tracks.txt with the names of the tracks in the same order.
"""

import argparse
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).resolve().parents[2] / "ex_maest.py"
SUFFIX = ".embeddings.npy"


def extract(music: str, out: str, part: str, settings: list[str]) -> int:
    """Run one part, such as "3/100"; return its exit code."""
    line = [sys.executable, str(SCRIPT), "extract_embeddings", "with"]
    line += [f"inference.audio={music}", f"inference.out_dir={out}", f"inference.shard={part}"]
    return subprocess.run([*line, *settings]).returncode


def gather(out: Path) -> None:
    folders = sorted({path.parent for path in out.rglob("manifest.json")})
    if len(folders) != 1:
        raise SystemExit(f"{out}: expected the embeddings of one block, found {len(folders)}")
    (folder,) = folders
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob(f"*{SUFFIX}"))
    first = np.load(folder / names[0])
    whole = np.lib.format.open_memmap(
        out / "embeddings.npy", "w+", first.dtype, (len(names), *first.shape)
    )
    for row, name in enumerate(names):
        whole[row] = np.load(folder / name)
    whole.flush()
    tracks = [name.removesuffix(SUFFIX) for name in names]
    (out / "tracks.txt").write_text("".join(f"{track}\n" for track in tracks), "utf-8")
    print(f"{len(names)} tracks, {whole.shape}: {out / 'embeddings.npy'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("music", help="a folder of music")
    parser.add_argument("out", help="where the embeddings go")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--parts", type=int, help="run so many parts, each in a process")
    what.add_argument("--part", help="run one part: 3/100")
    what.add_argument("--gather", action="store_true", help="put all parts into one array")
    parser.add_argument("settings", nargs="*", help="of ex_maest.py, such as maest.arch=NAME")
    args = parser.parse_intermixed_args()

    if args.gather:
        gather(Path(args.out))
        return
    parts = [args.part] if args.part else [f"{i + 1}/{args.parts}" for i in range(args.parts)]
    with ThreadPoolExecutor(len(parts)) as pool:
        codes = pool.map(lambda part: extract(args.music, args.out, part, args.settings), parts)
        sys.exit(max(codes))


if __name__ == "__main__":
    main()

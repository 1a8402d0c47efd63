"""Draw a library as a map: each point is a track, and near tracks sound alike.

    python docs/examples/library_map.py my/music -o my/map.png

The map is the plane in which the embeddings differ most (PCA), or with --umap, if umap-learn is
installed, one that keeps neighbours together. Colours are the highest genre of each track.
"""

import argparse
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np

import maest
from maest.tag_groups import group_of

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def load(folder: str, library: str | None) -> tuple[np.ndarray, list[str], list[str]]:
    """Return embeddings [N, D], and title and genre of each track; analyse what is new."""
    analyser = maest.Analyser()
    with maest.Library(library) as opened:
        done = opened.index(folder, analyser.model, analyser)
        print(f"{done.analysed} tracks analysed, {len(done.failed)} failed")
        tracks, embeddings = opened.embeddings(analyser.model)
        results = [opened.result(track, analyser.model) for track in tracks]
    # The tags of a result are in order, the highest first.
    genres = [
        next((label for label, _ in result.tags if group_of(label) == "genre"), "no genre")
        for result in results
    ]
    return embeddings, [track.title or track.path.stem for track in tracks], genres


def pca(embeddings: np.ndarray) -> np.ndarray:
    """Project [N, D] to the two directions of the largest variance: [N, 2]."""
    x = embeddings.astype(np.float64)
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    x -= x.mean(axis=0)
    _, _, directions = np.linalg.svd(x, full_matrices=False)
    return x @ directions[:2].T


def draw(points: np.ndarray, titles: list[str], genres: list[str], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 7), layout="constrained")
    frequent = [genre for genre, _ in Counter(genres).most_common(9)]
    colours = {genre: f"C{number}" for number, genre in enumerate(frequent)}
    for genre in frequent:
        own = points[[g == genre for g in genres]]
        axes.scatter(*own.T, s=20, color=colours[genre], label=genre.rpartition("---")[2])
    others = points[[g not in colours for g in genres]]
    if len(others):
        axes.scatter(*others.T, s=20, color="lightgrey", label="other")
    if len(titles) <= 60:
        for point, title in zip(points, titles, strict=True):
            axes.annotate(title, point, (4, 3), textcoords="offset points", fontsize=7)
    axes.set(xticks=[], yticks=[])
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="your music")
    parser.add_argument("-o", "--out", type=Path, default=Path("map.png"))
    parser.add_argument("--library", help="a library file, if not that of maest index")
    parser.add_argument("--umap", action="store_true", help="needs pip install umap-learn")
    args = parser.parse_args()

    embeddings, titles, genres = load(args.folder, args.library)
    if args.umap:
        from umap import UMAP

        points = UMAP(metric="cosine", random_state=0).fit_transform(embeddings)
    else:
        points = pca(embeddings)
    draw(points, titles, genres, args.out)
    print(f"{len(points)} tracks: {args.out}")


if __name__ == "__main__":
    main()

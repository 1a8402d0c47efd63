"""Tunes in ABC, and a corpus of six of them."""

import pytest

from maest.datasets.scores import labels, performance, preprocess
from maest.datasets.scores.corpus import Work

SCALE = "GABc dedB|cBAG FEDC|GABc dedB|cBAG G4|"
BODIES = ("GABc dedB|cBAG FEDC|", "EFGA BcdB|AGFE D2E2|", "cegc' bgec|dfaf dBAF|")
BODIES += ("BdBd cece|dfdf g2G2|", "DEFD GABG|cdec d2D2|", "gfed cBAG|FGAB c2C2|")
NOT_ABC = "ABc>d>e>| (3AB"


def tune(title: str, body: str = SCALE, K: str = "G", **headers: str) -> str:
    fields = "".join(f"{name}:{value}\n" for name, value in headers.items())
    return f"X:1\nT:{title}\nM:4/4\nL:1/8\n{fields}K:{K}\n{body}\n"


def work(text: str, collection: str = "ryan", name: str = "a", rank: int = 0) -> Work:
    return Work(f"{collection}/{name}", collection, f"{name}.abc", text, len(text), rank)


@pytest.fixture
def reels(monkeypatch) -> list[Work]:
    """Two reels of each split, all on a fiddle, in the place of the corpus."""
    names = zip("abcdef", BODIES, strict=True)
    texts = [tune(f"Reel No {name}", body * 4, R="reel") for name, body in names]
    works = [work(text, name=f"w{i}", rank=i) for i, text in enumerate(texts)]
    monkeypatch.setattr(preprocess, "list_works", lambda folder: works)
    monkeypatch.setattr(labels, "split_of", lambda one, seed: labels.SPLITS[one.rank % 3])
    monkeypatch.setattr(labels, "MAX_SHARE", {"style": 1.0, "instrument": 1.0})
    monkeypatch.setattr(performance, "choose_ensemble", lambda kind, rng: (("fiddle",),))
    return works

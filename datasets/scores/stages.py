"""The two stages of a build, each in parallel: scores → note events → log-mel clips."""

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from maest.datasets.melspectrograms import write_mel
from maest.datasets.scores import soundfonts
from maest.datasets.scores.cache import Cache
from maest.datasets.scores.corpus import Work, generator
from maest.datasets.scores.performance import TooShort, arrange, render_clip
from maest.datasets.scores.reading import Score, Unreadable, read
from maest.datasets.scores.soundfonts import SoundFont
from maest.helpers.audio.codecs import check_codec_share, coded
from maest.helpers.audio.constants import SAMPLE_RATE
from maest.helpers.errors import InputError
from maest.helpers.files.atomic import atomic_path
from maest.helpers.work.parallel import one_torch_thread

# Raise it when arranging or rendering changes: clips of two versions must not mix.
PERFORMER_VERSION = 4

Row = dict[str, Any]  # facts about a clip
Task = tuple[Work, Score, int]  # the last: index of the rendition


@dataclass(frozen=True)
class Settings:
    """Settings that decide the content of a build."""

    works: int | None = 700  # None: the whole corpus
    leave_out: tuple[str, ...] = ()  # collections
    renditions: int = 1  # performances of each work
    seed: int = 0  # of orchestration, performance and splits, not of the choice of works
    clip_seconds: float = 30.0  # longest clip
    keep_audio: bool = False  # as FLAC
    soundfonts: tuple[SoundFont, ...] = ()  # drawn from, a clip at a time; none: the default one
    codec_share: float = 0.0  # of the clips, which a lossy codec has encoded and decoded

    def __post_init__(self) -> None:
        for name in ("works", "renditions", "clip_seconds"):
            value = getattr(self, name)
            if value is not None and not value >= 1:
                setting = f"--{name.replace('_', '-')}"
                raise InputError(f"found {value}", hint="Give 1 or more.", setting=setting)
        check_codec_share(self.codec_share)

    @property
    def recipe(self) -> str:
        """JSON of all that a clip depends on, besides its work and rendition."""
        made_by = {"performer": PERFORMER_VERSION, "symusic": version("symusic")}
        made_by |= self.soundfont_versions
        if self.codec_share:
            made_by |= {"codec_share": self.codec_share, "av": version("av")}
        return json.dumps({"seed": self.seed, "clip_seconds": self.clip_seconds, **made_by})

    @property
    def soundfont_versions(self) -> dict[str, str]:
        """What clips depend on besides, where SoundFonts are named."""
        if not self.soundfonts:
            return {}
        hashes = " ".join(font.sha256[:16] for font in self.soundfonts)
        return {"SoundFont": hashes, "tinysoundfont": version("tinysoundfont")}


def read_works(
    works: list[Work], folder: Path, cache: Cache, run: Callable
) -> dict[str, Score | str]:
    """Get each work's score, or why there is none, from the cache or else the corpus."""
    results = cache.works(work.id for work in works)
    missing = [work for work in works if work.id not in results]
    # Last in a result: whether to cache it. The next build retries a work whose worker was killed.
    read_now = run(
        partial(_read, folder=folder),
        missing,
        failed=lambda work, reason: (work.id, reason, False),
        title="read",
    )
    for identity, result, is_final in read_now:
        results[identity] = result
        if is_final:
            cache.add_work(identity, result)
    return results


def _read(work: Work, folder: Path) -> tuple[str, Score | str, bool]:
    try:
        return work.id, read(work, folder), True
    except Exception as error:  # a corrupt file may raise anything; the others are read
        return work.id, _reason(error), True


def _reason(error: Exception) -> str:
    """Why a work is left out. Raises an OSError again: a full disk is not the work's fault."""
    if isinstance(error, OSError):
        raise error
    if isinstance(error, Unreadable | TooShort | soundfonts.NoInstrument):
        return str(error)
    return f"{type(error).__name__}: {error}"[:200]


def perform(
    tasks: dict[str, Task], out_dir: Path, settings: Settings, cache: Cache, run: Callable
) -> tuple[dict[str, Row], set[str]]:
    """Make missing clips. Returns rows by key, and the keys of the clips that this run made."""
    rows = cache.clips(settings.recipe)
    todo = [key for key in tasks if not _is_whole(out_dir, key, rows.get(key), settings)]
    cache.forget_clips(todo)
    if todo:
        importlib.import_module("maest.helpers.audio.mel")  # once, before processes fork
        for font in settings.soundfonts:  # whose samples they share
            soundfonts.load(font.path)
    performed = run(
        partial(_perform, out_dir=out_dir, settings=settings),
        [tasks[key] for key in todo],
        failed=lambda task, reason: (clip_key(task[0], task[2]), {"error": reason}, False),
        title="perform",
    )
    for key, row, is_final in performed:
        rows[key] = row
        if is_final:
            cache.add_clip(settings.recipe, key, row)
    return rows, set(todo)


def _perform(task: Task, out_dir: Path, settings: Settings) -> tuple[str, Row, bool]:
    """Perform a work and write its files. Returns key, row, and whether to cache the row."""
    import torch

    from maest.helpers.audio.mel import front_end

    work, score, rendition = task
    key = clip_key(work, rendition)
    rng = generator(f"{settings.seed}\n{work.id}\n{rendition}", 16)
    try:
        arrangement = arrange(work, score, rng)
        played_by: dict[str, str] = {}
        render = None
        if settings.soundfonts:
            # Random numbers of its own: all else is as without a named SoundFont.
            draw = generator(f"{settings.seed}\n{work.id}\n{rendition}\nSoundFont", 16)
            programs = {voice.instrument.program for voice in arrangement.voices}
            font = soundfonts.draw(settings.soundfonts, programs, draw)
            render = partial(soundfonts.synthesize, font.path)
            played_by = {"soundfont": font.name}
        clip = render_clip(arrangement, settings.clip_seconds, rng, render)
        if settings.codec_share:
            draw = generator(f"{settings.seed}\n{work.id}\n{rendition}\ncodec", 16)
            audio, played_by["codec"] = coded(clip.audio, settings.codec_share, draw)
            clip = clip._replace(audio=audio)
    except soundfonts.TooSlow as error:  # the machine may have been busy: tried again next time
        return key, {"error": str(error)}, False
    except Exception as error:  # an odd score may raise anything; the others are performed
        return key, {"error": _reason(error)}, True
    if settings.keep_audio:
        import soundfile

        with atomic_path(_audio_path(out_dir, key)) as temporary:
            soundfile.write(temporary, clip.audio, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    with one_torch_thread(), torch.inference_mode():
        mel = front_end()(torch.from_numpy(clip.audio))
    write_mel(out_dir / "melspectrograms" / key, mel.T.numpy())
    row = {
        "seconds": round(len(clip.audio) / SAMPLE_RATE, 3),
        "start_seconds": round(clip.start, 3),
        "quarter_bpm": round(arrangement.tempo, 2),
        "transposition": arrangement.transposition,
        "programs": sorted(one.program for one in clip.instruments),
        "instrument": sorted({one.label for one in clip.instruments}),
        "bytes": mel.numel() * 2,  # float16
        **played_by,
    }
    return key, row, True


def clip_key(work: Work, rendition: int) -> str:
    """A clip's path below ``melspectrograms/``."""
    return f"{work.id}-r{rendition}.mmap"


def _is_whole(out_dir: Path, key: str, row: Row | None, settings: Settings) -> bool:
    if row is None or "error" in row:
        return row is not None
    path = out_dir / "melspectrograms" / key
    has_audio = not settings.keep_audio or _audio_path(out_dir, key).is_file()
    return path.is_file() and path.stat().st_size == row["bytes"] and has_audio


def _audio_path(out_dir: Path, key: str) -> Path:
    return (out_dir / "audio" / key).with_suffix(".flac")

"""NumPy files that several threads read."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from made_up import refuses

from maest.helpers.files.arrays import load_array


@pytest.mark.parametrize("mapped", [False, True])
def test_several_threads(tmp_path, mapped):
    """Parsing headers in two threads at once fails in some CPythons: `numpy.load` alone does."""
    for i in range(8):
        np.save(tmp_path / f"{i}.npy", np.full((3, 5), i, np.float32))

    def read(i: int) -> bool:
        return bool((load_array(tmp_path / f"{i % 8}.npy", "Again.", mapped=mapped) == i % 8).all())

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(2000)))
    finally:
        sys.setswitchinterval(before)


def test_what_is_no_array(tmp_path):
    np.savez(tmp_path / "many.npz", a=np.ones(2), b=np.ones(3))
    for name, kind in (("none.npy", "missing"), ("many.npz", "corrupt")):
        with refuses(kind, name, "data.folder"):
            load_array(tmp_path / name, "Again.", "data.folder")
    np.save(tmp_path / "a.npy", np.ones((3, 4), np.float32))
    whole = (tmp_path / "a.npy").read_bytes()
    damaged = [b"", b"no array", b"\x93NUMPY", b"PK\x03\x04", whole[:-1], whole[:100]]
    changes = ("'shape'", "'sh(pe'"), ("(3, 4)", "(3, 4["), ("<f4", "<q9")
    changes += (("(3, 4), }          ", "(3, 400000000000), }"),)
    damaged += [whole.replace(old.encode(), new.encode()) for old, new in changes]
    for content in damaged:
        (tmp_path / "a.npy").write_bytes(content)
        with refuses("corrupt", "a.npy"):
            load_array(tmp_path / "a.npy", "Again.")

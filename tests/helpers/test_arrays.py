"""NumPy files that several threads read."""

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from maest.helpers.files.arrays import load_array


@pytest.fixture
def often_another_thread():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("mapped", [False, True])
def test_several_threads(tmp_path, often_another_thread, mapped):
    """Parsing headers in two threads at once fails in some CPythons: `numpy.load` alone does."""
    for i in range(8):
        np.save(tmp_path / f"{i}.npy", np.full((3, 5), i, np.float32))

    def read(i: int) -> bool:
        return bool((load_array(tmp_path / f"{i % 8}.npy", mapped) == i % 8).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(2000)))


def test_what_is_no_array(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_array(tmp_path / "none.npy")
    np.savez(tmp_path / "many.npz", a=np.ones(2), b=np.ones(3))
    with pytest.raises(ValueError, match="several arrays"):
        load_array(tmp_path / "many.npz")
    (tmp_path / "text.npy").write_text("no array")
    with pytest.raises(ValueError):  # noqa: PT011 (NumPy's words)
        load_array(tmp_path / "text.npy")

"""The safe pickle: plain data of any protocol and NumPy is read, and damage runs nothing."""

import pickle
import struct
import sys
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from made_up import refuses
from pickles import PROTOCOLS, save

from maest.datasets.groundtruth import read_groundtruth
from maest.helpers.errors import InputError
from maest.helpers.files.safe_pickle import load_pickle

DTYPES = ["?", "i1", "u1", *(o + k for o in "<>" for k in ["i2", "u4", "i8", "f2", "f4", "f8"])]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.binary(min_size=1, max_size=9)
) | st.sampled_from(["a/1.mmap", "posix", "system", "touch flag", "builtins", "eval", "é"])
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda kind: arrays(kind, array_shapes(max_dims=3, max_side=4), elements=st.integers(0, 1))
)
ARRAYS |= ARRAYS.map(lambda array: array.T)  # in Fortran's order
PLAIN = st.recursive(
    SCALARS | ARRAYS,
    lambda values: (
        st.lists(values, max_size=4)
        | st.lists(values, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(), values, max_size=4)
    ),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    """Whether types, too, are equal; also says no where ``a`` is no plain data."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and (a == b).all()
    if isinstance(a, dict):
        return list(a) == list(b) and all(map(same, a.values(), b.values()))
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list | tuple) else a == b


def is_plain(value: object) -> bool:
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    kind = value.dtype.kind in "biuf" if isinstance(value, np.ndarray) else None
    return kind or type(value) in (bool, int, float, str, bytes, bytearray, type(None))


ran: list[str] = []
CALLS = {"pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "subprocess.Popen"}
sys.addaudithook(lambda event, _: ran.append(event) if event in CALLS else None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("damage") / "gt.pk"


@settings(max_examples=200, deadline=None, derandomize=True)
@given(value=PLAIN, protocol=st.sampled_from(PROTOCOLS))
def test_plain_data_comes_back(place, value, protocol):
    assert same(load_pickle(save(place, [value], protocol)), [value])


@settings(max_examples=600, deadline=None, derandomize=True)
@given(
    value=PLAIN,
    protocol=st.sampled_from(PROTOCOLS),
    flips=st.lists(st.tuples(st.integers(0), st.integers(1, 255)), min_size=1, max_size=4),
    cut=st.integers(0, 4),
)
def test_damage_gives_plain_data_or_our_error_and_runs_nothing(place, value, protocol, flips, cut):
    content = bytearray(pickle.dumps(value, protocol))
    for at, bits in flips:
        content[at % len(content)] ^= bits
    at = flips[0][0] % len(content)
    del content[at : at + cut]
    save(place, bytes(content))
    ran.clear()
    with suppress(InputError):
        assert is_plain(load_pickle(place))
    assert not ran


@pytest.mark.parametrize("dtype", ["U3", "S3", "M8[s]", "m8[s]", "c8", "V4", "i4,f4", "O"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_dtypes_are_refused(file, dtype, protocol):
    with refuses("unsupported", "gt.pk"):
        load_pickle(file({"a": np.zeros(2, dtype)}, protocol))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numbers_of_numpy_become_pythons(file, protocol):
    ones = [np.ones((), dtype)[()] for dtype in DTYPES]
    loaded = load_pickle(file(ones, protocol))
    assert loaded == [1] * len(ones)
    assert {type(one) for one in loaded} == {bool, int, float}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_keys_from_an_array_of_text(file, protocol):
    """As in lists of splits saved by NumPy."""
    names = np.array(["a/1.mmap", "é/2.mmap", "日本/3.mmap"])
    loaded = load_pickle(file(dict.fromkeys(names, 1), protocol))
    assert same(loaded, dict.fromkeys(names.tolist(), 1))


@pytest.mark.parametrize("core", [b"_core", b"core"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_1_and_2_names(file, protocol, core):
    """Files of both NumPys: this one's, with its modules renamed."""
    data = pickle.dumps({"a": np.array([True, False]), "b": [np.bool_(True)]}, protocol)
    assert b"numpy._core." in data
    for name in (b"numpy._core.multiarray", b"numpy._core.numeric"):
        renamed = name.replace(b"_core", core)
        if protocol >= 4:  # a name is preceded by its length
            name, renamed = (b"\x8c" + bytes([len(n)]) + n for n in (name, renamed))
        data = data.replace(name, renamed)
    if protocol >= 4:  # PROTO, FRAME, the frame's size
        data = data[:3] + struct.pack("<Q", len(data) - 11) + data[11:]
    loaded = load_pickle(file(data))
    np.testing.assert_array_equal(loaded["a"], [True, False])
    assert loaded["b"] == [True]


def test_python_2_pickle(file):
    """Strings and raw data as STRING and SHORT_BINSTRING."""
    dtype = b"cnumpy\ndtype\n(S'b1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    array += b"(I1\n(I2\nt" + dtype + b"I00\nS'\\x01\\x00'\ntb"
    groundtruth = read_groundtruth(
        file(b"(dS'a/1.mmap'\n" + array + b"sU\x01b(I0\nI1\ntsVc\n(lI01\naI00\nas.")
    )
    assert groundtruth.keys == ["a/1.mmap", "b", "c"]
    np.testing.assert_array_equal(groundtruth.targets, [[1, 0], [0, 1], [1, 0]])
    half = array.replace(b"'b1'", b"'f2'").replace(b"'|'", b"'<'").replace(b"(I2\n", b"(I1\n")
    half = half.replace(b"\\x01\\x00", b"\\xff\\xbb")
    assert load_pickle(file(b"(l" + half + b"a."))[0] == [np.frombuffer(b"\xff\xbb", "<f2")[0]]


@pytest.mark.parametrize("dumps", [pickle.dumps, pickle._dumps], ids=["C", "Python"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_large_files(file, dumps, protocol):
    """Many frames and memo entries, and arrays that are written between frames."""
    draw = np.random.default_rng(0)
    value = {f"{i}.mmap": draw.random(30) < 0.5 for i in range(1000)}
    value |= {"large": draw.random(70_000) < 0.5, "text": "x" * 70_000}
    assert same(load_pickle(file(dumps(value, protocol))), value)

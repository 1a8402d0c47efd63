"""The safe pickle: plain data is read, anything else is refused by name and never run."""

import functools
import os
import pickle
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from maest.datasets.groundtruth import read_groundtruth
from maest.helpers.errors import InputError
from maest.helpers.files.safe_pickle import load_pickle

PROTOCOLS = range(6)


def save(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, protocol))
    return path


@pytest.fixture
def file(tmp_path):
    """Write a value (or raw bytes) as a pickle; give its path."""
    return lambda value, protocol=4: save(tmp_path / "gt.pk", value, protocol)


# --- Payloads -----------------------------------------------------------------------------------


class Payload:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture
def flag(tmp_path):
    return tmp_path / "flag"


def payloads(flag: Path) -> dict[str, Payload]:
    """Refused global → payload that makes the file ``flag`` (where it can make one)."""
    array_file = flag.with_suffix(".npy")
    command = f"touch {flag}"
    return {
        f"{os.name}.system": Payload(os.system, command),
        "builtins.eval": Payload(eval, f"open({str(flag)!r}, 'w').close()"),
        "builtins.exec": Payload(exec, f"open({str(flag)!r}, 'w').close()"),
        "builtins.getattr": Payload(getattr, Payload(open, str(flag), "w"), "close"),
        "functools.partial": Payload(functools.partial, os.system, command),
        "numpy.load": Payload(np.load, str(array_file), None, True),
        "numpy.fromfile": Payload(np.fromfile, str(flag)),
    }


NAMES = sorted(payloads(Path("flag")))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("nest", ["bare", "in a dict", "in a list", "as a key", "in a call"])
def test_payload_is_refused_by_name_and_does_not_run(file, flag, name, nest, protocol):
    payload = payloads(flag)[name]
    value = {
        "bare": payload,
        "in a dict": {"a.mmap": payload},
        "in a list": {"a.mmap": [1, 0, [payload]]},
        "as a key": {payload: [1, 0]},
        "in a call": {"a.mmap": Payload(np.dtype, payload)},
    }[nest]
    path = file(value, protocol)
    with pytest.raises(InputError) as error:
        load_pickle(path)
    shown = name.replace("builtins.", "__builtin__.") if protocol < 3 else name
    assert (error.value.kind, error.value.path) == ("unsupported", path)
    assert shown in error.value.message
    assert error.value.hint
    assert not flag.exists()


def test_the_payloads_would_run_under_pickle_load(file, flag):
    """The tests above prove something only if the payloads are live."""
    for name in (f"{os.name}.system", "builtins.eval"):
        pickle.loads(file(payloads(flag)[name]).read_bytes())
        assert flag.exists()
        flag.unlink()


def call(global_: bytes, argument: str) -> bytes:
    """Protocol 0: call the global with one string."""
    return global_ + b"(V" + argument.encode() + b"\ntR."


@pytest.mark.parametrize(
    ("opcodes", "name"),
    [
        (b"cbuiltins\neval\n", "builtins.eval"),
        (b"c__builtin__\neval\n", "__builtin__.eval"),
        (b"c__builtin__\napply\n", "__builtin__.apply"),
        (b"cio\nopen\n", "io.open"),
        (b"c_io\nopen\n", "_io.open"),
        (b"cnt\nsystem\n", "nt.system"),
        (b"cnumpy\nload\n", "numpy.load"),
        (b"cnumpy\nndarray.tofile\n", "numpy.ndarray.tofile"),
        (b"cnumpy\ncore.multiarray.scalar\n", "numpy.core.multiarray.scalar"),
        (b"cnumpy.core.multiarray\n_reconstruct.__globals__\n", "_reconstruct.__globals__"),
        (
            b"cmaest.helpers.files.safe_pickle\n_Constructor\n",
            "maest.helpers.files.safe_pickle._Constructor",
        ),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93", "builtins.eval"),
        (b"\x80\x04\x8c\x02os\x8c\x0bpath.exists\x93", "os.path.exists"),
        (b"\x80\x04\x8c\x05numpy\x8c\x16f2py.diagnose.os.popen\x93", "numpy.f2py.diagnose"),
    ],
)
def test_global_by_any_other_name_is_refused(file, flag, opcodes, name):
    with pytest.raises(InputError) as error:
        load_pickle(file(call(opcodes, f"open({str(flag)!r}, 'w')")))
    assert name in str(error.value)
    assert not flag.exists()


def test_global_is_printable_whatever_its_name(file):
    with pytest.raises(InputError) as error:
        load_pickle(file(b"c\x1b[2Jposix" + b"x" * 5000 + b"\nsystem\n."))
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 700


NDARRAY = b"cnumpy\nndarray\n"
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"
FROMBUFFER = b"cnumpy.core.numeric\n_frombuffer\n"
SCALAR = b"cnumpy.core.multiarray\nscalar\n"
ENCODE = b"c_codecs\nencode\n"
DTYPE = b"cnumpy\ndtype\n(X\x02\x00\x00\x00b1\x89\x88tR"
DTYPE_STATE = b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"
ARRAY = RECONSTRUCT + b"(" + NDARRAY + b"(K\x00tC\x01btR"
ARRAY_STATE = b"(K\x01(K\x02t" + DTYPE + b"\x89C\x02\x01\x00t"
SLOT_STATE = b"(N}X\x03\x00\x00\x00rawNst"  # (None, {"raw": None}): sets a slot by setattr
DICT_STATE = b"}X\x03\x00\x00\x00rawNs"


def test_hand_assembled_array_is_read(file):
    np.testing.assert_array_equal(load_pickle(file(ARRAY + ARRAY_STATE + b"b.")), [True, False])


ATTACKS = {
    "BUILD a constructor, dict": (NDARRAY + DICT_STATE + b"b.", "unsupported"),
    "BUILD a constructor, slots": (ENCODE + SLOT_STATE + b"b.", "unsupported"),
    "BUILD a dtype, dict": (DTYPE + DICT_STATE + b"b.", "unsupported"),
    "BUILD a dtype, slots": (DTYPE + SLOT_STATE + b"b.", "unsupported"),
    "BUILD a dtype twice": (DTYPE + (DTYPE_STATE + b"b") * 2 + b".", "unsupported"),
    "BUILD an array, dict": (ARRAY + DICT_STATE + b"b.", "unsupported"),
    "BUILD an array, slots": (ARRAY + SLOT_STATE + b"b.", "unsupported"),
    "BUILD an array twice": (ARRAY + (ARRAY_STATE + b"b") * 2 + b".", "unsupported"),
    "BUILD bytes": (ENCODE + b"(Va\nVlatin1\ntR" + DICT_STATE + b"b.", "unsupported"),
    "BUILD a list": (b"]" + DICT_STATE + b"b.", "unsupported"),
    "NEWOBJ": (NDARRAY + b"(K\x05t\x81.", "unsupported"),
    "NEWOBJ_EX": (b"\x80\x04" + NDARRAY + b"(K\x05t}\x92.", "unsupported"),
    "NEWOBJ of a foreign class": (b"cos\nPathLike\n)\x81.", "unsupported"),
    "INST": (b"(Vtouch flag\niposix\nsystem\n.", "unsupported"),
    "INST of a stand-in": (b"(K\x05inumpy\nndarray\n.", "unsupported"),
    "OBJ": (b"(cposix\nsystem\nVtouch flag\no.", "unsupported"),
    "OBJ of a stand-in": (b"(" + NDARRAY + b"K\x05o.", "unsupported"),
    "REDUCE ndarray": (NDARRAY + b"(J\x00\x00\x00\x7ftR.", "unsupported"),
    "REDUCE a dtype": (DTYPE + b")R.", "unsupported"),
    "REDUCE an array": (ARRAY + b")R.", "unsupported"),
    "REDUCE a string": (b"Vposix.system\n)R.", "unsupported"),
    "EXT1": (b"\x80\x02\x82\x01.", "unsupported"),
    "EXT2": (b"\x80\x02\x83\x01\x00.", "unsupported"),
    "EXT4": (b"\x80\x02\x84\x01\x00\x00\x00.", "unsupported"),
    "PERSID": (b"Pposix.system\n.", "unsupported"),
    "BINPERSID": (b"Vposix.system\nQ.", "unsupported"),
    "NEXT_BUFFER": (b"\x80\x05\x97.", "unsupported"),
    "a set": (b"\x80\x04\x8f.", "unsupported"),
    "APPEND to a constructor": (NDARRAY + b"K\x01a.", "unsupported"),
    "APPENDS to an array": (ARRAY + b"(K\x01K\x02e.", "unsupported"),
    "SETITEM of a constructor": (NDARRAY + b"K\x01K\x02s.", "unsupported"),
    "SETITEMS of an array": (ARRAY + b"(K\x01K\x02u.", "unsupported"),
    "constructor as a key": (b"}" + NDARRAY + b"K\x01s.", "unsupported"),
    "array in a tuple as a key": (b"}" + ARRAY + b"\x85K\x01s.", "unsupported"),
    "constructor as data": (b"]" + NDARRAY + b"a.", "unsupported"),
    "dtype as data": (b"]" + DTYPE + b"a.", "unsupported"),
    "unfinished array": (b"]" + ARRAY + b"a.", "unsupported"),
    "array of another class": (RECONSTRUCT + b"(Vx\n(K\x00tC\x01btR.", "unsupported"),
    "other encoding": (ENCODE + b"(Va\nVzip\ntR.", "unsupported"),
    "encode of no text": (ENCODE + b"(K\x01Vlatin1\ntR.", "unsupported"),
    "too many arguments": (ENCODE + b"(Va\nVlatin1\nVx\ntR.", "corrupt"),
    "data shorter than its shape": (
        ARRAY + ARRAY_STATE.replace(b"K\x02t", b"K\x03t") + b"b.",
        "unsupported",
    ),
    "huge shape": (
        ARRAY + ARRAY_STATE.replace(b"K\x02t", b"\x8a\x07" + b"\xff" * 6 + b"\x7ft") + b"b.",
        "unsupported",
    ),
    "negative shape": (
        ARRAY + ARRAY_STATE.replace(b"K\x02t", b"J\xff\xff\xff\xffJ\xfe\xff\xff\xfft") + b"b.",
        "unsupported",
    ),
    "array of numbers": (
        ARRAY + ARRAY_STATE.replace(b"C\x02\x01\x00", b"]") + b"b.",
        "unsupported",
    ),
    "scalar of two bytes": (SCALAR + b"(" + DTYPE + b"C\x02\x01\x01tR.", "unsupported"),
    "scalar of an object": (SCALAR + b"(" + NDARRAY + b"]tR.", "unsupported"),
    "frombuffer of no dtype": (FROMBUFFER + b"(C\x01\x01K\x01K\x01K\x01tR.", "unsupported"),
    "frombuffer in order K": (
        FROMBUFFER + b"(C\x01\x01" + DTYPE + b"(K\x01tVK\n(K\x00ttR.",
        "unsupported",
    ),
}


@pytest.mark.parametrize(("opcodes", "kind"), ATTACKS.values(), ids=ATTACKS)
def test_attacks_on_the_stand_ins(file, flag, monkeypatch, opcodes, kind):
    monkeypatch.chdir(flag.parent)
    path = file(opcodes)
    with pytest.raises(InputError) as error:
        load_pickle(path)
    assert (error.value.kind, error.value.path) == (kind, path)
    assert not flag.exists()


@pytest.mark.parametrize("value", [np.array([1, "a"], object), np.array([None, 0])])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_object_array_is_refused(file, value, protocol):
    with pytest.raises(InputError, match="'O8'") as error:
        load_pickle(file({"a": value}, protocol))
    assert error.value.kind == "unsupported"


def test_object_array_with_a_payload_does_not_run(file, flag):
    value = np.array([Payload(os.system, f"touch {flag}")], object)
    with pytest.raises(InputError, match=r"O8|posix\.system"):
        load_pickle(file({"a": value}))
    assert not flag.exists()


@pytest.mark.parametrize("dtype", ["U3", "S3", "M8[s]", "m8[s]", "c8", "V4", "i4,f4", "O"])
def test_other_dtypes_are_refused(file, dtype):
    with pytest.raises(InputError) as error:
        load_pickle(file({"a": np.zeros(2, dtype)}))
    assert error.value.kind == "unsupported"


# --- Damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_truncated_anywhere(file, protocol):
    whole = file({"a": np.array([True, False]), "b": (0, 1)}, protocol).read_bytes()
    for length in range(len(whole)):
        with pytest.raises(InputError):
            load_pickle(file(whole[:length]))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"path,label\n",
        b"\x93NUMPY\x01\x00v\x00{'descr': '|b1'}",
        b"\xff\xfe",
        b"\x80\x09N.",
        pickle.dumps({"a": [1]}) + b"\n",
        pickle.dumps({"a": [1]}, 2) + b"\n",
        pickle.dumps({"a": [1]}) * 2,
    ],
)
def test_no_whole_pickle(file, content):
    path = file(content)
    with pytest.raises(InputError) as error:
        load_pickle(path)
    assert (error.value.kind, error.value.path) == ("corrupt", path)


def test_missing_file_and_folder(tmp_path):
    for path, kind in ((tmp_path / "none.pk", "missing"), (tmp_path, "access")):
        with pytest.raises(InputError) as error:
            load_pickle(path)
        assert (error.value.kind, error.value.path) == (kind, path)


@pytest.mark.parametrize(
    "content",
    [
        b"Np-1\n.",
        b"\x80\x04\x96" + struct.pack("<Q", 1 << 40) + b".",
        b"\x80\x04\x8e" + struct.pack("<Q", (1 << 64) - 1) + b".",
        b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.",
        b"\x80\x04\x8b" + struct.pack("<i", -1) + b".",
        b"\x80\x04\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b".",
        b"I" + b"9" * 10**6 + b"\n.",
        b"\x80\x04\x95" + struct.pack("<Q", 2) + b"X\x01\x00\x00\x00a.",  # crosses its frame
        b"]" * 10**5 + b"a" * (10**5 - 1) + b".",  # lists in lists
    ],
    ids=range(9),
)
def test_declared_sizes_and_depth_are_bounded(file, content):
    with pytest.raises(InputError):
        load_pickle(file(content))


@pytest.mark.parametrize(
    "again",
    [
        ENCODE + b"(g1\nVlatin1\ntR",
        SCALAR + b"(" + b"cnumpy\ndtype\n(X\x05\x00\x00\x00U2500\x89\x88tR" + b"g2\ntR",
    ],
    ids=["bytes", "text"],
)
def test_a_long_text_is_not_converted_again_and_again(file, again):
    """A few bytes each time, for 10,000 of memory."""
    text = b"Va" + b"a" * 9999 + b"\np1\n" + b"B\x10\x27\x00\x00" + bytes(10000) + b"p2\n"
    content = b"]((" + text + b"t" + again * 1000 + b"le."
    with pytest.raises(InputError) as error:
        load_pickle(file(content))
    assert error.value.kind == "unsupported"


@pytest.mark.parametrize("content", [b"\x80\x04Nr\xff\xff\xff\xff.", b"Np99999999999\n."])
def test_a_memo_is_not_an_array(file, content):
    """One of 2^32 entries would take 32 GB."""
    assert load_pickle(file(content)) is None


NESTED_KEY = b")" + b"\x85" * 10**6 + b"K\x01"


@pytest.mark.parametrize(
    "content",
    [b"}" + NESTED_KEY + b"s.", b"}(" + NESTED_KEY + b"u.", b"(" + NESTED_KEY + b"d."],
    ids=["SETITEM", "SETITEMS", "DICT"],
)
def test_deeply_nested_keys_do_not_end_the_process(file, content):
    """Hashing one would overflow the interpreter's stack."""
    with pytest.raises(InputError) as error:
        load_pickle(file(content))
    assert error.value.kind == "unsupported"


def test_keys_from_an_array_of_text(file):
    """As they stand in lists of splits that were saved by NumPy."""
    for protocol in PROTOCOLS:
        names = np.array(["a/1.mmap", "é/2.mmap", "日本/3.mmap"])
        path = file({name: np.array([True, False]) for name in names}, protocol)
        assert read_groundtruth(path).keys == names.tolist()
        assert all(type(key) is str for key in load_pickle(path))
        with pytest.raises(InputError):
            load_pickle(file({"a": names}, protocol))  # arrays of text are no targets


def test_shared_and_circular_containers(file):
    laughs: list = [0]
    for _ in range(40):
        laughs = [laughs, laughs]
    assert load_pickle(file(laughs))[0] is not None
    loop: list = [np.array([1])]
    loop.append((loop,))
    loaded = load_pickle(file(loop))
    assert loaded[1][0] is loaded
    with pytest.raises(InputError, match="'a'"):
        read_groundtruth(file({"a": laughs}))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_random_damage_gives_a_result_or_our_error(file, protocol):
    value = {
        "a/1.mmap": np.array([True, False, True]),
        "a/2.mmap": np.array([1, 0, 1], "f4"),
        "b/3.mmap": (0, 1, 1),
        "b/4.mmap": [np.bool_(1), 0.0, True],
    }
    whole = pickle.dumps(value, protocol)
    draw = random.Random(protocol)
    good = 0
    for _ in range(1500):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 3)):
            at = draw.randrange(len(data))
            action = draw.randrange(3)
            if action == 0:
                data[at] = draw.randrange(256)
            elif action == 1:
                del data[at : at + draw.randint(1, 4)]
            else:
                data[at:at] = draw.choice([draw.randbytes(2), whole[at : at + 9]])
        path = file(bytes(data))
        try:
            result = read_groundtruth(path)
        except InputError:
            continue
        good += 1
        assert set(np.unique(result.targets)) <= {0, 1}
    assert good > 0


# --- What is let in -----------------------------------------------------------------------------

DTYPES = ["?", *(order + kind for order in "<>" for kind in ["i2", "u4", "i8", "f2", "f4", "f8"])]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", [*DTYPES, "i1", "u1"])
def test_dtypes(file, dtype, protocol):
    array = np.array([0, 1, 1, 0, 1], dtype)
    loaded = load_pickle(file([array, array[0], array[1]], protocol))
    assert loaded[0].dtype == array.dtype
    np.testing.assert_array_equal(loaded[0], array)
    assert loaded[1:] == [0, 1]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_orders(file, protocol):
    base = np.arange(24).reshape(4, 6)
    arrays = [base, np.asfortranarray(base), base[::2, 1::3], base.T, base[:, 2], np.zeros((2, 0))]
    if protocol < 3:
        arrays.pop()  # there, no bytes are written as a call of __builtin__.bytes
    for array, loaded in zip(arrays, load_pickle(file(arrays, protocol)), strict=True):
        np.testing.assert_array_equal(loaded, array)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_1_and_2_names(file, protocol):
    """The files of both NumPys, each made from the running one's by renaming its modules."""
    value = {"a": np.array([True, False]), "b": [np.bool_(True), np.float32(0)]}
    names = [b"numpy._core.multiarray", b"numpy._core.numeric"]
    pickled = pickle.dumps(value, protocol)
    files = []
    for core in (b"_core", b"core"):
        data = pickled
        for name in names:
            renamed = name.replace(b"_core", core)
            if protocol >= 4:  # a name is preceded by its length
                prefix, new_prefix = (b"\x8c" + bytes([len(n)]) for n in (name, renamed))
                data = data.replace(prefix + name, new_prefix + renamed)
            else:
                data = data.replace(name, renamed)
        if protocol >= 4:  # PROTO, FRAME, the frame's size
            data = data[:3] + struct.pack("<Q", len(data) - 11) + data[11:]
        files.append(data)
    new, old = files
    assert b"numpy._core." in new
    assert b"numpy._core." not in old
    for data in (new, old):
        loaded = load_pickle(file(data))
        np.testing.assert_array_equal(loaded["a"], [True, False])
        assert loaded["b"] == [True, 0.0]


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
    value = {f"{i}.mmap": draw.random(30) < 0.5 for i in range(3000)}
    value |= {f"large{i}.mmap": draw.random(70_000) < 0.5 for i in range(2)}
    value["text"] = "x" * 70_000
    loaded = load_pickle(file(dumps(value, protocol)))
    assert loaded.keys() == value.keys()
    for key, array in value.items():
        np.testing.assert_array_equal(loaded[key], array)

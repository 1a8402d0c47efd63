"""The safe pickle: whatever is not plain data is refused by name, and never run."""

import functools
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from made_up import refuses
from pickles import PROTOCOLS

from maest.datasets.groundtruth import read_groundtruth
from maest.helpers.errors import InputError
from maest.helpers.files.safe_pickle import load_pickle


@pytest.fixture
def flag(tmp_path):
    """The file that a payload would make."""
    return tmp_path / "flag"


class Payload:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def payloads(flag: Path) -> dict[str, Payload]:
    """Refused global → payload that makes the file ``flag`` (where it can make one)."""
    command, code = f"touch {flag}", f"open({str(flag)!r}, 'w').close()"
    return {
        f"{os.name}.system": Payload(os.system, command),
        "builtins.eval": Payload(eval, code),
        "builtins.exec": Payload(exec, code),
        "builtins.getattr": Payload(getattr, Payload(open, str(flag), "w"), "close"),
        "functools.partial": Payload(functools.partial, os.system, command),
        "numpy.load": Payload(np.load, str(flag.with_suffix(".npy")), None, True),
        "numpy.fromfile": Payload(np.fromfile, str(flag)),
    }


NESTS = {
    "bare": lambda payload: payload,
    "in a dict": lambda payload: {"a.mmap": payload},
    "in a list": lambda payload: {"a.mmap": [1, 0, [payload]]},
    "as a key": lambda payload: {payload: [1, 0]},
    "in a call": lambda payload: {"a.mmap": Payload(np.dtype, payload)},
    "in an array": lambda payload: np.array([payload], object),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("nest", NESTS)
@pytest.mark.parametrize("name", payloads(Path("flag")))
def test_payload_is_refused_by_name_and_does_not_run(file, flag, name, nest, protocol):
    path = file(NESTS[nest](payloads(flag)[name]), protocol)
    with refuses("unsupported", path.name) as error:
        load_pickle(path)
    shown = name.replace("builtins.", "__builtin__.") if protocol < 3 else name
    assert shown in error.value.message or (nest == "in an array" and "O8" in error.value.message)
    assert not flag.exists()


def test_payloads_run_under_pickle_load(file, flag):
    """The tests above prove something only if the payloads are live."""
    for name in (f"{os.name}.system", "builtins.eval"):
        pickle.loads(file(payloads(flag)[name]).read_bytes())
        assert flag.exists()
        flag.unlink()


@pytest.mark.parametrize(
    ("opcodes", "name"),
    [
        (b"cbuiltins\neval\n", "builtins.eval"),
        (b"c__builtin__\neval\n", "__builtin__.eval"),
        (b"c__builtin__\napply\n", "__builtin__.apply"),
        (b"cio\nopen\n", "io.open"),
        (b"c_io\nopen\n", "_io.open"),
        (b"cnt\nsystem\n", "nt.system"),
        (b"c\x1b[2Jposix" + b"x" * 5000 + b"\nsystem\n", "[2Jposix"),
        (b"cnumpy\nload\n", "numpy.load"),
        (b"cnumpy\nndarray.tofile\n", "numpy.ndarray.tofile"),
        (b"cnumpy\ncore.multiarray.scalar\n", "numpy.core.multiarray.scalar"),
        (b"cnumpy.core.multiarray\n_reconstruct.__globals__\n", "_reconstruct.__globals__"),
        (b"cmaest.helpers.files.pickle_reader\nReader\n", "files.pickle_reader.Reader"),
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93", "builtins.eval"),
        (b"\x80\x04\x8c\x02os\x8c\x0bpath.exists\x93", "os.path.exists"),
        (b"\x80\x04\x8c\x05numpy\x8c\x16f2py.diagnose.os.popen\x93", "numpy.f2py.diagnose"),
    ],
)
def test_global_by_any_other_name_is_refused(file, flag, opcodes, name):
    call = f"(Vopen({str(flag)!r}, 'w')\ntR.".encode()
    with refuses("unsupported", "gt.pk") as error:
        load_pickle(file(opcodes + call))
    assert name in error.value.message
    assert error.value.message.isprintable()
    assert len(str(error.value)) < 700
    assert not flag.exists()


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
    """The attacks are changes of it."""
    np.testing.assert_array_equal(load_pickle(file(ARRAY + ARRAY_STATE + b"b.")), [True, False])


def of_shape(shape: bytes) -> bytes:
    return ARRAY + ARRAY_STATE.replace(b"K\x02t", shape + b"t") + b"b."


ATTACKS = {
    "BUILD a constructor, dict": NDARRAY + DICT_STATE + b"b.",
    "BUILD a constructor, slots": ENCODE + SLOT_STATE + b"b.",
    "BUILD a dtype, dict": DTYPE + DICT_STATE + b"b.",
    "BUILD a dtype, slots": DTYPE + SLOT_STATE + b"b.",
    "BUILD a dtype twice": DTYPE + (DTYPE_STATE + b"b") * 2 + b".",
    "BUILD an array, dict": ARRAY + DICT_STATE + b"b.",
    "BUILD an array, slots": ARRAY + SLOT_STATE + b"b.",
    "BUILD an array twice": ARRAY + (ARRAY_STATE + b"b") * 2 + b".",
    "BUILD bytes": ENCODE + b"(Va\nVlatin1\ntR" + DICT_STATE + b"b.",
    "BUILD a list": b"]" + DICT_STATE + b"b.",
    "NEWOBJ": NDARRAY + b"(K\x05t\x81.",
    "NEWOBJ_EX": b"\x80\x04" + NDARRAY + b"(K\x05t}\x92.",
    "NEWOBJ of a foreign class": b"cos\nPathLike\n)\x81.",
    "INST": b"(Vtouch flag\niposix\nsystem\n.",
    "INST of a stand-in": b"(K\x05inumpy\nndarray\n.",
    "OBJ": b"(cposix\nsystem\nVtouch flag\no.",
    "OBJ of a stand-in": b"(" + NDARRAY + b"K\x05o.",
    "REDUCE ndarray": NDARRAY + b"(J\x00\x00\x00\x7ftR.",
    "REDUCE a dtype": DTYPE + b")R.",
    "REDUCE an array": ARRAY + b")R.",
    "REDUCE a string": b"Vposix.system\n)R.",
    "EXT1": b"\x80\x02\x82\x01.",
    "EXT2": b"\x80\x02\x83\x01\x00.",
    "EXT4": b"\x80\x02\x84\x01\x00\x00\x00.",
    "PERSID": b"Pposix.system\n.",
    "BINPERSID": b"Vposix.system\nQ.",
    "NEXT_BUFFER": b"\x80\x05\x97.",
    "a set": b"\x80\x04\x8f.",
    "APPEND to a constructor": NDARRAY + b"K\x01a.",
    "APPENDS to an array": ARRAY + b"(K\x01K\x02e.",
    "SETITEM of a constructor": NDARRAY + b"K\x01K\x02s.",
    "SETITEMS of an array": ARRAY + b"(K\x01K\x02u.",
    "constructor as a key": b"}" + NDARRAY + b"K\x01s.",
    "array in a tuple as a key": b"}" + ARRAY + b"\x85K\x01s.",
    "array of another class": RECONSTRUCT + b"(Vx\n(K\x00tC\x01btR.",
    "other encoding": ENCODE + b"(Va\nVzip\ntR.",
    "encode of no text": ENCODE + b"(K\x01Vlatin1\ntR.",
    "too many arguments": ENCODE + b"(Va\nVlatin1\nVx\ntR.",
    "data shorter than its shape": of_shape(b"K\x03"),
    "huge shape": of_shape(b"\x8a\x07" + b"\xff" * 6 + b"\x7f"),
    "negative shape": of_shape(b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff"),
    "array of numbers": ARRAY + ARRAY_STATE.replace(b"C\x02\x01\x00", b"]") + b"b.",
    "scalar of two bytes": SCALAR + b"(" + DTYPE + b"C\x02\x01\x01tR.",
    "scalar of an object": SCALAR + b"(" + NDARRAY + b"]tR.",
    "frombuffer of no dtype": FROMBUFFER + b"(C\x01\x01K\x01K\x01K\x01tR.",
    "frombuffer in order K": FROMBUFFER + b"(C\x01\x01" + DTYPE + b"(K\x01tVK\n(K\x00ttR.",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_on_the_stand_ins(file, flag, monkeypatch, name):
    monkeypatch.chdir(flag.parent)
    with refuses("corrupt" if name == "too many arguments" else "unsupported", "gt.pk"):
        load_pickle(file(ATTACKS[name]))
    assert not flag.exists()


@pytest.mark.parametrize("left", [NDARRAY, DTYPE, ARRAY])
def test_what_the_reader_leaves_is_no_target(file, left):
    with refuses("invalid", "gt.pk"):
        read_groundtruth(file(b"}Va\n" + left + b"s."))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_truncated_anywhere(file, protocol):
    whole = file({"a": np.array([True, False]), "b": (0, 1)}, protocol).read_bytes()
    for length in range(len(whole)):
        with pytest.raises(InputError):
            load_pickle(file(whole[:length]))


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"path,label\n", b"\x93NUMPY\x01\x00v\x00{'descr': '|b1'}", b"\xff\xfe"),
        *(b"\x80\x09N.", pickle.dumps({"a": [1]}) + b"\n", pickle.dumps({"a": [1]}, 2) + b"\n"),
        pickle.dumps({"a": [1]}) * 2,
    ],
)
def test_no_whole_pickle(file, content):
    with refuses("corrupt", "gt.pk"):
        load_pickle(file(content))


def test_missing_file_and_folder(tmp_path):
    for path, kind in ((tmp_path / "none.pk", "missing"), (tmp_path, "access")):
        with refuses(kind, path.name):
            load_pickle(path)


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
        read_groundtruth(file(content))


@pytest.mark.parametrize(
    "again",
    [ENCODE + b"(g1\nVlatin1\ntR", SCALAR + b"(cnumpy\ndtype\n(X\x05\0\0\0U2500\x89\x88tRg2\ntR"],
    ids=["bytes", "text"],
)
def test_a_long_text_is_not_converted_again_and_again(file, again):
    """A few bytes each time, for 10,000 of memory."""
    text = b"Va" + b"a" * 9999 + b"\np1\n" + b"B\x10\x27\x00\x00" + bytes(10000) + b"p2\n"
    with refuses("unsupported", "gt.pk"):
        load_pickle(file(b"]((" + text + b"t" + again * 1000 + b"le."))


@pytest.mark.parametrize("content", [b"\x80\x04Nr\xff\xff\xff\xff.", b"Np99999999999\n."])
def test_a_memo_is_not_an_array(file, content):
    """One of 2^32 entries would take 32 GB."""
    assert load_pickle(file(content)) is None


@pytest.mark.parametrize(("before", "opcode"), [(b"}", b"s"), (b"}(", b"u"), (b"(", b"d")])
def test_deeply_nested_keys_do_not_end_the_process(file, before, opcode):
    """Hashing one would overflow the interpreter's stack."""
    with refuses("unsupported", "gt.pk"):
        load_pickle(file(before + b")" + b"\x85" * (3 * 10**5) + b"K\x01" + opcode + b"."))


def test_shared_and_circular_containers(file):
    laughs: list = [0]
    for _ in range(40):
        laughs = [laughs, laughs]
    assert load_pickle(file(laughs))[0] is not None
    with refuses("invalid", "gt.pk"):
        read_groundtruth(file({"a": laughs}))
    loop: list = [np.array([1])]
    loop.append((loop,))
    loaded = load_pickle(file(loop))
    assert loaded[1][0] is loaded

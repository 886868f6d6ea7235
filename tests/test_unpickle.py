"""Pickles of strangers: numbers and containers come out, nothing that they ask for is done."""

import copyreg
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from jaxmlip.errors import ModelError
from jaxmlip.interfaces.weights.unpickle import (
    Global,
    Record,
    is_torch_zip,
    read_pickle,
    read_torch,
)


class Ordinary:
    def __init__(self):
        self.weight = np.arange(3.0)


def written(tmp_path, content: bytes):
    path = tmp_path / "file.pkl"
    path.write_bytes(content)
    return path


def torch_file(tmp_path, pickled: bytes, storages=None, extra=None, **kwargs):
    """A file as torch.save lays it out."""
    path = tmp_path / "file.pt"
    with zipfile.ZipFile(path, "w", **kwargs) as archive:
        archive.writestr("file/data.pkl", pickled)
        archive.writestr("file/byteorder", b"little")
        for key, data in {**(storages or {})}.items():
            archive.writestr(f"file/data/{key}", data)
        for name, data in (extra or {}).items():
            archive.writestr(name, data)
    return path


def tensor_pickle(kind, count, offset, size, stride, *, key="0", function="_rebuild_tensor_v2"):
    """Opcodes of one tensor, by hand: torch is not needed to write them."""
    text = lambda s: b"X" + struct.pack("<I", len(s)) + s.encode()
    integer = lambda n: b"\x8a\x09" + int(n).to_bytes(9, "little", signed=True)
    numbers = lambda t: b"(" + b"".join(map(integer, t)) + b"t"
    storage = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key)
    storage += text("cpu") + integer(count) + b"tQ"
    body = f"ctorch._utils\n{function}\n(".encode() + storage + integer(offset)
    return b"\x80\x02" + body + numbers(size) + numbers(stride) + b"\x89}tR."


# --- what is read ---------------------------------------------------------------------------------

PLAIN = {
    "a": [1, -2, 2**70, 0.5, None, True, b"bytes", "text"],
    "b": (1, (2, {3, 4}), frozenset({"x"})),
    ("tuple", 1): OrderedDict(x=1),
    "d": bytearray(b"xyz"),
    "e": {},
}
ARRAYS = {
    "f8": np.linspace(0, 1, 7),
    "f4": np.ones((2, 3), np.float32),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big": np.arange(3, dtype=">i4"),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 3)),
    "zero-dimensional": np.array(3),
    "scalar": np.float32(1.5),
    "complex": np.array([1 + 2j]),
    "strided": np.arange(10)[::3],
}


@pytest.mark.parametrize("protocol", range(6))
def test_containers_and_arrays_survive_every_protocol(tmp_path, protocol):
    path = written(tmp_path, pickle.dumps({"plain": PLAIN, "arrays": ARRAYS}, protocol))
    out = read_pickle(path)
    assert out["plain"] == PLAIN
    for name, array in ARRAYS.items():
        assert_array_equal(out["arrays"][name], array)
        assert out["arrays"][name].dtype == array.dtype.newbyteorder("=")


@pytest.mark.parametrize("protocol", range(6))
def test_an_object_is_an_inert_record_of_its_state(tmp_path, protocol):
    out = read_pickle(written(tmp_path, pickle.dumps([Ordinary(), Ordinary, os.system], protocol)))
    assert isinstance(out[0], Record) and out[0].kind.endswith("test_unpickle.Ordinary")
    assert_array_equal(out[0].state["weight"], np.arange(3.0))
    assert isinstance(out[1], Global) and isinstance(out[2], Global)


def test_subclasses_of_containers_keep_their_content(tmp_path):
    out = read_pickle(written(tmp_path, pickle.dumps(defaultdict(list, a=[1]))))
    assert out == {"a": [1]}


@pytest.mark.parametrize(
    "kind, dtype",
    [("Double", "f8"), ("Float", "f4"), ("Half", "f2"), ("Long", "i8"), ("Bool", "?")],
)
def test_tensors_are_views_of_their_storage(tmp_path, kind, dtype):
    values = np.arange(12).astype(dtype)
    pickled = tensor_pickle(kind, 12, 1, (3, 2), (1, 4))  # a transpose, one element in
    out = read_torch(torch_file(tmp_path, pickled, {"0": values.tobytes()}))
    assert_array_equal(out, values[1:9].reshape(2, 4)[:, :3].T)
    assert out.dtype == values.dtype and not out.flags.writeable


def test_bfloat16_is_the_upper_half_of_float32(tmp_path):
    values = np.array([1.0, -2.5, 3e38], np.float32)
    halves = (values.view("u4") >> 16).astype("u2")
    out = read_torch(
        torch_file(tmp_path, tensor_pickle("BFloat16", 3, 0, (3,), (1,)), {"0": halves.tobytes()})
    )
    assert out.dtype == np.float32
    assert_array_equal(out, (halves.astype("u4") << 16).view("f4"))


# --- what is refused, or does nothing -------------------------------------------------------------


def hostile(target):
    """Pickles that would create the file `target` if anything in them were run."""
    command = f"touch {target}".encode()
    touch = b"X" + struct.pack("<I", len(command)) + command
    code = f"open({str(target)!r}, 'w')".encode()
    source = b"X" + struct.pack("<I", len(code)) + code
    text = lambda s: b"\x8c" + bytes([len(s)]) + s
    system = b"cposix\nsystem\n"
    return {
        "GLOBAL + REDUCE": b"\x80\x02" + system + touch + b"\x85R.",
        "STACK_GLOBAL": b"\x80\x04" + text(b"os") + text(b"system") + b"\x93" + touch + b"\x85R.",
        "eval": b"\x80\x02cbuiltins\neval\n" + source + b"\x85R.",
        "exec": b"\x80\x02c__builtin__\nexec\n" + source + b"\x85R.",
        "getattr": b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\n" + touch + b"\x86R.",
        "REDUCE of a record": b"\x80\x02cbuiltins\ngetattr\ncos\nx\n\x85R" + touch + b"\x85R.",
        "BUILD": b"\x80\x02cx\ny\n)\x81}X\x0c\0\0\0__setstate__"
        + system
        + b"s"
        + b"b"
        + touch
        + b"b.",
        "BUILD of a global": b"\x80\x02" + system + b"}X\x06\0\0\0__call__" + system + b"sb.",
        "INST": b"(" + b"S'" + command + b"'\n" + b"iposix\nsystem\n.",
        "OBJ": b"(" + system + touch + b"o.",
        "NEWOBJ": b"\x80\x02" + system + touch + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04" + system + touch + b"\x85}\x92.",
        "subprocess": b"\x80\x02csubprocess\ncheck_output\n" + touch + b"\x85R.",
        "import": b"\x80\x02cbuiltins\n__import__\nX\x02\0\0\0os\x85R.",
        "reconstructor": b"\x80\x02ccopyreg\n_reconstructor\n"
        + system
        + b"cbuiltins\nobject\n"
        + touch
        + b"\x87R.",
        "dotted name": b"\x80\x04"
        + text(b"os")
        + text(b"path.os.system")
        + b"\x93"
        + touch
        + b"\x85R.",
        "map": b"\x80\x02cbuiltins\nlist\ncbuiltins\nmap\n"
        + system
        + b"("
        + touch
        + b"l\x86R\x85R.",
        "defaultdict": b"\x80\x02ccollections\ndefaultdict\n" + system + b"\x85R.",
        "key": b"\x80\x02}" + system + touch + b"\x85RK\x01s.",
        "state of an array": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n"
        + b"cnumpy\nndarray\nK\0\x85C\x01b\x87R"
        + system
        + touch
        + b"\x85Rb.",
        "rebuild with a function": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n("
        + system
        + b"N"
        + touch
        + b"\x85NtR.",
        "persistent id": b"\x80\x02" + system + touch + b"\x85RQ.",
        "storage type": b"\x80\x02(X\x07\0\0\0storage"
        + system
        + touch
        + b"\x85RX\x01\0\0\x000NK\x01tQ.",
        "text persistent id": b"Pos.system\n.",
        "extension code": b"\x80\x02\x82\xf0" + touch + b"\x85R.",
        "buffer out of band": b"\x80\x05\x97.",
    }


@pytest.fixture
def extension():
    """os.system as a registered extension code: EXT1 240 would fetch it from Python's registry."""
    copyreg.add_extension("posix", "system", 240)
    yield
    copyreg.remove_extension("posix", "system", 240)


@pytest.mark.parametrize("trick", hostile("x"))
def test_a_hostile_pickle_runs_nothing(tmp_path, trick, extension):
    target = tmp_path / "created"
    content = hostile(target)[trick]
    for read, path in (
        (read_pickle, written(tmp_path, content)),
        (read_torch, torch_file(tmp_path, content)),
    ):
        try:
            out = read(path)
        except ModelError as error:
            assert error.exit_code == 6 and str(path) in str(error)
        else:
            assert isinstance(out, Record | dict | list)
        assert not target.exists()


def test_the_tricks_do_run_in_pythons_own_reader(tmp_path):
    """Otherwise the test above would prove nothing."""
    ran = set()
    for trick, content in hostile(tmp_path / "created").items():
        if trick in ("GLOBAL + REDUCE", "STACK_GLOBAL", "eval", "INST", "OBJ", "dotted name"):
            pickle.loads(content)
            assert (tmp_path / "created").exists(), trick
            (tmp_path / "created").unlink()
            ran.add(trick)
    assert len(ran) == 6


def nested_tuples(depth):
    return b"\x80\x02)" + b"\x85" * depth


BOMBS = {
    "bytes copied from the memo": b"\x80\x02c_codecs\nencode\nq\0X"
    + struct.pack("<I", 10**6)
    + b"a" * 10**6
    + b"q\x01"
    + b"h\0h\x01\x85R" * 10**4
    + b".",
    "names joined from the memo": b"\x80\x04X"
    + struct.pack("<I", 10**6)
    + b"a" * 10**6
    + b"q\0"
    + b"h\0h\0\x93" * 10**4
    + b".",
    "a deep key": b"\x80\x02}" + nested_tuples(3 * 10**5)[2:] + b"K\x01s.",
    "a key of shared tuples": b"\x80\x02}K\x01" + b"2\x86" * 100 + b"K\x01s.",
    "an endless integer": b"\x80\x02\x8b" + struct.pack("<I", 10**5) + b"\x7f" * 10**5 + b".",
    "a length beyond the file": b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc.",
    "a memo index without content": b"\x80\x02j\xff\xff\xff\xff.",
    "a stack that is empty": b"\x80\x02\x85.",
    "no mark": b"\x80\x02t.",
    "no end": b"\x80\x02K\x01",
    "a protocol of the future": b"\x80\x09K\x01.",
    "nothing": b"",
    "text": b"hello world",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_or_a_damaged_pickle_is_refused(tmp_path, bomb):
    with pytest.raises(ModelError) as caught:
        read_pickle(written(tmp_path, BOMBS[bomb]))
    assert caught.value.exit_code == 6 and len(str(caught.value)) < 1000


def numpy_pickle(shape, code, data):
    """A pickled array that says `shape` and `code` and holds `data`."""
    blank = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85C\x01b\x87R"
    dtype = b"cnumpy\ndtype\nX" + struct.pack("<I", len(code)) + code.encode() + b"\x89\x88\x87R"
    dtype += b"(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    shape = (
        b"(" + b"".join(b"\x8a\x09" + n.to_bytes(9, "little", signed=True) for n in shape) + b"t"
    )
    return (
        b"\x80\x03"
        + blank
        + b"(K\x01"
        + shape
        + dtype
        + b"\x89C"
        + bytes([len(data)])
        + data
        + b"tb."
    )


def test_an_array_by_hand(tmp_path):
    out = read_pickle(written(tmp_path, numpy_pickle((2, 1), "f4", np.float32([1, 2]).tobytes())))
    assert_array_equal(out, [[1], [2]])


@pytest.mark.parametrize(
    "shape, code, data",
    [
        ((2**40,), "f4", b"1234"),
        ((-1,), "f4", b"1234"),
        ((2**62, 4), "f4", b""),
        ((1,), "O", b"12345678"),
        ((1,), "O8", b"12345678"),
        ((1,), "V4", b"1234"),
        ((1,), "f4,(1000000000,)f8", b"1234"),
        ((1,) * 40, "f4", b"1234"),
    ],
)
def test_an_array_that_is_not_what_it_says_is_refused(tmp_path, shape, code, data):
    with pytest.raises(ModelError):
        read_pickle(written(tmp_path, numpy_pickle(shape, code, data)))


@pytest.mark.parametrize(
    "count, offset, size, stride",
    [
        (4, 0, (5,), (1,)),  # beyond the end
        (4, 1, (4,), (1,)),
        (4, 0, (2, 2), (1, 4)),
        (4, -1, (1,), (1,)),
        (4, 3, (2,), (-1,)),
        (4, 0, (10**12,), (0,)),  # one number seen 10^12 times
        (10**12, 0, (4,), (1,)),  # a storage that is not there
        (4, 0, (4,), ()),
        (4, 0, (2**59, 2**59), (0, 0)),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, count, offset, size, stride):
    pickled = tensor_pickle("Float", count, offset, size, stride)
    with pytest.raises(ModelError):
        read_torch(torch_file(tmp_path, pickled, {"0": bytes(16)}))


@pytest.mark.parametrize("key", ["../../etc/passwd", "/etc/passwd", "1", "0/../0", ""])
def test_a_storage_outside_the_archive_is_refused(tmp_path, key):
    pickled = tensor_pickle("Float", 4, 0, (4,), (1,), key=key)
    with pytest.raises(ModelError):
        read_torch(torch_file(tmp_path, pickled, {"0": bytes(16)}))


GOOD = tensor_pickle("Float", 4, 0, (4,), (1,))


def test_a_torchscript_archive_is_refused(tmp_path):
    path = torch_file(tmp_path, GOOD, {"0": bytes(16)}, {"file/constants.pkl": b"\x80\x02)."})
    with pytest.raises(ModelError, match="TorchScript"):
        read_torch(path)


def test_a_compressed_archive_is_refused(tmp_path):
    path = torch_file(tmp_path, GOOD, {"0": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ModelError, match="compressed"):
        read_torch(path)


def test_entries_that_share_bytes_are_refused(tmp_path):
    """Many names for one stretch of the file: a zip bomb without compression."""
    path = torch_file(tmp_path, GOOD, {"0": bytes(10**5)})
    with zipfile.ZipFile(path, "a") as archive:
        first = archive.getinfo("file/data/0")
        for i in range(1, 50):
            twin = zipfile.ZipInfo(f"file/data/{i}")
            for name in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(twin, name, getattr(first, name))
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive._didModify = True
    with pytest.raises(ModelError, match="larger"):
        read_torch(path)


def test_truncated_files_are_refused(tmp_path):
    whole = torch_file(tmp_path, GOOD, {"0": bytes(16)}).read_bytes()
    path = tmp_path / "part.pt"
    for n in (0, 1, 2, 30, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        assert not is_torch_zip(path)
        with pytest.raises(ModelError):
            read_torch(path)


def test_flipped_bytes_never_escape_as_other_errors(tmp_path):
    whole = torch_file(tmp_path, GOOD, {"0": bytes(16)}).read_bytes()
    rng, path = np.random.default_rng(0), tmp_path / "flipped.pt"
    for _ in range(300):
        content = bytearray(whole)
        content[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(content)
        try:
            read_torch(path)
        except ModelError:
            pass


def test_random_programs_never_escape_as_other_errors(tmp_path):
    rng = np.random.default_rng(1)
    pieces = [bytes([b]) for b in range(256)] + [
        b"cos\nsystem\n",
        b"K\x01",
        b"X\x01\0\0\0a",
        b"(",
        b"}",
        b"]",
    ]
    for _ in range(2000):
        content = b"".join(pieces[i] for i in rng.integers(len(pieces), size=12)) + b"."
        try:
            read_pickle(written(tmp_path, content))
        except ModelError:
            pass


def integer(n):
    size = (n.bit_length() + 8) // 8
    return b"\x8a" + bytes([size]) + n.to_bytes(size, "little", signed=True)


def shared(top, join, depth=40):
    """A value and `depth` containers, each with the one below twice: 2**depth paths."""
    steps = (b"q" + bytes([i]) + join(b"h" + bytes([i])) for i in range(depth))
    return top + b"".join(steps)


LISTS = shared(b"](K\x01e", lambda x: b"0](" + x + x + b"e")
DICTS = shared(
    b"}X\x01\0\0\0aK\x01s", lambda x: b"0}(X\x01\0\0\0a" + x + b"X\x01\0\0\0b" + x + b"u"
)
ENDLESS = {  # who reads, hashes, prints or walks these without a limit is busy until tomorrow
    "lists of lists": b"\x80\x02" + LISTS + b".",
    "dicts of dicts": b"\x80\x02" + DICTS + b".",
    "a record with lists": b"\x80\x02cx\ny\n)\x81" + LISTS + b"b.",
    "a list in itself": b"\x80\x02]q\0h\0a.",
    "long texts, often": b"\x80\x02X"
    + struct.pack("<I", 10**6)
    + b"a" * 10**6
    + b"q\0]("
    + b"h\0" * 10**4
    + b"e.",
    "whole numbers with one hash": b"\x80\x02}("
    + b"".join(integer(i * (2**61 - 1)) + b"N" for i in range(1, 10**5))
    + b"u.",
    "floats with one hash": b"\x80\x02}(G" + struct.pack(">d", 2.0**61) + b"Nu.",
    "places in the memo with one hash": b"N"
    + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(1, 10**5))
    + b".",
    "many keys that are tuples": b"\x80\x02}("
    + b"".join(integer(i) + b"\x85N" for i in range(10**4))
    + b"u.",
    "one tuple as many keys": b"\x80\x02("
    + b"K\x01" * 16
    + b"tq\0("
    + b"h\0" * 16
    + b"tq\1("
    + b"h\1" * 16
    + b"tq\2}("
    + b"h\2N" * 10**5
    + b"u.",
    "many sets": b"\x80\x04" + b"\x8f" * 10**6 + b".",
    "long calls": b"\x80\x02(" + b"N" * 10**6 + b"tq\0cx\ny\nq\1" + b"h\1h\0R" * 10**4 + b".",
}
LIMITED = """
import resource, sys
from jaxmlip.errors import ModelError
from jaxmlip.interfaces.weights.unpickle import read_pickle
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for path in sys.argv[1:]:
    try:
        read_pickle(path)
    except ModelError as error:
        print(error.what)
    else:
        print("read", path)
"""


def test_no_pickle_keeps_its_reader_busy(tmp_path):
    """All in a process of its own that may work for a minute, since a hang in C cannot be stopped.

    All of them together take seconds; nearly all of that is imports.
    """
    paths = []
    for i, content in enumerate(ENDLESS.values()):
        paths.append(tmp_path / f"{i}.pkl")
        paths[-1].write_bytes(content)
    command = [sys.executable, "-c", LIMITED, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-1000:]
    for name, line in zip(ENDLESS, done.stdout.splitlines(), strict=True):
        assert "refused" in line, (name, line)


@pytest.mark.parametrize("read", [read_pickle, read_torch])
def test_a_file_that_is_not_there(tmp_path, read):
    with pytest.raises(ModelError):
        read(tmp_path / "missing")
    with pytest.raises(ModelError):
        read(tmp_path)


def test_other_zip_files_and_old_torch_files_are_refused(tmp_path):
    path = tmp_path / "other.zip"
    np.savez(path.open("wb"), a=np.ones(3))
    assert not is_torch_zip(path)
    with pytest.raises(ModelError, match="not one of torch"):
        read_torch(path)
    with pytest.raises(ModelError, match="not a zip"):
        read_torch(written(tmp_path, pickle.dumps(0x1950A86A20F9469CFC6C)))


def test_a_good_file_is_a_torch_file(tmp_path):
    path = torch_file(tmp_path, GOOD, {"0": np.float32([1, 2, 3, 4]).tobytes()})
    assert is_torch_zip(path)
    assert_array_equal(read_torch(path), [1, 2, 3, 4])

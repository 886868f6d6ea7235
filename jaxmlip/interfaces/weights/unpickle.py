"""Pickles and torch files of other codes, read without running anything that they say.

A pickle is a program: Python's own reader calls whatever functions the file names. Here the program
is run by a machine of our own that has nothing to call: plain containers, numpy arrays and torch
tensors (as numpy arrays) are built by the handful of functions below, and every other class or
function is an inert `Record` that keeps its name, arguments and state. Memory is bounded by the
size of the file, time by limits on steps and sharing. All failures are `ModelError`.
"""

import re
import zipfile
from math import prod
from pathlib import Path

import numpy as np

from jaxmlip.errors import ModelError
from jaxmlip.interfaces.weights.stack_machine import Global, Machine, Record, is_count, refuse

__all__ = ["Global", "Record", "is_torch_zip", "read_pickle", "read_torch"]


def read_pickle(path):
    """The content of a pickle file; arrays are numpy arrays, unknown objects `Record`s."""
    where = str(path)
    return _guarded(lambda: Machine(_bytes(path), {}, _no_ids).run(), where)


def read_torch(path):
    """The content of a file of torch.save (torch >= 1.6); tensors are read-only numpy arrays.

    bfloat16 becomes float32. Raises `ModelError` for TorchScript archives, for the format before
    torch 1.6 and for files that are truncated, compressed or larger inside than outside.
    """
    return _guarded(lambda: _read_zip(path), str(path))


def is_torch_zip(path) -> bool:
    """Whether a file is a zip archive with a pickle in it, as torch.save writes; never raises."""
    try:
        with zipfile.ZipFile(path) as archive:
            return (
                sum(n.count("/") == 1 and n.endswith("/data.pkl") for n in archive.namelist()) == 1
            )
    except Exception:
        return False


def _guarded(read, where):
    try:
        return read()
    except ModelError:
        raise
    except OSError as error:
        what = f"cannot be read ({error.strerror or type(error).__name__})"
        raise ModelError(what, where=where) from error
    except Exception as error:  # a damaged file may break any step; nothing has been run or written
        reason = str(error)[:200] or type(error).__name__
        raise ModelError(
            f"not a file that can be imported: {reason}",
            where=where,
            fix="copy or download the file again; it must be written by torch.save or pickle",
        ) from error


def _no_ids(key):
    refuse("a pickle that needs objects from outside")


def _bytes(path):
    data = Path(path).read_bytes()
    return data if data else refuse("the file is empty")


# --- torch files ----------------------------------------------------------------------------------

TORCH_DTYPES = {
    "Double": "f8",
    "Float": "f4",
    "Half": "f2",
    "BFloat16": "bfloat16",
    "Long": "i8",
    "Int": "i4",
    "Short": "i2",
    "Char": "i1",
    "Byte": "u1",
    "Bool": "?",
    "ComplexFloat": "c8",
    "ComplexDouble": "c16",
    "Untyped": "u1",
}
TORCH_NAMES = {  # torch.float32 ... as the third version of a tensor writes its dtype
    "float64": "f8",
    "float32": "f4",
    "float16": "f2",
    "bfloat16": "bfloat16",
    "int64": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint8": "u1",
    "uint16": "u2",
    "uint32": "u4",
    "uint64": "u8",
    "bool": "?",
}


def _read_zip(path):
    if not Path(path).is_file():
        raise ModelError("no such file", where=str(path))
    with open(path, "rb") as stream:
        if stream.read(2) != b"PK":
            refuse(
                "not a zip archive (torch before 1.6 wrote others: save it again with a newer one)"
            )
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [e.filename for e in entries]
        heads = [n.removesuffix("data.pkl") for n in names if re.fullmatch(r"[^/]+/data\.pkl", n)]
        if any(re.match(r"[^/]+/(code/|constants\.pkl)", n) for n in names):
            refuse("a TorchScript archive holds compiled code; save the model itself")
        if len(heads) != 1 or len(set(names)) != len(names):
            refuse("a zip archive, but not one of torch.save")
        if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
            refuse("its entries are compressed, which torch.save never does")
        if sum(e.file_size for e in entries) > Path(path).stat().st_size:
            refuse("its entries are larger than the file")
        storages = _storages(archive, heads[0], names)
        return Machine(archive.read(heads[0] + "data.pkl"), CONSTRUCTORS, storages).run()


def _storages(archive, head, names):
    """The function from a persistent id of torch to its storage, a flat read-only array."""
    order = archive.read(head + "byteorder") if head + "byteorder" in names else b"little"
    mark = {b"little": "<", b"big": ">"}.get(order) or refuse("unknown byte order")
    loaded = {}

    def storage(key):
        if not (isinstance(key, tuple) and len(key) == 5 and key[0] == "storage"):
            refuse("a persistent id that is not a torch storage")
        _, kind, number, _, count = key
        dtype = re.fullmatch(r"torch\.(?:storage\.)?(\w+)Storage", getattr(kind, "kind", ""))
        if not dtype or dtype[1] not in TORCH_DTYPES:
            refuse("a torch storage of unknown type")
        if not isinstance(number, str) or not re.fullmatch(r"\d{1,9}", number):
            refuse("a torch storage with a strange name")
        if (number, dtype[1]) not in loaded:
            data = archive.read(f"{head}data/{number}")
            loaded[number, dtype[1]] = _values(data, TORCH_DTYPES[dtype[1]], mark)
        values = loaded[number, dtype[1]]
        if not is_count(count) or values.size != count:
            refuse(f"storage {number} has {values.size} elements, not the declared number")
        return values

    return storage


def _values(data: bytes, dtype: str, mark: str):
    if dtype == "bfloat16":
        return (np.frombuffer(data, mark + "u2").astype("u4") << 16).view("f4")
    if dtype == "?":
        return np.frombuffer(data, "u1") != 0
    return np.frombuffer(data, mark + dtype).astype("=" + dtype, copy=False)


def _tensor(machine, storage, offset, size, stride, *rest):
    """torch._utils._rebuild_tensor(_v2): a strided view; its bounds are checked by numpy."""
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        refuse("a tensor without a storage")
    if len(size) != len(stride) or len(size) > 32:
        refuse("a tensor with a strange shape")
    if not all(map(is_count, (offset, *size, *stride))):
        refuse("a tensor with a strange shape")
    if prod(size) == 0:
        return np.zeros(size if max(size) < 2**31 else refuse("a strange shape"), storage.dtype)
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if last >= storage.size or prod(size) > storage.size:
        refuse("a tensor that is larger than its storage")
    width = storage.itemsize
    strides = [width * s for s in stride]
    view = np.ndarray(size, storage.dtype, storage.data, width * offset, strides)
    view.flags.writeable = False
    return view


def _tensor_of_type(machine, storage, offset, size, stride, grad, hooks, dtype, *rest):
    """torch._utils._rebuild_tensor_v3: the storage is bytes."""
    name = getattr(dtype, "kind", "").removeprefix("torch.")
    if name not in TORCH_NAMES or getattr(storage, "dtype", None) != np.uint8:
        refuse("a tensor of unknown type")
    machine.spend(3 * storage.nbytes)
    return _tensor(
        machine, _values(storage.tobytes(), TORCH_NAMES[name], "<"), offset, size, stride
    )


def _of_type(machine, function, kind, args, *rest):
    """torch._tensor._rebuild_from_type_v2: a tensor with attributes of its own."""
    return machine.call(function, args, {})


CONSTRUCTORS = {
    "torch.Size": lambda machine, sizes=(): tuple(sizes) if isinstance(sizes, tuple) else (),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
    "torch._utils._rebuild_parameter": lambda machine, data, *rest: data,
    "torch._utils._rebuild_parameter_with_state": lambda machine, data, *rest: data,
    "torch._tensor._rebuild_from_type_v2": _of_type,
}

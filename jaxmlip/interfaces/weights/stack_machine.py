"""A machine that runs pickles and has nothing to call.

A pickle is a program for a stack machine; Python's own reader lets it call any function that it
names. This one knows the handful of constructors below (plain containers, numpy arrays) and those
its caller adds; every other class or function becomes an inert `Record` of what the file says.
Steps are bounded, memory by the size of the file, and so is the tree that the result unfolds to:
who prints or walks it comes to an end. Failures are any exception: see unpickle.py.
"""

import pickletools
import re
import sys
from collections import OrderedDict
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

MAX_STEPS = 5_000_000  # opcodes of one pickle; the largest published models have some 10^5
MAX_UNFOLDED = 5_000_000  # members (or 8 letters) of containers, what is shared counted each time
MAX_TUPLE_KEYS = 4096  # in one pickle: hashes of tuples can be made to collide
SPARE = 2**26  # bytes that objects and copies may take beyond 32 times the length of the pickle
DTYPE = re.compile(r"[<>=|]?([?]|[iufc](1|2|4|8|16))")


@dataclass(eq=False, frozen=True)
class Global:
    """A class or function that a file names: only the name."""

    kind: str  # "module.name"


@dataclass(eq=False, repr=False)
class Record:
    """An object of a class that is not known here: what the file says of it, and no behaviour."""

    kind: str  # "module.Class"
    args: tuple = ()
    kwargs: dict = field(default_factory=dict)
    state: Any = None  # what its __setstate__ would have been given
    items: list = field(default_factory=list)  # of subclasses of lists and sets
    entries: dict = field(default_factory=dict)  # of subclasses of dicts

    def __repr__(self):
        return f"Record({self.kind[:80]!r})"


class Refused(ValueError):
    """What is wrong with a pickle."""


def refuse(what):
    raise Refused(f"refused: {what}")


class Machine:
    """Runs one pickle; `constructors` {name: function(machine, *args)} are all it can call."""

    def __init__(self, data: bytes, constructors: dict, persistent):
        self.data, self.persistent = data, persistent
        self.constructors = CONSTRUCTORS | constructors
        self.room = 32 * len(data) + SPARE
        self.stack, self.memo, self.blanks, self.tuple_keys = [], {}, {}, 0

    def run(self):
        """The object that the pickle makes."""
        for step, (op, value, _) in enumerate(pickletools.genops(self.data)):
            if step > MAX_STEPS:
                refuse("a pickle of too many steps")
            if op.name in CONSTANTS:
                self.stack.append(CONSTANTS[op.name])
            elif op.name in VALUES:
                self.stack.append(value)
            elif op.name in OPERATIONS:
                OPERATIONS[op.name](self, value)
            else:
                refuse(f"the pickle operation {op.name}")
        return check_unfolded(self.stack.pop())

    def spend(self, n_bytes):
        """Counts memory of objects and copies: few bytes of a file cannot fill the machine."""
        self.room -= n_bytes
        if self.room < 0:
            refuse("a pickle that unfolds to far more than its size")

    def call(self, kind, args, kwargs):
        """What the file wants to call: one of our constructors, else a record of the wish."""
        if not isinstance(kind, Global) or not isinstance(args, tuple):
            refuse("a call of something that is not a class or function")
        self.spend(500 + 8 * len(args))
        make = self.constructors.get(kind.kind)
        return make(self, *args) if make else Record(kind.kind, args, kwargs)

    def name(self, module, name):
        """The inert stand-in of a class or function."""
        if not isinstance(module, str) or not isinstance(name, str):
            refuse("a class without a name")
        self.spend(100 + len(module) + len(name))
        self.stack.append(Global(canonical(f"{module}.{name}")))

    def push_call(self, kind, args, kwargs=None):
        self.stack.append(self.call(kind, args, kwargs or {}))

    def since_mark(self) -> list:
        """Pops what lies above the last mark, and the mark."""
        values = []
        while (top := self.stack.pop()) is not MARK:
            values.append(top)
        return values[::-1]

    def key(self, value, depth=0):
        """A value that may be a key: texts, names, small whole numbers and short tuples of them.

        Hashing deep tuples, or sorting in what has the same hash, could take for ever: to a
        dictionary all multiples of 2**61 - 1 look alike, and tuples can be made so.
        """
        if isinstance(value, tuple) and len(value) <= 16 and depth < 3:
            self.spend(64 + 16 * len(value))
            self.tuple_keys += 1
            if self.tuple_keys <= MAX_TUPLE_KEYS:
                return tuple(self.key(v, depth + 1) for v in value)
        if isinstance(value, str | bytes | None | Record | Global):
            return value
        if isinstance(value, int | float) and abs(value) < 2**60 and value == int(value):
            return value
        return refuse("a dictionary or set with strange keys")

    def put(self, values):
        """Adds entries, flat list of keys and values, to the dictionary on top."""
        target = self.stack[-1]
        target = target.entries if isinstance(target, Record) else target
        if not isinstance(target, dict) or len(values) % 2:
            refuse("entries for something that is not a dictionary")
        self.spend(50 * len(values))
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[self.key(key)] = value

    def extend(self, values):
        target = self.stack[-1]
        target = target.items if isinstance(target, Record) else target
        self.spend((100 if isinstance(target, set) else 8) * len(values))
        if isinstance(target, set):
            target.update(map(self.key, values))
        elif isinstance(target, list):
            target.extend(values)
        else:
            refuse("items for something that is not a list")

    def build(self, _):
        """State of an object: kept by records, data of new arrays, ignored by containers."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif isinstance(target, np.ndarray):
            fill(self, target, state)
        elif not isinstance(target, dict):
            refuse("a state for something that has none")


def binary(f):
    """An operation of the two topmost values."""

    def operation(machine, _):
        top = machine.stack.pop()
        return f(machine, machine.stack.pop(), top)

    return operation


def memoize(machine, index):
    machine.spend(100)
    index = len(machine.memo) if index is None else index
    machine.memo[index if is_count(index) else refuse("a strange index")] = machine.stack[-1]


def push(machine, container):
    """A new container, as it is."""
    machine.spend(sys.getsizeof(container))
    machine.stack.append(container)


def tuple_of(n):
    def operation(machine, _):
        values = [machine.stack.pop() for _ in range(n)][::-1]
        push(machine, tuple(values))

    return operation


def new_with_keywords(machine, _):
    kwargs, args, kind = (machine.stack.pop() for _ in range(3))
    if not isinstance(kwargs, dict):
        refuse("keywords that are not a dictionary")
    machine.push_call(kind, args, kwargs)


def instance(machine, pair):
    args = tuple(machine.since_mark())
    machine.name(*pair.split(" ", 1))
    machine.push_call(machine.stack.pop(), args)


def obj(machine, _):
    kind, *args = machine.since_mark()
    machine.push_call(kind, tuple(args))


def dictionary(machine, _):
    values = machine.since_mark()
    push(machine, {})
    machine.put(values)


def number(machine, value):
    if value.bit_length() > 1024:
        refuse("an integer of more than 1024 bits")
    machine.stack.append(value)


MARK = object()
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": MARK}
VALUES = {"BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT", "STRING", "BINSTRING"}
VALUES |= {"SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
VALUES |= {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
OPERATIONS = {
    **dict.fromkeys(("INT", "LONG", "LONG1", "LONG4"), number),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), memoize),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, i: m.stack.append(m.memo[i])),
    "PROTO": lambda m, version: version <= 5 or refuse("a pickle of an unknown protocol"),
    "FRAME": lambda m, _: None,
    "STOP": lambda m, _: None,
    "POP": lambda m, _: m.stack.pop(),
    "POP_MARK": lambda m, _: m.since_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "EMPTY_LIST": lambda m, _: push(m, []),
    "EMPTY_DICT": lambda m, _: push(m, {}),
    "EMPTY_SET": lambda m, _: push(m, set()),
    "LIST": lambda m, _: push(m, m.since_mark()),
    "TUPLE": lambda m, _: push(m, tuple(m.since_mark())),
    "TUPLE1": tuple_of(1),
    "TUPLE2": tuple_of(2),
    "TUPLE3": tuple_of(3),
    "DICT": dictionary,
    "FROZENSET": lambda m, _: push(m, frozenset(map(m.key, m.since_mark()))),
    "APPEND": lambda m, _: m.extend([m.stack.pop()]),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "ADDITEMS": lambda m, _: m.extend(m.since_mark()),
    "SETITEM": binary(lambda m, key, value: m.put([key, value])),
    "SETITEMS": lambda m, _: m.put(m.since_mark()),
    "GLOBAL": lambda m, pair: m.name(*pair.split(" ", 1)),
    "STACK_GLOBAL": binary(Machine.name),
    "REDUCE": binary(lambda m, kind, args: m.push_call(kind, args)),
    "NEWOBJ": binary(lambda m, kind, args: m.push_call(kind, args)),
    "NEWOBJ_EX": new_with_keywords,
    "INST": instance,
    "OBJ": obj,
    "BUILD": Machine.build,
    "BINPERSID": lambda m, _: m.stack.append(m.persistent(m.stack.pop())),
    "PERSID": lambda m, key: m.stack.append(m.persistent(key)),
}


# --- what a result unfolds to ---------------------------------------------------------------------


def check_unfolded(result):
    """The result; refuses containers that hold themselves, or that unfold without end.

    Forty lists of which each holds the next one twice are small, and 2**40 to who walks them.
    Records are not entered from outside, for they may well hold each other: each is looked at once.
    """
    roots, known = [result], {}
    while roots:
        _measure(roots.pop(), known, roots)
    return result


def _measure(root, known, records):
    """Sizes {id: members} of all containers below a root; adds records found to `records`."""
    todo = [(root, None)]
    while todo:
        value, members = todo.pop()
        if members is not None:  # all below has been measured; None is what waits for this one
            sizes = [known[id(m)] for m in members]
            if None in sizes:
                refuse("containers that hold themselves")
            texts = value.values() if isinstance(value, dict) else value
            texts = sum(len(t) for t in texts if isinstance(t, str | bytes | bytearray))
            known[id(value)] = size = 1 + len(value) + texts // 8 + sum(sizes)
            if size > MAX_UNFOLDED:
                refuse("containers that unfold to far more than their size")
        elif id(value) not in known and isinstance(value, Record):
            known[id(value)] = 1
            parts = (value.args, value.kwargs, value.state, value.items, value.entries)
            records.extend(p for p in parts if isinstance(p, (Record, *CONTAINERS)))
        elif id(value) not in known and isinstance(value, CONTAINERS):
            known[id(value)] = None
            members = list(value.values() if isinstance(value, dict) else value)
            members = [m for m in members if isinstance(m, (Record, *CONTAINERS))]
            todo.append((value, members))
            todo.extend((m, None) for m in members)


CONTAINERS = (list, tuple, dict)


# --- numpy -------------------------------------------------------------------------------------


def dtype_of(record):
    """numpy dtype of the record of a pickled one: numbers and truth values only."""
    name = record.args[0] if getattr(record, "kind", "") == "numpy.dtype" and record.args else ""
    name = "?" if name == "b1" else name
    if not isinstance(name, str) or not DTYPE.fullmatch(name) or record.state[2:5] != (None,) * 3:
        refuse("an array that does not hold plain numbers")
    mark = record.state[1]
    return np.dtype(name).newbyteorder(mark if mark in ("<", ">") else "=")


def blank(machine, kind, *rest):
    if getattr(kind, "kind", "") != "numpy.ndarray":
        refuse("an array of a strange class")
    array = np.empty(0)
    machine.blanks[id(array)] = array
    return array


def fill(machine, array, state):
    """Sets a blank array from (version, shape, dtype, is Fortran, bytes), all checked here."""
    if machine.blanks.pop(id(array), None) is not array:
        refuse("an array that is changed after it was made")
    shape, dtype, fortran, data = state[-4:]
    check_size(shape, dtype_of(dtype), data)
    machine.spend(len(data))
    array.__setstate__((1, shape, dtype_of(dtype), bool(fortran), bytes(data)))


def from_buffer(machine, data, dtype, shape, order):
    check_size(shape, dtype_of(dtype), data)
    machine.spend(2 * len(data))
    array = np.frombuffer(bytes(data), dtype_of(dtype)).reshape(shape, order=order)
    return array.astype(array.dtype.newbyteorder("="))


def scalar(machine, dtype, data):
    check_size((), dtype_of(dtype), data)
    return np.frombuffer(bytes(data), dtype_of(dtype))[0]


def check_size(shape, dtype, data):
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(map(is_count, shape)):
        refuse("an array with a strange shape")
    if not isinstance(data, bytes | bytearray) or len(data) != prod(shape) * dtype.itemsize:
        refuse("an array whose data do not fill its shape")


def is_count(n):
    return type(n) is int and 0 <= n < 2**60


# --- containers -----------------------------------------------------------------------------------


def copied(kind):
    def make(machine, values=()):
        if not isinstance(values, list | tuple | set | frozenset):
            refuse("a container made of something else")
        machine.spend(64 * len(values))
        if kind in (set, frozenset):
            values = [machine.key(v) for v in values]
        return kind(values)

    return make


def ordered_dict(machine, pairs=()):
    if not isinstance(pairs, list | tuple) or not all(
        isinstance(p, list | tuple) and len(p) == 2 for p in pairs
    ):
        refuse("a dictionary made of something else")
    machine.spend(128 * len(pairs))
    return OrderedDict((machine.key(k), v) for k, v in pairs)


def encode(machine, text, codec="latin1"):
    if not isinstance(text, str) or codec not in ("latin1", "latin-1"):
        refuse("bytes in a strange encoding")
    machine.spend(len(text))
    return text.encode("latin1")


def byte_array(machine, data=b"", *codec):
    data = encode(machine, data, *codec) if codec else data
    if not isinstance(data, bytes):
        refuse("bytes made of something else")
    machine.spend(len(data))
    return bytearray(data)


def reconstruct(machine, kind, base=None, state=None):
    """copyreg._reconstructor: how old protocols make an object before its state."""
    if getattr(kind, "kind", "").startswith("copyreg."):
        refuse("a pickle that calls itself")
    return machine.call(kind, () if state is None else (state,), {})


CONSTRUCTORS = {
    "collections.OrderedDict": ordered_dict,
    "collections.defaultdict": lambda machine, factory=None: {},
    "builtins.dict": ordered_dict,
    "builtins.list": copied(list),
    "builtins.tuple": copied(tuple),
    "builtins.set": copied(set),
    "builtins.frozenset": copied(frozenset),
    "builtins.bytes": lambda machine, *args: bytes(byte_array(machine, *args)),
    "builtins.bytearray": byte_array,
    "_codecs.encode": encode,
    "copyreg._reconstructor": reconstruct,
    "numpy.core.multiarray._reconstruct": blank,
    "numpy.core.multiarray.scalar": scalar,
    "numpy.core.numeric._frombuffer": from_buffer,
}


def canonical(name):
    """Names as they are today: Python 2's builtins and numpy 2's private rooms."""
    for old, new in (("__builtin__.", "builtins."), ("copy_reg.", "copyreg.")):
        name = new + name.removeprefix(old) if name.startswith(old) else name
    return name.replace("numpy._core.", "numpy.core.", 1) if name.startswith("numpy._") else name

"""The tree of torch modules in a pickled model, and the linear maps of e3nn in it, as numpy.

A module is a `Record` whose state holds its parameters, buffers, submodules and plain attributes.
`Part` finds things in it by name and remembers which parameters were taken, so that a model with
parts that nobody asked for can be refused.
"""

from dataclasses import dataclass, field
from math import sqrt

import numpy as np

from jaxmlip.errors import ModelError
from jaxmlip.interfaces.weights.unpickle import Record
from jaxmlip.nn.readout import ACTIVATIONS

DEPTH, COUNT = 30, 100_000  # a file may nest and share its records without end


def refuse(part, what, *, fix=""):
    """Raises `ModelError`: this part of a model cannot be imported, and why."""
    raise ModelError(
        f"cannot be imported: {what}" + (f" (in {part.name})" if part.name else ""),
        where=part.where,
        fix=fix,
        code="JM511",
    )


@dataclass(frozen=True)
class Part:
    """One module of a model."""

    record: Record
    where: str  # the file
    name: str = ""  # dotted path from the model
    used: set = field(default_factory=set)  # names of the arrays that were read, of all parts

    @property
    def kind(self) -> str:
        """Name of the class."""
        return self.record.kind.rsplit(".", 1)[-1]

    def _table(self, name):
        state = self.record.state if isinstance(self.record.state, dict) else {}
        table = state.get(name)
        return table if isinstance(table, dict) else {}

    def get(self, name, default=None):
        """An attribute that is neither an array nor a module."""
        state = self.record.state if isinstance(self.record.state, dict) else {}
        return state.get(name, default)

    def has(self, name) -> bool:
        return self.child(name) is not None

    def child(self, name):
        """A submodule, or None."""
        found = self._table("_modules").get(name)
        if not isinstance(found, Record):
            return None
        return Part(found, self.where, f"{self.name}.{name}".lstrip("."), self.used)

    def part(self, *names) -> "Part":
        """A submodule of submodules; raises `ModelError` if it is not there."""
        part = self
        for name in names:
            part = part.child(name) or refuse(part, f"it has no {name}")
        return part

    def parts(self) -> list["Part"]:
        """The submodules of a list of modules, in order."""
        return [self.part(name) for name in self._table("_modules")]

    def names(self) -> list[str]:
        """Names of the arrays of this module."""
        arrays = {**self._table("_parameters"), **self._table("_buffers")}
        return [k for k, v in arrays.items() if isinstance(v, np.ndarray)]

    def array(self, name) -> np.ndarray:
        """A parameter or buffer; raises `ModelError` if it is not there or not finite."""
        for table in ("_parameters", "_buffers"):
            value = self._table(table).get(name)
            if isinstance(value, np.ndarray):
                if value.dtype.kind == "f" and not np.isfinite(value).all():
                    refuse(self, f"{name} is not finite")
                self.used.add(f"{self.name}.{name}")
                return value
        return refuse(self, f"it has no {name}")

    def check_nothing_left(self):
        """Raises `ModelError` if there are parameters that nobody read."""
        left, todo, count = [], [(self, 0)], 0
        while todo:
            part, depth = todo.pop()
            count += 1
            if depth > DEPTH or count > COUNT:
                refuse(self, "modules without end")
            arrays = part._table("_parameters")
            sized = [k for k, v in arrays.items() if isinstance(v, np.ndarray) and v.size]
            left += [n for k in sized if (n := f"{part.name}.{k}") not in self.used]
            children = [part.child(k) for k in part._table("_modules")]
            todo += [(c, depth + 1) for c in children if c is not None]
        if left:
            few = ", ".join(sorted(left)[:3])
            refuse(self, f"{len(left)} weights belong to parts that are not known: {few} ...")


def irreps(record) -> list:
    """[(multiplicity, (l, p))] of a pickled e3nn.o3.Irreps, or of its text."""
    if isinstance(record, str):
        return [_irrep_of_text(t) for t in record.split("+")]
    if record is None:
        return []
    pairs = [members(m) for m in members(record)]
    return [(mul, tuple(members(ir))) for mul, ir in pairs]


def _irrep_of_text(text):
    mul, _, ir = text.strip().rpartition("x")
    return int(mul or 1), (int(ir[:-1]), 1 if ir[-1] == "e" else -1)


def members(record):
    """Members of a tuple of a class of its own: its only argument is a tuple, or all are."""
    args = record.args
    return args[0] if len(args) == 1 and isinstance(args[0], tuple) else args


@dataclass(frozen=True)
class LinearMap:
    """What an e3nn Linear does: x_out[o] = sum of x_in[i] @ blocks[i, o] (+ bias)."""

    inputs: list  # [(channels, key)]
    outputs: list
    blocks: dict  # {(i, o): matrix, normalisation included}
    dtype: np.dtype

    def by_key(self) -> dict:
        """{key: matrix} where each key comes in once and goes out once."""
        return {self.inputs[i][1]: m for (i, _), m in self.blocks.items()}

    def into(self, key, sources) -> np.ndarray:
        """Rows of the inputs `sources` (indices), one below the other, to one output key."""
        place = next(o for o, (_, k) in enumerate(self.outputs) if k == key)
        return np.concatenate([self.blocks[i, place] for i in sources])


def linear_map(part: Part) -> LinearMap:
    """The map of an e3nn.o3.Linear; its bias, if any, stays in the part."""
    if part.record.kind.rsplit(".", 1)[-1] != "Linear" or "e3nn" not in part.record.kind:
        refuse(part, f"linear maps of class {part.record.kind} are not known")
    flat, start, blocks = part.array("weight"), 0, {}
    for instruction in part.get("instructions"):
        i, o, shape, factor = members(instruction)
        if i < 0:
            continue
        size = shape[0] * shape[1]
        blocks[i, o] = float(factor) * flat[start : start + size].reshape(shape).astype(float)
        start += size
    if start != flat.size:
        refuse(part, "weights of a linear map that do not fit its irreps")
    ins, outs = irreps(part.get("irreps_in")), irreps(part.get("irreps_out"))
    return LinearMap(ins, outs, blocks, flat.dtype)


def unit(matrix):
    """A matrix as our linear maps hold it: they divide by the square root of its rows."""
    return matrix * sqrt(matrix.shape[0])


def species_map(part: Part) -> tuple[dict, np.dtype]:
    """{key: [n_species, c_in, c_out]} of the full product of features with one-hot species."""
    if part.kind != "FullyConnectedTensorProduct" or "e3nn" not in part.record.kind:
        refuse(part, f"products of class {part.record.kind} are not known")
    flat, start, out = part.array("weight"), 0, {}
    inputs = irreps(part.get("irreps_in1"))
    for instruction in part.get("instructions"):
        i1, _, _, mode, has_weight, factor, shape = members(instruction)
        if mode != "uvw" or not has_weight:
            refuse(part, f"a product of mode {mode}")
        size = shape[0] * shape[1] * shape[2]
        block = flat[start : start + size].reshape(shape).astype(float)
        l = inputs[i1][1][0]
        out[inputs[i1][1]] = float(factor) / sqrt(2 * l + 1) * block.swapaxes(0, 1)  # C(l, 0, l)
        start += size
    return out, flat.dtype


# --- activations ----------------------------------------------------------------------------------


def gate_name(function) -> str:
    """Name of an activation from what the file says it is: a name, or an attribute of torch."""
    if function is None:
        return "none"
    name = getattr(function, "kind", "").rsplit(".", 1)[-1]
    if name == "getattr" and len(getattr(function, "args", ())) == 2:
        name = function.args[1]
    if name not in ACTIVATIONS:
        raise ModelError(
            f"the activation {str(name)[:40]!r} is not known",
            where="module_tree",
            fix=f"one of {', '.join(ACTIVATIONS)}",
            code="JM511",
        )
    return name


def check_activation(part, name):
    """An e3nn normalize2mom of this function, with the gain that it has here."""
    gain = float(part.get("cst"))
    if gate_name(part.get("f")) != name or abs(gain - ACTIVATIONS[name][1]) > 1e-9:
        refuse(part, f"an activation that is not {name} with its usual gain")


def check_gate(part, scalars, gates):
    """A gate whose scalars and gates have these activations with their usual gains."""
    if part.has("act_gates"):  # e3nn.nn.Gate
        for side, name in (("act_scalars", scalars), ("act_gates", gates)):
            for act in part.part(side, "acts").parts() if part.has(side) else []:
                check_activation(act, name)
        return
    if part.get("_layout_is_ir_mul"):
        refuse(part, "weights in the layout of cuEquivariance")
    for kind, gain, name in (
        ("_act_scalar", "_scalar_cst", scalars),
        ("_act_gate", "_gate_cst", gates),
    ):
        function = part.get(kind)
        if kind == "_act_scalar" and function is None:
            continue
        same = gate_name(function) == name
        if not same or abs(float(part.get(gain)) - ACTIVATIONS[name][1]) > 1e-9:
            refuse(part, f"a gate that is not {name} with its usual gain")

"""Any potential as one function of numbers: System without edges -> energy, forces ... (host).

`evaluate(system)` of one structure gives {"energy": eV, "forces": [n, 3] eV/Å} and, where there
are such, "stress" [3, 3] eV/Å³ and "dipole" [3] e Å; numpy float64. What can be asked of it can be
asked of every model alike, ours or not, conservative or not.
"""

from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np

from jaxmlip.errors import NumericalError
from jaxmlip.neighbors import find_edges, width
from jaxmlip.potential import bind
from jaxmlip.system import System, cast, pad

VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])  # of xx, yy, zz, yz, xz, xy


def of_potential(potential, params, *, dtype=np.float64) -> Callable:
    """`evaluate` of a `Potential`, in float64 unless said (needs jax_enable_x64).

    Structures are padded to a size that grows when it must, so that few programs are compiled.
    Long-range sums are planned for the cells and sizes of the largest structure so far.
    """
    from jaxmlip.derivatives import predict

    params = cast(params, dtype)
    state = {"atoms": 0, "width": 0, "programs": {}}

    def program(system):
        """One compiled program; one for each structure of another cell if sums are planned."""
        if getattr(potential, "plan", None) is None:
            return state["programs"].setdefault((), jax.jit(predict(potential.apply)))
        metric = system.cell[0] @ system.cell[0].T  # rotated cells share a plan, strained ones too
        key = (system.n_atoms, *np.round(metric, 1).ravel().tolist(), *system.pbc[0].tolist())
        if key not in state["programs"]:
            state["programs"][key] = jax.jit(predict(bind(potential, system).apply))
        return state["programs"][key]

    def evaluate(system: System) -> dict:
        n = system.n_atoms
        edges = find_edges(system.positions, system.cell[0], system.pbc[0], potential.cutoff)
        system = replace(system, edges=edges)
        found = int(edges.mask.sum(1).max(initial=0))
        state["atoms"] = max(state["atoms"], n)
        state["width"] = max(state["width"], width(found))
        own = edges.senders.shape[1]
        system = pad(system, n_atoms=state["atoms"], n_neighbors=max(own, state["width"]))
        system = _narrowed(system, max(state["width"], 1))
        out = program(system)(params, jax.tree.map(lambda x: _as(x, dtype), system))
        return _plain(jax.device_get(out), n, system.pbc[0])

    def room(n_atoms: int):
        """Says how large the structures to come are: one size, one compilation."""
        state["atoms"] = max(state["atoms"], n_atoms)

    evaluate.room = room
    return evaluate


def of_calculator(calculator) -> Callable:
    """`evaluate` of an ASE calculator. Charge, spin and field go into atoms.info."""
    from ase.calculators.calculator import PropertyNotImplementedError

    from jaxmlip.interfaces.ase import to_ase

    def evaluate(system: System) -> dict:
        (atoms,) = to_ase(system)
        atoms.calc = calculator
        out = {"energy": float(atoms.get_potential_energy())}
        out["forces"] = np.asarray(calculator.get_property("forces", atoms), np.float64)
        wanted = ["stress"] if system.pbc.all() else [] if system.pbc.any() else ["dipole"]
        for name in set(wanted) & {*getattr(calculator, "implemented_properties", ())}:
            try:
                value = calculator.get_property(name, atoms)
            except PropertyNotImplementedError:
                continue
            if value is not None:
                value = np.asarray(value, np.float64)
                out[name] = value[VOIGT] if value.shape == (6,) else value
        return _finite(out)

    return evaluate


def _narrowed(system, columns):
    edges = jax.tree.map(lambda x: x[:, :columns], system.edges)
    return replace(system, edges=edges)


def _as(x, dtype):
    return x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x


def _plain(out, n, pbc) -> dict:
    found = {"energy": float(out["energy"][0]), "forces": np.asarray(out["forces"][:n], float)}
    if pbc.all():
        found["stress"] = np.asarray(out["stress"][0], float)
    elif not pbc.any() and "dipole" in out:
        found["dipole"] = np.asarray(out["dipole"][0], float)
    return _finite(found)


def _finite(found):
    for name, value in found.items():
        if not np.isfinite(value).all():
            raise NumericalError(f"{name} is not finite", where="evaluate", code="JM303")
    return found

"""A potential as an ASE calculator.

Only what is asked for is computed: an energy runs no backward pass, forces no strain derivative.
Each of the functions is compiled once for a number of atoms; the neighbour list keeps its width
while it suffices, so that an atom that moves does not cost a compilation.
"""

from dataclasses import replace

import jax
import numpy as np
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

from jaxmlip import derivatives
from jaxmlip.derivatives.first import with_forces
from jaxmlip.derivatives.response import check_field, depends_on_field
from jaxmlip.errors import NumericalError, check_dtype
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.interfaces.check import check_elements
from jaxmlip.potential import PER_ATOM, bind
from jaxmlip.system import cast, ladder, pad

UNCERTAINTIES = ("energy_uncertainty", "forces_uncertainty")  # names that ASE does not know
VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])  # xx, yy, zz, yz, xz, xy


class PotentialCalculator(Calculator):
    """Energies (eV), forces (eV/Å), stress (eV/Å³, Voigt), dipole (e Å) and charges (e) for ASE.

    Where the potential predicts them, `results` has energy_uncertainty (eV) and
    forces_uncertainty [n_atoms] (eV/Å, of one component) too: `get_property("energy_uncertainty")`.
    Charge, spin and field are read from atoms.info, as in `from_ase`. dtype: float64 needs
    jax_enable_x64, and is the default with it; float32 rounds total energies to 6e-8 of their
    size. elements: what the potential knows (None: not checked), as symbols or atomic numbers.
    Forces are true derivatives: constraints are ASE's. `UsageError` JM110 for a field
    along a periodic axis if they depended on the images of atoms (`derivatives.check_field`).
    """

    implemented_properties = [
        "energy",
        "free_energy",
        "energies",
        "forces",
        "stress",
        "dipole",
        "charges",
        *UNCERTAINTIES,
    ]
    ignored_changes = {"initial_charges", "initial_magmoms"}

    def __init__(self, potential, params, *, dtype=None, elements=None, name="potential", **kwargs):
        super().__init__(**kwargs)
        dtype = dtype or (np.float64 if jax.config.jax_enable_x64 else np.float32)
        check_dtype(dtype)
        self.potential, self.params, self.dtype = potential, cast(params, dtype), np.dtype(dtype)
        self.elements, self._name = elements, name
        self._planned = None  # the system that long-range sums were planned for
        self._take(potential.apply)
        self._fields = set()  # what was found to have forces, in which field
        self._widths = {}  # number of atoms: neighbours per atom
        self._response = None  # charge, spin and field of the results at hand
        self._asked = self._asked_before = frozenset()  # what was asked of this and the last state

    def _take(self, apply):
        """The functions of this `apply`; each is compiled when it is first used."""
        self._energy = jax.jit(apply)
        self._forces = jax.jit(with_forces(apply))
        self._stress = jax.jit(derivatives.predict(apply))
        self._hessian = jax.jit(derivatives.hessian(apply))
        self._born_charges = _born_charges(derivatives.born_charges(apply))
        self._polarizability = jax.jit(derivatives.polarizability(apply))

    def _plan(self, system):
        """Long-range sums are planned again, and compiled, for atoms or cells that are others."""
        if getattr(self.potential, "plan", None) is None or _same_cells(self._planned, system):
            return
        self._planned = system
        self._take(bind(self.potential, system).apply)

    def _get_name(self):
        return self._name

    def check_state(self, atoms, tol=1e-15):
        """ASE's list of changes, and 'info' if charge, spin or field are others."""
        changes = super().check_state(atoms, tol=tol)
        return changes if _response(atoms) == self._response else [*changes, "info"]

    def get_property(self, name, atoms=None, allow_calculation=True):
        value = super().get_property(name, atoms, allow_calculation)
        self._asked |= {name}
        return value

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        """Fills `results` with what is asked for and what comes with it at no cost."""
        atoms = self.atoms if atoms is None else atoms
        if "stress" in properties:
            _check_volume(atoms)
        if "dipole" in properties:
            _check_molecule(atoms)
        if self.atoms is None or self.check_state(atoms):
            self.results = {}
            self._asked_before, self._asked = self._asked, frozenset()
        super().calculate(atoms)
        self._response = _response(atoms)
        self._asked |= set(properties)
        system = self.system(atoms)
        self._check_images(system, strained="stress" in self._asked)
        results = _to_numpy(self._function(atoms)(self.params, system), atoms)
        for key in set(properties) - set(results):
            raise PropertyNotImplementedError(
                f"'{self.name}' predicts {', '.join(sorted(results))}, but not {key}"
            )
        self.results.update(results)

    def _function(self, atoms):
        """The cheapest function that gives what this state was asked for.

        Who asks for forces and then for stress at every step, as relaxations of the cell do, gets
        both from one backward pass from the second step on.
        """
        if "stress" in self._asked:
            return self._stress
        if "forces" in self._asked:
            both = "stress" in self._asked_before and atoms.cell.rank == 3 and atoms.pbc.any()
            return self._stress if both else self._forces
        return self._energy

    def system(self, atoms):
        """The `System` that is computed, with neighbour lists of a width that seldom changes."""
        if self.elements is not None:
            check_elements(atoms.numbers, self.elements, model=self.name)
        system = from_ase(atoms, self.potential.cutoff, dtype=self.dtype)
        n, found = len(atoms), int(system.edges.mask.sum(1).max())
        width = self._widths.get(n, 0)
        if found > width or not width:
            width = ladder(found + found // 10 + 1)
            if not atoms.pbc.any():
                width = max(min(width, n - 1), 1)
            self._widths[n] = width
        system = pad(_narrowed(system, width), n_neighbors=width)
        self._plan(system)
        return system

    def _check_images(self, system, *, strained=False):
        """Of every set of atoms and field once."""
        if not np.any(system.field):
            return
        known = (system.numbers.tobytes(), system.pbc.tobytes(), system.field.tobytes(), strained)
        if known not in self._fields:
            apply = bind(self.potential, system).apply
            check_field(apply, self.params, system, strained=strained, where=self.name)
            self._fields.add(known)

    # --- second derivatives, which ASE has no properties for -------------------------------------

    def get_hessian(self, atoms):
        """d²E/drdr, [n, 3, n, 3], eV/Å², not symmetrised and without constraints."""
        return self._second("hessian", atoms)

    def get_born_charges(self, atoms):
        """d(dipole)/dr, [n, 3 (of the atom), 3 (of the field)], e (`derivatives.born_charges`)."""
        self._check_field(atoms)
        return self._second("born_charges", atoms)

    def get_polarizability(self, atoms):
        """-d²E/dfield², [3, 3], e² Å²/eV as elsewhere in ASE (times 14.3996 for Å³)."""
        self._check_field(atoms)
        return self._second("polarizability", atoms)[0]

    def _second(self, name, atoms):
        system = self.system(atoms)
        self._check_images(system)
        value = np.array(getattr(self, f"_{name}")(self.params, system), np.float64)
        _check_finite({name: value}, atoms)
        return value

    def _check_field(self, atoms):
        """Without a coupling to the field every response would be zero, and no one would know."""
        system = self.system(atoms)
        if not depends_on_field(bind(self.potential, system).apply, self.params, system):
            raise PropertyNotImplementedError(
                f"the energy of '{self.name}' does not depend on the field: "
                "wrap the potential in jaxmlip.add_field"
            )


def _response(atoms):
    """What the energy depends on besides geometry, as text: a copy that compares without fail."""
    return [
        np.array2string(np.asarray(atoms.info.get(key, default)), precision=17)
        for key, default in (("charge", 0.0), ("spin", 1), ("field", np.zeros(3)))
    ]


def _born_charges(born):
    """Those of crystals look at what they are given, and compile what they need by themselves."""
    compiled = jax.jit(born)
    return lambda params, system: (born if system.pbc.any() else compiled)(params, system)


def _same_cells(old, new) -> bool:
    """Whether a plan for `old` still serves.

    As many atoms, lattice vectors within 2 %, and a slab that has grown by 5 % and 0.5 Å at most.
    """
    if old is None or old.n_atoms != new.n_atoms or not np.array_equal(old.pbc, new.pbc):
        return False
    if _thickness(new) > 1.05 * _thickness(old) + 0.5:
        return False
    moved = np.linalg.norm(new.cell - old.cell, axis=-1)
    return bool((moved <= 0.02 * np.linalg.norm(old.cell, axis=-1)).all())


def _thickness(system) -> float:
    """Å from the lowest to the highest atom of a slab; 0 of all else."""
    if system.pbc.sum() != 2:
        return 0.0
    normal = np.cross(*system.cell[0][system.pbc[0]])
    return float(np.ptp(system.positions @ normal) / np.linalg.norm(normal))


def _narrowed(system, width):
    """Edges cut to `width`; real neighbours come first in every row."""
    edges = jax.tree.map(lambda x: x[:, :width], system.edges)
    return replace(system, edges=edges)


def _check_volume(atoms):
    if not atoms.pbc.any():
        raise PropertyNotImplementedError("a molecule has no stress: no axis is periodic")
    if atoms.cell.rank < 3:
        raise PropertyNotImplementedError(
            "stress needs a volume: give all three cell vectors, also along open axes"
        )


def _check_molecule(atoms):
    """The dipole of charges in a periodic cell depends on which images of them are meant."""
    if atoms.pbc.any():
        raise PropertyNotImplementedError(
            "the dipole of a periodic structure is not defined by point charges: set pbc to False "
            "for a molecule in a box"
        )


def _to_numpy(out, atoms):
    """The prediction of one structure as ASE wants it: float64, no batch axis, Voigt stress."""
    out = {
        key: np.array(value, np.float64)
        for key, value in out.items()
        if key in PotentialCalculator.implemented_properties
    }
    if "stress" in out:
        out["stress"] = out["stress"][0][VOIGT]
    if "dipole" in out:
        out["dipole"] = out["dipole"][0]
    if atoms.pbc.any():
        out.pop("dipole", None)
    for key in {"energy", "energy_uncertainty"} & set(out):
        out[key] = float(out[key][0])
    out["free_energy"] = out["energy"]
    if not (atoms.pbc.any() and atoms.cell.rank == 3):
        out.pop("stress", None)
    _check_finite(out, atoms)
    return out


def _check_finite(out, atoms):
    """Raises `NumericalError`; quantities of atoms first, for they tell which."""
    for key, value in sorted(out.items(), key=lambda item: -np.size(item[1])):
        value = np.atleast_1d(value)
        bad = np.argwhere(~np.isfinite(value))
        if not len(bad):
            continue
        i = int(bad[0][0])
        per_atom = key in PER_ATOM or key == "hessian"
        where = f"atom {i} ({atoms.symbols[i]})" if per_atom else atoms.get_chemical_formula()
        raise NumericalError(
            f"{key} is not finite: {value[i]}",
            where=where,
            code="JM303",
            fix="look at the geometry round this atom and at the elements that the potential knows",
        )

"""Two cutoffs: a rich model of what is near, and a simple one that sees farther.

Chemistry is near and takes many channels; packing and slow tails are far and take few. The cost of
a layer grows with the number of neighbours, with the cube of its cutoff, so one long cutoff pays
the rich price for every far neighbour. Here the edges are found once, within the long cutoff, and
those within the short one are packed into narrower arrays before the rich part sees them.
"""

from dataclasses import field

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxmlip.errors import ModelError, did_you_mean
from jaxmlip.models.mace import MACE
from jaxmlip.neighbors import width
from jaxmlip.nn.pairwise import near
from jaxmlip.nn.readout import one_or_nan
from jaxmlip.system import System, edge_vectors, sum_energies

SIMPLE = {"channels": 16, "n_layers": 1, "l_max": 1, "hidden_l": 0, "correlation": 2}
ROOM = 1.3  # times the most near neighbours an atom has when the room for them is planned
TAKEN = ("elements", "cutoff", "scale", "dipole", "polarizability", "parent", "name")


class DualCutoff(nn.Module):
    """A `Potential`: the energies of two MACE add; charges, dipoles ... are of the near one.

    `jaxmlip.bind(model, system)` plans the room for near neighbours; without, the near part is
    computed in arrays for all neighbours, with the same result at a higher cost. An atom that has
    more near neighbours than there is room for makes its structure NaN, never wrong: bind again.
    Raises `ModelError` JM512 for cutoffs or fields of the parts that cannot be.
    """

    elements: tuple[int, ...]  # atomic numbers, sorted
    cutoff: float = 8.0  # Å, of the far part
    short_cutoff: float = 4.5  # Å, of the near part
    short: dict = field(default_factory=dict)  # fields of the near MACE, if not its defaults
    long: dict = field(default_factory=dict)  # of the far MACE, if not those of SIMPLE
    avg_num_neighbors: float = 1.0  # within the long cutoff; near ones by volume, if not in `short`
    scale: float = 1.0  # eV, of both parts
    dipole: bool = False
    polarizability: bool = False
    short_neighbors: int = 0  # room for near neighbours of an atom; 0: not planned

    @nn.compact
    def __call__(self, system: System):
        near_system, crowded = self._near(system)
        out = self._part("short")(near_system)
        far = self._part("long")(system)
        energies = out["energies"] + far["energies"]
        whole = jnp.broadcast_to(~crowded, (system.n_atoms,))
        energies = energies * one_or_nan(system, whole)
        return {**out, "energy": sum_energies(system, energies), "energies": energies}

    def plan(self, system) -> "DualCutoff":
        """The model with room for the near neighbours of a system, or of a list of them (host)."""
        batches = system if isinstance(system, list | tuple) else [system]
        most = max(_most_near(b, self.short_cutoff) for b in batches)
        return self.clone(short_neighbors=width(int(np.ceil(ROOM * most))))

    def _near(self, system):
        if not self.short_neighbors:
            return system, jnp.zeros(1, bool)
        return near(system, self.short_cutoff, self.short_neighbors)

    def _part(self, name):
        """The near or the far MACE."""
        if not 0 < self.short_cutoff <= self.cutoff:
            raise ModelError(
                f"the near part reaches {self.short_cutoff} Å, the far one {self.cutoff} Å",
                where="DualCutoff",
                fix="0 < short_cutoff <= cutoff",
                code="JM512",
            )
        shared = {"elements": self.elements, "scale": self.scale}
        if name == "long":
            own = {"cutoff": self.cutoff, "avg_num_neighbors": self.avg_num_neighbors} | SIMPLE
        else:
            share = (self.short_cutoff / self.cutoff) ** 3
            own = {
                "cutoff": self.short_cutoff,
                "avg_num_neighbors": max(self.avg_num_neighbors * share, 1.0),
                "dipole": self.dipole,
                "polarizability": self.polarizability,
            }
        given = {k: _tuples(v) for k, v in dict(getattr(self, name)).items()}
        _check(given, name)
        return MACE(**{**shared, **own, **given}, name=name)


def _check(given, name):
    known = [k for k in MACE.__dataclass_fields__ if k not in TAKEN]
    for key in given:
        if key not in known:
            raise ModelError(
                f"'{name}' has no field '{key}'.{did_you_mean(key, known)}",
                where="DualCutoff",
                fix=f"one of {', '.join(known)}",
                code="JM512",
            )


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _most_near(system, cutoff) -> int:
    """The most neighbours within `cutoff` that an atom has."""
    lengths = np.linalg.norm(np.asarray(edge_vectors(system)), axis=-1)
    found = np.asarray(system.edges.mask) & (lengths < cutoff)
    if system.edges.receivers is None:
        return int(found.sum(1).max(initial=0))
    return int(np.bincount(np.asarray(system.edges.receivers)[found], minlength=1).max())

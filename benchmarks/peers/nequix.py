"""nequix: a NequIP with layer norms left out, species as one-hot features, natural parities."""

from importlib.metadata import version

import equinox
import jax
import jax.numpy as jnp
import jraph
import numpy as np
import optax
from ase.neighborlist import neighbor_list
from nequix.model import Nequix

from benchmarks.peers.jax_program import cast, compiler, count, environment, stepper
from benchmarks.systems import ELEMENTS, labelled_copies, structure
from benchmarks.worker import Skip


def prepare(task):
    if task["architecture"] != "NequIP":
        raise Skip(f"nequix has no {task['architecture']}")
    if task.get("embedding_channels") != len(ELEMENTS):
        raise Skip("the species of nequix are one-hot: model nequip64-onehot")
    atoms = structure(task["system"])
    weights, rest = cast(equinox.partition(model_of(task), equinox.is_array), task["dtype"])
    graph = cast(graph_of([atoms], task), task["dtype"])
    apply = lambda weights, graph: equinox.combine(weights, rest)(graph)
    facts = environment() | {
        "version": version("nequix"),
        "n_atoms": len(atoms),
        "n_edges": int(graph.n_edge[0]),
        "n_parameters": count(weights) - len(ELEMENTS),  # its reference energies are fixed
    }
    program = {"energy": energy, "hessian": hessian, "training": training}[task["task"]]
    return program(task, atoms, graph, apply, weights), facts


def model_of(task):
    degrees = range(task["l_max"] + 1)
    return Nequix(
        jax.random.key(0),
        n_species=len(ELEMENTS),
        lmax=task["l_max"],
        cutoff=task["cutoff"],
        hidden_irreps=" + ".join(f"{task['channels']}x{l}{'eo'[l % 2]}" for l in degrees),
        n_layers=task["n_layers"],
        radial_basis_size=task["n_radial"],
        radial_mlp_size=task["radial_widths"][0],
        radial_mlp_layers=len(task["radial_widths"]),
        radial_polynomial_p=6.0,
        avg_n_neighbors=25.0,
    )


def graph_of(structures, task):
    """One batch, with the empty structure at the end that nequix takes for padding."""
    graph = jraph.batch_np([one_graph(atoms, task["cutoff"]) for atoms in structures])
    sizes = graph.n_node.sum() + 1, graph.n_edge.sum() + 1, len(structures) + 1
    return jraph.pad_with_graphs(graph, *sizes)


def one_graph(atoms, cutoff):
    """Without a cell for a molecule, so that it is spared the strain."""
    i, j, shifts = neighbor_list("ijS", atoms, cutoff)
    periodic = atoms.pbc.any()
    return jraph.GraphsTuple(
        nodes={"species": np.searchsorted(ELEMENTS, atoms.numbers), "positions": atoms.positions},
        edges={"shifts": shifts.astype(float)},
        senders=j,
        receivers=i,
        globals={"cell": np.asarray(atoms.cell)[None] if periodic else None},
        n_node=np.array([len(atoms)]),
        n_edge=np.array([len(i)]),
    )


def energy(task, atoms, graph, apply, weights):
    function = lambda *given: dict(zip(("energy", "forces", "stress"), apply(*given), strict=True))
    return compiler(function, weights, graph)


def hessian(task, atoms, graph, apply, weights):
    raise Skip("the Hessian of nequix is not compared")


def training(task, atoms, graph, apply, weights):
    copies, energies, forces = labelled_copies(atoms)
    graph = cast(graph_of(copies, task), task["dtype"])
    labels = cast((energies, forces), task["dtype"])
    optimizer = optax.chain(optax.scale_by_amsgrad(), optax.scale(-1e-3))

    def loss(weights, graph, labels):
        energies, forces, _ = apply(weights, graph)
        energies, forces = energies[: len(labels[0])], forces[: len(labels[1])]
        by_energy = (((energies - labels[0]) / len(atoms)) ** 2).mean()
        return by_energy + 10 * ((forces - labels[1]) ** 2).mean()

    def step(weights, memory, graph, labels):
        slope = jax.grad(loss)(weights, graph, labels)
        updates, memory = optimizer.update(slope, memory, weights)
        return jax.tree.map(jnp.add, weights, updates), memory

    return stepper(step, weights, optimizer.init(weights), graph, labels)

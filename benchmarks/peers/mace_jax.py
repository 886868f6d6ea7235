"""mace-jax of ACEsuit, with its default (e3nn-like, unfused) products."""

import warnings
from importlib.metadata import version

import jax
import jax.numpy as jnp
import jraph
import numpy as np
import optax
from flax import nnx
from mace_jax.data.utils import AtomicNumberTable, Configuration, graph_from_configuration
from mace_jax.tools.gin_model import _graph_to_data
from mace_jax.tools.model_builder import _build_jax_model

from benchmarks.peers.jax_program import cast, compiler, count, environment, random_like, stepper
from benchmarks.systems import ELEMENTS, labelled_copies, structure
from benchmarks.worker import Skip

warnings.filterwarnings("ignore")


def prepare(task):
    if task["architecture"] != "MACE":
        raise Skip(f"mace-jax has no {task['architecture']}")
    if task["task"] == "hessian":
        raise Skip("mace-jax offers no Hessian")
    atoms = structure(task["system"])
    definition, weights, rest = model_of(task)
    batch = cast(batch_of([atoms], task), task["dtype"])
    apply = lambda weights, batch, **options: output(
        nnx.merge(definition, weights, rest)(batch, compute_force=True, **options)
    )
    facts = environment() | {
        "version": version("mace-jax"),
        "n_atoms": len(atoms),
        "n_edges": int(batch["edge_index"].shape[1]),
        "n_parameters": count(weights),
    }
    program = {"energy": energy, "training": training}[task["task"]]
    return program(task, atoms, batch, apply, weights), facts


def output(result):
    return result[0] if isinstance(result, tuple) else result


def model_of(task):
    irreps = [f"{task['channels']}x{l}{'eo'[l % 2]}" for l in range(task["hidden_l"] + 1)]
    settings = {
        "torch_model_class": "ScaleShiftMACE",
        "r_max": task["cutoff"],
        "num_bessel": task["n_radial"],
        "num_polynomial_cutoff": 5,
        "max_ell": task["l_max"],
        "interaction_cls": "RealAgnosticResidualInteractionBlock",
        "interaction_cls_first": "RealAgnosticInteractionBlock",
        "num_interactions": task["n_layers"],
        "hidden_irreps": "+".join(irreps),
        "MLP_irreps": "16x0e",
        "atomic_numbers": ELEMENTS,
        "atomic_energies": [0.0] * len(ELEMENTS),
        "avg_num_neighbors": 25.0,
        "correlation": task["correlation"],
        "gate": "silu",
        "radial_MLP": list(task["radial_widths"]),
        "atomic_inter_scale": 1.0,
        "atomic_inter_shift": 0.0,
    }
    model = _build_jax_model(settings, cueq_config=None, rngs=nnx.Rngs(0))
    definition, weights, rest = nnx.split(model, nnx.Param, ...)
    return definition, cast(random_like(weights), task["dtype"]), cast(rest, task["dtype"])


def batch_of(structures, task):
    """One batch, with the empty structure at the end that mace-jax takes for padding."""
    table = AtomicNumberTable(ELEMENTS)
    graphs = [
        graph_from_configuration(configuration(a), cutoff=task["cutoff"], z_table=table)
        for a in structures
    ]
    graph = jraph.batch_np(graphs)
    sizes = graph.n_node.sum() + 1, graph.n_edge.sum(), len(graphs) + 1
    graph = jraph.pad_with_graphs(graph, *map(int, sizes))
    return _graph_to_data(graph, num_species=len(ELEMENTS))


def configuration(atoms):
    return Configuration(
        atomic_numbers=atoms.numbers,
        positions=atoms.positions,
        energy=np.array(0.0),
        forces=np.zeros_like(atoms.positions),
        stress=np.zeros((3, 3)),
        cell=np.asarray(atoms.cell),
        pbc=tuple(atoms.pbc),
    )


def energy(task, atoms, batch, apply, weights):
    stress = bool(atoms.pbc.any())

    def function(weights, batch):
        out = apply(weights, batch, compute_stress=stress)
        return {k: out[k] for k in ("energy", "forces", *["stress"] * stress)}

    return compiler(function, weights, batch)


def training(task, atoms, batch, apply, weights):
    copies, energies, forces = labelled_copies(atoms)
    batch = cast(batch_of(copies, task), task["dtype"])
    labels = cast((energies, forces), task["dtype"])
    optimizer = optax.chain(optax.scale_by_amsgrad(), optax.scale(-1e-3))

    def loss(weights, batch, labels):
        out, (energies, forces) = apply(weights, batch, compute_stress=False), labels
        by_energy = (((out["energy"][: len(energies)] - energies) / len(atoms)) ** 2).mean()
        return by_energy + 10 * ((out["forces"][: len(forces)] - forces) ** 2).mean()

    def step(weights, memory, batch, labels):
        slope = jax.grad(loss)(weights, batch, labels)
        updates, memory = optimizer.update(slope, memory, weights)
        return jax.tree.map(jnp.add, weights, updates), memory

    return stepper(step, weights, optimizer.init(weights), batch, labels)

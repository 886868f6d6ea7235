"""mlip of InstaDeep, with its default e3j backend."""

import warnings
from dataclasses import replace
from importlib.metadata import version

import jax
import jax.numpy as jnp
import mlip  # noqa: F401
import numpy as np
import optax
from mlip.data import ChemicalSystem, DatasetInfo
from mlip.data.helpers.dummy_init_graph import get_dummy_graph_for_model_init
from mlip.data.helpers.dynamically_batch import dynamically_batch
from mlip.graph import Graph
from mlip.graph.edge_ordering import DEFAULT_EDGE_ORDERING
from mlip.models import ForceField, Mace, Nequip
from mlip.models.mace.config import MaceConfig
from mlip.models.nequip.config import NequipConfig
from mlip.typing.properties import Properties

from benchmarks.peers.jax_program import cast, compiler, count, environment, random_like, stepper
from benchmarks.systems import DT, ELEMENTS, EVERY, FAINT, KELVIN, labelled_copies, structure
from benchmarks.worker import Skip

warnings.filterwarnings("ignore")


def prepare(task):
    if "embedding_channels" in task:
        raise Skip("the species of mlip are embedded in all channels: model nequip64")
    atoms = structure(task["system"])
    graph = cast(graph_of([atoms], task), task["dtype"])
    wanted = {"stress": bool(atoms.pbc.any())} if task["task"] == "energy" else {}
    if task["task"] == "hessian":
        wanted = {"hessian": True}
    predictor, params = predictor_of(task, **wanted)
    facts = environment() | {
        "version": version("mlip"),
        "n_atoms": len(atoms),
        "n_edges": int(np.sum(np.asarray(graph.n_edge)[:1])),
        "n_parameters": count(params),
    }
    programs = {"energy": energy, "hessian": hessian, "training": training, "engine": engine}
    return programs[task["task"]](task, atoms, graph, predictor, params), facts


def network_of(task):
    info = DatasetInfo(
        atomic_energies_map=dict.fromkeys(ELEMENTS, 0.0),
        graph_cutoff_angstrom=task["cutoff"],
        avg_num_neighbors=25.0,
        avg_r_min_angstrom=1.0,
    )
    shared = {"num_layers": task["n_layers"], "l_max": task["l_max"], "num_rbf": task["n_radial"]}
    shared["radial_mlp_hidden"] = list(task["radial_widths"])
    c = task["channels"]
    if task["architecture"] == "NequIP":
        irreps = " + ".join(f"{c}x{l}{'eo'[l % 2]}" for l in range(task["l_max"] + 1))
        return Nequip(NequipConfig(target_irreps=irreps, **shared), info)
    options = {
        "num_channels": c,
        "node_symmetry": task["hidden_l"],
        "readout_irreps": ("16x0e", "0e"),
    }
    return Mace(MaceConfig(correlation=task["correlation"], **options, **shared), info)


def predictor_of(task, **wanted):
    """Its predictor with random weights, without its own initialisation, which runs eagerly."""
    network, wanted = network_of(task), Properties(**wanted)
    head = ForceField.get_energy_head(network.config, wanted, network)
    predictor = ForceField.get_predictor_class(wanted, network.config)(
        mlip_network=network, required_properties=wanted, energy_head=head
    )
    graph = get_dummy_graph_for_model_init()
    shapes = jax.eval_shape(predictor.init, jax.random.key(0), graph)
    return predictor, cast(random_like(shapes), task["dtype"])


def graph_of(structures, task):
    """One batch, padded by the one atom and edge that its padding needs."""
    graphs = [
        Graph.from_chemical_system(
            ChemicalSystem.from_ase_atoms(a), task["cutoff"], ordering=DEFAULT_EDGE_ORDERING
        )
        for a in structures
    ]
    n_edges, n_atoms = sum(len(g.senders) for g in graphs), sum(map(len, structures))
    sizes = {"n_node": n_atoms + 1, "n_edge": n_edges + 1, "n_graph": len(graphs) + 1}
    return next(dynamically_batch(graphs, **sizes))


def energy(task, atoms, graph, predictor, params):
    def function(params, graph):
        out = predictor.apply(params, graph).to_prediction()
        return {"energy": out.energy, "forces": out.forces, "stress": out.stress}

    return compiler(function, params, graph)


def hessian(task, atoms, graph, predictor, params):
    function = lambda params, graph: predictor.apply(params, graph).to_prediction().hessian
    return compiler(lambda *given: {"forces": function(*given)}, params, graph)


def training(task, atoms, graph, predictor, params):
    copies, energies, forces = labelled_copies(atoms)
    graph = cast(graph_of(copies, task), task["dtype"])
    labels = cast((energies, forces), task["dtype"])
    optimizer = optax.chain(optax.scale_by_amsgrad(), optax.scale(-1e-3))

    def loss(params, graph, labels):
        out, (energies, forces) = predictor.apply(params, graph).to_prediction(), labels
        by_energy = (((out.energy[: len(energies)] - energies) / len(atoms)) ** 2).mean()
        return by_energy + 10 * ((out.forces[: len(forces)] - forces) ** 2).mean()

    def step(params, memory, graph, labels):
        slope = jax.grad(loss)(params, graph, labels)
        updates, memory = optimizer.update(slope, memory, params)
        return jax.tree.map(jnp.add, params, updates), memory

    return stepper(step, params, optimizer.init(params), graph, labels)


class Faint:
    """A force field of mlip with its energy and forces scaled, as its engine wants one."""

    def __init__(self, field, factor):
        self.field, self.factor = field, factor

    def __getattr__(self, name):
        return getattr(self.field, name)

    def __call__(self, graph):
        out, factor = self.field(graph), self.factor
        return replace(out, energy=factor * out.energy, forces=factor * out.forces)


def engine(task, atoms, graph, predictor, params):
    """An episode of its JAX-MD engine a call, going on from the last one; its own friction."""
    from mlip.simulation.jax_md import JaxMDSimulationEngine as Engine

    params = jax.tree.map(jnp.asarray, params)
    field = ForceField(predictor=predictor, params=params)
    largest = jnp.abs(jax.jit(lambda graph: field(graph).forces)(graph)).max()
    config = Engine.Config(
        num_steps=task["steps"],
        num_episodes=1,
        snapshot_interval=EVERY,
        timestep_fs=DT,
        temperature_kelvin=KELVIN,
    )
    running = Engine(atoms, Faint(field, float(FAINT / largest)), config)

    def call():
        running.run()
        return {"forces": running.state.forces[-1]}

    return lambda: (call, {})

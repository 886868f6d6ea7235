"""jaxmlip itself."""

from dataclasses import fields

import jax
import numpy as np

import jaxmlip as library
from benchmarks.peers.jax_program import cast, compiler, count, environment, figures, random_like
from benchmarks.systems import (
    DT,
    ELEMENTS,
    EVERY,
    FAINT,
    FRICTION,
    KELVIN,
    labelled_copies,
    structure,
)
from benchmarks.worker import Skip
from jaxmlip import models
from jaxmlip.derivatives.first import with_forces


def prepare(task):
    if task["dtype"] == "float64":
        jax.config.update("jax_enable_x64", True)
    atoms = structure(task["system"])
    system = library.from_ase(atoms, task["cutoff"], dtype=task["dtype"])
    model, params = model_of(task, system)
    facts = environment() | {
        "version": library.__version__,
        "n_atoms": len(atoms),
        "n_edges": int(system.edges.mask.sum()),
        "n_parameters": count(params),
    }
    programs = {"energy": energy, "hessian": hessian, "training": training, "engine": engine}
    return programs[task["task"]](task, atoms, system, model, params), facts


def model_of(task, system):
    """The model of the task with unit normal weights."""
    if not hasattr(models, task["architecture"]):
        raise Skip(f"no architecture {task['architecture']}")
    architecture = getattr(models, task["architecture"])
    known = {field.name for field in fields(architecture)}
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in task.items() if k in known}
    if task["architecture"] == "MACE":
        options["residual_first"] = False
    else:
        options |= {"parity": False, "trainable_basis": False}
    model = architecture(elements=tuple(ELEMENTS), avg_num_neighbors=25.0, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0), system)
    return model, cast(random_like(shapes), task["dtype"])


def energy(task, atoms, system, model, params):
    """Energy and forces, and stress of a crystal: one forward and one backward pass."""
    function = (library.predict if atoms.pbc.any() else with_forces)(model.apply)
    keep = ("energy", "forces", "stress")
    only = lambda params, system: {k: v for k, v in function(params, system).items() if k in keep}
    return compiler(only, params, jax.device_put(system))


def hessian(task, atoms, system, model, params):
    function = library.hessian(model.apply)
    as_output = lambda params, system: {"forces": function(params, system)}
    return compiler(as_output, params, jax.device_put(system))


def training(task, atoms, system, model, params):
    """One step of the library's own trainer on five labelled copies."""
    from jaxmlip.system import concatenate
    from jaxmlip.train.objective.losses import Term, squared
    from jaxmlip.train.steps.optimizers import adam
    from jaxmlip.train.steps.step import training as trainer

    copies, energies, forces = labelled_copies(atoms)
    batch = concatenate([library.from_ase(a, task["cutoff"], dtype=task["dtype"]) for a in copies])
    labels = cast({"energy": energies, "forces": forces}, task["dtype"])
    terms = {"energy": Term(1.0, squared), "forces": Term(10.0, squared)}
    optimizer = adam(clip=10.0, weight_decay=0.0, amsgrad=True)
    init, step = trainer(model, terms, optimizer=optimizer, ema=0.99)
    batch = jax.device_put(batch)

    def compile_():
        state = [init(jax.random.key(0), batch)]
        rate = np.asarray(1e-3, task["dtype"])
        program = step.lower(state[0], batch, labels, rate).compile()

        def call():
            state[0], metrics = program(state[0], batch, labels, rate)
            jax.block_until_ready(metrics)

        return call, figures(program)

    return compile_


def engine(task, atoms, system, model, params):
    """Steps of Langevin dynamics that go on from call to call."""
    from jaxmlip.md import langevin, prepare, thermal_motion, trajectory
    from jaxmlip.md.observables import frame
    from jaxmlip.potential import scale

    largest = np.abs(jax.jit(library.forces(model.apply))(params, system)).max()
    faint = scale(model, float(FAINT / largest))
    bath = langevin(dt=DT, temperature=KELVIN, friction=FRICTION)
    run = prepare(faint, params, system, bath, masses=atoms.get_masses(), observe=frame)
    motion = thermal_motion(system, run.bodies, jax.random.key(0), temperature=KELVIN)
    state, steps = [run, motion], task["steps"]

    def call():
        for block in trajectory(*state, steps=steps, block=steps, record=EVERY):
            state[:] = block.run, block.motion
        return {"forces": state[1].forces}

    return lambda: (call, {})

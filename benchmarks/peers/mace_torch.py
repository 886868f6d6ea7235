"""mace-torch, eager: the published MACE code."""

from importlib.metadata import version

import mace  # noqa: F401  before e3nn: it sets how constants are loaded
import numpy as np
import torch
from e3nn import o3
from mace import data, modules, tools
from mace.tools import torch_geometric

from benchmarks.systems import DT, ELEMENTS, FAINT, FRICTION, KELVIN, labelled_copies, structure
from benchmarks.timing import cores
from benchmarks.worker import Skip

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def prepare(task):
    if task["architecture"] != "MACE":
        raise Skip(f"mace-torch has no {task['architecture']}")
    torch.set_num_threads(cores())  # by default it counts cores that it may not use
    torch.set_default_dtype(getattr(torch, task["dtype"]))
    atoms, model = structure(task["system"]), model_of(task)
    batch = batch_of([atoms], task)
    facts = {
        "version": version("mace-torch"),
        "torch": torch.__version__,
        "device": DEVICE,
        "n_atoms": len(atoms),
        "n_edges": int(batch["edge_index"].shape[1]),
        "n_parameters": sum(p.numel() for p in model.parameters()),
    }
    programs = {"energy": energy, "hessian": hessian, "training": training, "engine": engine}
    call = programs[task["task"]](task, atoms, batch, model)
    return (lambda: (finished(call), {})), facts


def finished(call):
    """The call, returning only when the device has done its work."""

    def wait():
        out = call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return out

    return wait


def model_of(task):
    torch.manual_seed(0)
    blocks = modules.interaction_classes
    irreps = [f"{task['channels']}x{l}{'eo'[l % 2]}" for l in range(task["hidden_l"] + 1)]
    return modules.ScaleShiftMACE(
        r_max=task["cutoff"],
        num_bessel=task["n_radial"],
        num_polynomial_cutoff=5,
        max_ell=task["l_max"],
        interaction_cls=blocks["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=blocks["RealAgnosticInteractionBlock"],
        num_interactions=task["n_layers"],
        num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps("+".join(irreps)),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(ELEMENTS)),
        avg_num_neighbors=25.0,
        atomic_numbers=ELEMENTS,
        correlation=task["correlation"],
        gate=torch.nn.functional.silu,
        radial_MLP=task["radial_widths"],
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    ).to(DEVICE)


def batch_of(structures, task):
    table = tools.AtomicNumberTable(ELEMENTS)
    configurations = [data.config_from_atoms(atoms) for atoms in structures]
    graphs = [
        data.AtomicData.from_config(c, z_table=table, cutoff=task["cutoff"]) for c in configurations
    ]
    loader = torch_geometric.dataloader.DataLoader(graphs, batch_size=len(graphs))
    return next(iter(loader)).to(DEVICE).to_dict()


def fixed(model):
    for parameter in model.parameters():
        parameter.requires_grad = False


def energy(task, atoms, batch, model):
    fixed(model)
    stress = bool(atoms.pbc.any())
    return lambda: {
        "forces": model(batch, compute_force=True, compute_stress=stress)["forces"].detach()
    }


def hessian(task, atoms, batch, model):
    fixed(model)
    return lambda: {
        "forces": model(batch, compute_force=True, compute_hessian=True)["hessian"].detach()
    }


def training(task, atoms, batch, model):
    copies, energies, forces = labelled_copies(atoms)
    batch = batch_of(copies, task)
    energies, forces = (
        torch.tensor(x, dtype=torch.get_default_dtype()) for x in (energies, forces)
    )
    energies, forces = energies.to(DEVICE), forces.to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        out = model(batch, training=True, compute_force=True, compute_stress=False)
        by_energy = ((out["energy"] - energies) / len(atoms)).pow(2).mean()
        (by_energy + 10 * (out["forces"] - forces).pow(2).mean()).backward()
        optimizer.step()

    return step


def engine(task, atoms, batch, model):
    """Steps of ASE with mace-torch's calculator."""
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from mace.calculators import MACECalculator

    fixed(model)
    largest = model(batch, compute_force=True)["forces"].abs().max()
    model.scale_shift.scale = FAINT / largest.detach() * model.scale_shift.scale
    atoms.calc = MACECalculator(models=model, device=DEVICE, default_dtype=task["dtype"])
    MaxwellBoltzmannDistribution(atoms, temperature_K=KELVIN, rng=np.random.default_rng(0))
    friction = FRICTION / units.fs
    dynamics = Langevin(atoms, DT * units.fs, temperature_K=KELVIN, friction=friction)

    def call():
        dynamics.run(task["steps"])
        return {"forces": atoms.get_forces()}

    return call

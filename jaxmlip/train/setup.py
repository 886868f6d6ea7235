"""From a configuration to everything a run needs: frames, model card, compiled functions.

What the data decide (elements, reference energies, mean neighbour count, scale of the forces) is
filled into the model card here, so that the card alone can build the model again.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmlip import models
from jaxmlip.data.batching import Bucket, atoms_of, choose_buckets, make_buckets, plan
from jaxmlip.data.statistics import fit_reference_energies
from jaxmlip.errors import DataError, UsageError, did_you_mean
from jaxmlip.models import checkpoint
from jaxmlip.potential import Potential
from jaxmlip.train.config.settings import LABELS, Config
from jaxmlip.train.evaluation.accuracy import metric_sums
from jaxmlip.train.frames.reading import given_energies, read_data
from jaxmlip.train.frames.second_derivatives import second_derivatives
from jaxmlip.train.frames.sources import bare_labels, same_labels
from jaxmlip.train.frames.stored import (
    bind_to,
    energies_of,
    forces_rms,
    holding,
    mapped,
    neighbors_of,
    numbers_of,
)
from jaxmlip.train.objective.curvature import Known
from jaxmlip.train.objective.losses import Term
from jaxmlip.train.objective.terms import make_terms
from jaxmlip.train.record import file_hash, files_of
from jaxmlip.train.start.beginning import begin, moving, settle, with_start
from jaxmlip.train.steps.devices import parallel, part_buckets, spread
from jaxmlip.train.steps.ensemble import with_members
from jaxmlip.train.steps.feed import mesh_of, padding
from jaxmlip.train.steps.optimizers import make_optimizer
from jaxmlip.train.steps.step import make_remat, training

log = logging.getLogger("jaxmlip")


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is ready to start."""

    config: Config
    card: dict
    terms: dict[str, Term]
    potential: Potential  # without reference energies
    train: Sequence  # [(System, labels)], reference energies removed
    valid: Sequence
    buckets: tuple[Bucket, ...]
    valid_buckets: tuple[Bucket, ...]
    mesh: Mesh | None = None  # of several devices
    shares: tuple[Bucket, ...] = ()  # the part that one of them has of a batch of each bucket
    valid_shares: tuple[Bucket, ...] = ()
    steps: int  # planned
    init: Callable
    step: Callable
    sums: Callable
    curvature: list[Known | None] | None = None  # of the training frames; None: not asked for
    valid_curvature: list[Known | None] | None = None
    merge: Callable = lambda params: params  # of the trained leaves: those of the model

    @property
    def padding(self) -> float:
        """Share of the padded atoms that are not real."""
        return padding(self)


def prepare(
    config: Config,
    *,
    load: Callable | None = None,
    find: Callable | None = None,
    tell: Callable[[str], None] = log.warning,
) -> Run:
    """Reads the data, fits what is fitted, builds model and step. Nothing is compiled yet.

    load: (potential, params) of a name, for `curvature.teacher`; find: the path of one, for
    `start.model`; None: these are paths of our own format. tell: called with each thing that is
    worth knowing about the data.
    """
    terms = make_terms(config)
    if config.uncertainty and "energy" not in terms:
        raise UsageError(
            "'uncertainty' is calibrated on energies, and loss.energy is 0",
            fix="loss.energy above 0",
        )
    if config.uncertainty and config.ensemble > 1:
        raise UsageError(
            "'uncertainty' is that of the last layer of one model, and 'ensemble' makes several",
            fix="one of them: members tell their own uncertainty",
        )
    mesh = mesh_of(config)
    config, begun = begin(config, terms, find=find)
    needed = tuple(name for name in terms if name in LABELS and name != "hessian")
    frames = read_data(config, needed=needed, tell=tell)
    train, valid = frames.train, frames.valid
    begun = settle(begun, config, terms, train, atoms=frames.atoms)
    train = [*train, *begun.replay] if begun.replay else train
    train, valid, known, valid_known = second_derivatives(config, train, valid, terms, load)
    card = with_start(make_card(config, train, terms, atoms=frames.atoms), begun, config)
    potential = checkpoint.potential_of(card | {"reference_energies": {}, "head_names": None})
    potential = bind_to(potential, chain(train, valid))
    check_dipoles(potential, card["fields"], train, terms)
    potential = moving(potential, begun, config)
    train, valid = (same_labels(_only(bare_labels(f, card), terms)) for f in (train, valid))
    _check_property(config, train, valid)
    train, valid = holding(train, valid, config.data.held_frames)
    buckets = buckets_of(train, config)
    batches = plan(buckets, atoms_of(train), seed=config.seed)
    valid_buckets = make_buckets(valid, n_buckets=1, max_atoms=config.batch_atoms)
    if config.ensemble > 1:
        card = card | {"members": config.ensemble}
    potential, merge, init, step, sums = functions(config, potential, terms, mesh)
    shares = valid_shares = ()
    if mesh is not None:
        n, atoms = mesh.devices.size, atoms_of(valid)
        shares = part_buckets(buckets, batches, atoms_of(train), n)
        every = plan(valid_buckets, atoms, seed=None)
        valid_shares = part_buckets(valid_buckets, every, atoms, n, needed=1)
    return Run(
        config=config,
        card=card,
        terms=terms,
        potential=potential,
        train=train,
        valid=valid,
        buckets=buckets,
        valid_buckets=valid_buckets,
        mesh=mesh,
        shares=shares,
        valid_shares=valid_shares,
        steps=config.epochs * len(batches),
        init=init,
        step=step,
        sums=sums,
        curvature=known,
        valid_curvature=valid_known,
        merge=merge,
    )


def _check_property(config: Config, train, valid):
    """Both parts must have labels: errors without any are zero, the best that there are."""
    p = config.property
    if p is None:
        return
    for name, part in (("train", train), ("valid", valid)):
        if not any(np.isfinite(known[p.name]).any() for _, known in part):
            raise DataError(
                f"no frame of the part '{name}' of the split has '{p.name}'",
                where="data",
                code="JM220",
                fix="leave frames without it out, or a larger data.valid_fraction",
            )


def functions(config: Config, potential, terms, mesh: Mesh | None):
    """(potential, merge, init, step, sums) of the members of a run, each on all devices.

    init: of a system of one device, on one.
    """
    on_mesh = lambda p: p if mesh is None else spread(p, mesh)
    options = dict(
        optimizer=make_optimizer(config), ema=config.optimizer.ema, remat=make_remat(config)
    )
    init, step = training(potential, terms, **options)
    if mesh is not None:
        _, step = training(on_mesh(potential), terms, **options)
    mean, init, step, merge = with_members(
        potential, init, step, config.ensemble, share=config.ensemble_share
    )
    sums = metric_sums(on_mesh(mean).apply, terms)
    if mesh is None:
        return mean, merge, init, step, sums
    return mean, merge, init, parallel(step, mesh), parallel(sums, mesh, donate=())


def buckets_of(frames, config: Config) -> tuple[Bucket, ...]:
    """As many shapes as the configuration says; 0: as few, up to 6, as bound the padding."""
    if config.buckets == 0:
        return choose_buckets(frames, max_atoms=config.batch_atoms)
    return make_buckets(frames, n_buckets=config.buckets, max_atoms=config.batch_atoms)


def _only(frames, terms):
    kept = lambda name: name in terms or name.split(":")[0] in ("weight", "head")
    chosen = lambda i, system, labels: {k: v for k, v in labels.items() if kept(k)}
    return mapped(frames, chosen)


def make_card(config: Config, train, terms, *, atoms=()) -> dict:
    """The model card, with the fields that the data decide where the configuration is silent.

    atoms: frames of isolated atoms, whose energies are taken exactly.
    """
    numbers = numbers_of(train)
    elements = sorted({int(z) for own in numbers for z in np.unique(own)})
    reference = {}
    if "energy" in terms:
        reference = fit_reference_energies(
            [*numbers, *numbers_of(atoms)],
            [*energies_of(train), *energies_of(atoms)],
            free=[False] * len(train) + [True] * len(atoms),
            given=given_energies(config),
        )
    scale = forces_rms(train)
    decided = {
        "elements": elements,
        "avg_num_neighbors": max(neighbors_of(train), 1e-3),
        "scale": scale if np.isfinite(scale) and scale > 0 else 1.0,
        "dipole": bool({"dipole", "charges", "born_charges"} & {*terms}),
        "polarizability": "polarizability" in terms,
    }
    allowed = _fields(config.model.architecture)
    given = config.model.fields
    fields = {k: v for k, v in decided.items() if k in allowed} | given
    return {
        **config.card,
        "architecture": config.model.architecture,
        "fields": fields,
        "elements": elements,
        "cutoff": float(given["cutoff"]),
        "reference_energies": reference,
        "dtype": config.dtype,
        "units": {"energy": "eV", "length": "Å", "charge": "e"},
        "data": {
            name: {"file": Path(path).name, "sha256": file_hash(path)}
            for name, path in files_of(asdict(config)).items()
        },
        "training": {
            "loss": asdict(config.loss),
            "optimizer": asdict(config.optimizer),
            "seed": config.seed,
            "batch_atoms": config.batch_atoms,
        },
    }


def _fields(architecture):
    if architecture not in models.__all__:
        raise UsageError(
            f"unknown architecture '{architecture}'.{did_you_mean(architecture, models.__all__)}",
            where="model.architecture",
            fix=f"one of {', '.join(models.__all__)}",
        )
    return getattr(models, architecture).__dataclass_fields__


def check_dipoles(potential, fields, frames, terms) -> None:
    """Refuses dipoles of crystals for models whose dipole is a sum of charges times positions.

    Fractional charges make that sum depend on the images at which atoms are listed, by other
    amounts than e times lattice vectors. Charges that are transferred along bonds do not.
    """
    asked = {"dipole", "born_charges"} & {*terms}
    if not asked:
        return
    known = lambda labels: any(np.isfinite(labels.get(name, np.nan)).any() for name in asked)
    periodic = next((s for s, labels in frames if np.any(s.pbc) and known(labels)), None)
    if periodic is None or fields.get("charge_transfer"):
        return
    predicted = jax.eval_shape(
        lambda key: potential.apply(potential.init(key, periodic), periodic), jax.random.key(0)
    )
    if "charges" in predicted:
        raise UsageError(
            f"{' and '.join(sorted(asked))} of periodic structures: the dipole of this model is a "
            "sum of charges times positions, which in a crystal depends on the images of atoms",
            where="model.fields",
            fix="a model of atomic dipoles alone: MACE with charges: false",
        )

"""From a configuration to everything a run needs: frames, model card, compiled functions.

What the data decide (elements, reference energies, mean neighbour count, scale of the forces) is
filled into the model card here, so that the card alone can build the model again.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
import numpy as np

from jaxmlip import models
from jaxmlip.data.batching import Bucket, make_buckets, plan, waste
from jaxmlip.data.splits import load_split, save_split, split
from jaxmlip.data.statistics import average_neighbors, fit_reference_energies, rms
from jaxmlip.errors import UsageError, did_you_mean
from jaxmlip.interfaces.labels import read_labelled
from jaxmlip.models import checkpoint
from jaxmlip.potential import Potential, bind
from jaxmlip.train.accuracy import metric_sums, without_references
from jaxmlip.train.config import Config, weights
from jaxmlip.train.losses import Term, huber, squared
from jaxmlip.train.step import adam, training

SPLIT = "split.json"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that is ready to start."""

    config: Config
    card: dict
    terms: dict[str, Term]
    potential: Potential  # without reference energies
    train: list  # [(System, labels)], reference energies removed
    valid: list
    buckets: tuple[Bucket, ...]
    valid_buckets: tuple[Bucket, ...]
    steps: int  # planned
    init: Callable
    step: Callable
    sums: Callable

    @property
    def padding(self) -> float:
        """Share of the padded atoms that are not real."""
        atoms = [s.n_atoms for s, _ in self.train]
        return waste(self.buckets, plan(self.buckets, atoms, seed=self.config.seed), atoms)


def prepare(config: Config) -> Run:
    """Reads the data, fits what is fitted, builds model and step. Nothing is compiled yet."""
    terms = make_terms(config)
    train, valid = read_data(config, needed=tuple(terms))
    card = make_card(config, train, terms)
    potential = checkpoint.potential_of(card | {"reference_energies": {}})
    potential = bind(potential, [system for system, _ in train + valid])
    check_dipoles(potential, card["fields"], train, terms)
    train, valid = (
        _only(without_references(f, card["reference_energies"]), terms) for f in (train, valid)
    )
    buckets = make_buckets(train, n_buckets=config.buckets, max_atoms=config.batch_atoms)
    per_epoch = len(plan(buckets, [s.n_atoms for s, _ in train], seed=config.seed))
    o = config.optimizer
    optimizer = adam(clip=o.clip, weight_decay=o.weight_decay, amsgrad=o.amsgrad)
    init, step = training(potential, terms, optimizer=optimizer, ema=o.ema)
    return Run(
        config=config,
        card=card,
        terms=terms,
        potential=potential,
        train=train,
        valid=valid,
        buckets=buckets,
        steps=config.epochs * per_epoch,
        init=init,
        step=step,
        valid_buckets=make_buckets(valid, n_buckets=1, max_atoms=config.batch_atoms),
        sums=metric_sums(potential.apply, terms),
    )


def make_terms(config: Config) -> dict[str, Term]:
    """{label: Term} of the loss."""
    delta = config.loss.delta

    def function(name):
        if config.loss.function == "squared":
            return squared
        if isinstance(delta, dict) and name not in delta:
            raise UsageError(f"'loss.delta' has no entry for {name}: {delta}")
        return huber(float(delta[name] if isinstance(delta, dict) else delta))

    return {name: Term(w, function(name)) for name, w in weights(config).items()}


def read_data(config: Config, *, needed):
    """(training frames, validation frames); a split is written beside the run and used again."""
    read = lambda path: read_labelled(
        path,
        float(config.model.fields["cutoff"]),
        keys=config.data.keys,
        units=config.data.units,
        needed=needed,
        dtype=np.dtype(config.dtype),
    )
    frames = read(config.data.train)
    if config.data.valid is not None:
        return frames, read(config.data.valid)
    path = Path(config.output) / SPLIT
    if not path.is_file():
        part = split(len(frames), {"valid": config.data.valid_fraction}, seed=config.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_split(path, part)
    part = load_split(path)
    if sum(map(len, part.values())) != len(frames):
        raise UsageError(
            f"the split is of {sum(map(len, part.values()))} frames, the data have {len(frames)}",
            where=str(path),
            fix="use another output folder",
        )
    return [frames[i] for i in part["train"]], [frames[i] for i in part["valid"]]


def _only(frames, terms):
    return [(s, {k: v for k, v in labels.items() if k in terms}) for s, labels in frames]


def make_card(config: Config, train, terms) -> dict:
    """The model card, with the fields that the data decide where the configuration is silent."""
    systems = [s for s, _ in train]
    elements = sorted({int(z) for s in systems for z in np.unique(s.numbers)})
    reference = {}
    if "energy" in terms:
        energies = [labels["energy"][0] for _, labels in train]
        reference = fit_reference_energies([s.numbers for s in systems], energies)
    scale = rms([labels["forces"] for _, labels in train if "forces" in labels])
    decided = {
        "elements": elements,
        "avg_num_neighbors": max(average_neighbors(systems), 1e-3),
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
            for name, path in (("train", config.data.train), ("valid", config.data.valid))
            if path is not None
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


def file_hash(path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()

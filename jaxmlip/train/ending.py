"""What is computed at once, without steps: a linear readout, the errors of the last layer."""

from functools import partial
from pathlib import Path

import jax

from jaxmlip.errors import ResourceError
from jaxmlip.system import cast
from jaxmlip.train.evaluation.accuracy import add_up
from jaxmlip.train.evaluation.uncertainty import write_uncertainty
from jaxmlip.train.objective.losses import summary
from jaxmlip.train.saving import MODEL, keep_models
from jaxmlip.train.start.properties import ridge
from jaxmlip.train.steps.feed import made_valid


def solved(run, *, report) -> Path:
    """The path of the model with the linear readout of the property that fits the frames best."""
    p, init = run.config.property, run.init(jax.random.key(run.config.seed), run.train[0][0])
    params = run.merge(init.params)
    others = {k: v for k, v in run.card["properties"].items() if k != p.name}
    found = ridge(
        run.card | {"properties": others},
        params,
        p.name,
        run.train,
        extensive=p.extensive,
        unit=p.unit,
        batch_atoms=run.config.batch_atoms,
    )
    own = {"properties": {p.name: found.params["properties"][p.name]}}
    own = cast(own, run.config.dtype)
    sums = add_up(run.sums, own, run.valid, run.valid_buckets, make=partial(made_valid, run))
    card = found.card | {"accuracy": summary(sums), "epoch": 0}
    if not keep_models(run, found.params, card, best=True, report=report):
        raise ResourceError(
            "the model could not be written", where=run.config.output, fix="free some space"
        )
    message = (
        f"{p.name}: error of frames that were left out {found.error:.4g} {p.unit}, of their "
        f"composition alone {found.composition:.4g}, spread {found.spread:.4g}"
    )
    report({"event": "uncertainty", "message": message})
    path = Path(run.config.output) / MODEL
    report({"event": "done", "model": str(path), "best": found.error})
    return path


def add_uncertainty(run, path, *, report) -> None:
    """Adds the last layer's to the model file, and says how well it fits the validation errors."""
    loss = run.config.loss
    weights = {"energy": loss.energy, "forces": loss.forces}
    fitted = write_uncertainty(
        path, run.train, run.valid, weights=weights, batch_atoms=run.config.batch_atoms
    )
    found = fitted.calibration
    message = (
        f"uncertainty of the last layer: {1e3 * found['sharpness']:.3g} meV where the errors of "
        f"energies are {1e3 * found['rmse']:.3g} meV, miscalibration area "
        f"{found['miscalibration_area']:.3f}, rank correlation {found['spearman']:.2f}"
    )
    report({"event": "uncertainty", "message": message, **found})

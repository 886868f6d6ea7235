"""A training run as data: frozen dataclasses read from YAML, every key and value checked.

A key that is not known, twice there, or out of range is an error with its file and line: a typo
must not cost a night. Paths are relative to the file.
"""

from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path

import yaml

from jaxmlip import models
from jaxmlip.errors import UsageError, did_you_mean


def _number(default=MISSING, *, above=None, least=None, most=None):
    return field(default=default, metadata={"above": above, "least": least, "most": most})


@dataclass(frozen=True, kw_only=True)
class Model:
    architecture: str = "MACE"
    fields: dict = field(default_factory=dict)  # what is absent is filled from the data


@dataclass(frozen=True, kw_only=True)
class Data:
    train: str
    valid: str | None = None  # None: a share of the training frames
    valid_fraction: float = _number(0.05, above=0, most=0.5)
    keys: dict = field(default_factory=dict)  # {label: key in the file}
    units: dict = field(default_factory=dict)  # {label: unit in the file}: interfaces.labels.UNITS
    reference_energies: dict = field(default_factory=dict)  # {element: eV}; the rest is fitted
    train_isolated_atoms: bool = False  # otherwise they tell reference energies only
    group_key: str | None = None  # frames that have one value of it come into one part of the split
    checks: bool = True  # of units, signs and outliers, by statistics


@dataclass(frozen=True, kw_only=True)
class Loss:
    energy: float = _number(1.0, least=0)
    forces: float = _number(10.0, least=0)
    stress: float = _number(0.0, least=0)
    dipole: float = _number(0.0, least=0)
    polarizability: float = _number(0.0, least=0)
    charges: float = _number(0.0, least=0)
    born_charges: float = _number(0.0, least=0)
    hessian: float = _number(0.0, least=0)  # its products with directions: see Curvature
    function: str | dict = "squared"  # one of FUNCTIONS for all, or {label: function}
    delta: float | dict = _number(0.01, above=0)  # of huber: one for all, or {label: delta}
    energy_per: str = "atom"  # or structure: the total-energy form of the MACE paper
    stress_as: str = "stress"  # or virial: eV per atom instead of eV/Å³
    config_type_weights: dict = field(default_factory=dict)  # {config_type of a frame: weight}


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    learning_rate: float = _number(0.005, above=0)
    floor: float = _number(0.01, least=0, most=1)  # share of the learning rate left at the end
    warmup_steps: int = _number(200, least=0)
    weight_decay: float = _number(1e-6, least=0)
    clip: float = _number(10.0, above=0)
    ema: float = _number(0.99, least=0, most=0.999999)
    amsgrad: bool = True
    method: str = "adam"  # AdamW or AMSGrad; or muon, schedule_free
    schedule: str = "cosine"  # or constant, plateau (both after the same warm-up)
    factor: float = _number(0.8, above=0, most=1)  # of a plateau
    plateau: int = _number(50, least=0)  # validations without a better one before it


@dataclass(frozen=True, kw_only=True)
class Curvature:
    """Where labels of second derivatives come from and how many of them a step looks at."""

    hessians: str | None = None  # .npz: one [3n, 3n] a training frame (interfaces.hessians)
    valid_hessians: str | None = None
    force_constants: list = field(default_factory=list)  # phonopy files: more training frames
    teacher: str | None = None  # a potential, for the frames that have no Hessian
    teacher_directions: int = _number(0, least=0)  # its products a frame; 0: its whole Hessian
    directions: int = _number(1, least=1)  # a structure and step
    draw: str = "rademacher"  # or normal, single (one of the known directions: a column)
    every: int = _number(2, least=1)  # steps from one with curvature (3 to 4 times as dear) on


@dataclass(frozen=True, kw_only=True)
class SecondStage:
    """Other weights and a constant learning rate from a share of the run on (None: as before)."""

    start: float = _number(0.75, above=0, most=1)
    learning_rate: float | None = _number(0.001, above=0)  # None: the schedule goes on
    energy: float | None = _number(None, least=0)
    forces: float | None = _number(None, least=0)
    stress: float | None = _number(None, least=0)
    dipole: float | None = _number(None, least=0)
    polarizability: float | None = _number(None, least=0)
    charges: float | None = _number(None, least=0)
    born_charges: float | None = _number(None, least=0)
    hessian: float | None = _number(None, least=0)


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run begins with instead of random parameters (`train.start`)."""

    model: str | None = None  # a file of ours, or a name or file that `find` of `train` knows
    update: str = "all"  # of its parameters; or last (readouts), lora (low ranks)
    rank: int = _number(4, least=1)  # of lora
    reference_energies: str | dict = "refit"  # or keep; or {element: eV}
    like: dict = field(default_factory=dict)  # {new element: the known one that it begins like}
    heads: list = field(default_factory=list)  # levels of theory, each with its own readouts
    head: str | None = None  # of frames that do not name one (info key `head`)


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Frames of other data that are trained on beside the new ones, so as not to be forgotten."""

    train: str
    fraction: float = _number(0.5, above=0, most=0.99)  # of all training frames, as far as it goes
    weight: float = _number(1.0, above=0)  # of each of its frames
    labels: str = "file"  # or start: what the model that is started from predicts
    keys: dict = field(default_factory=dict)  # as of data
    units: dict = field(default_factory=dict)
    head: str | None = None  # of frames that do not name one


@dataclass(frozen=True, kw_only=True)
class Config:
    """One training run."""

    data: Data
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    curvature: Curvature = field(default_factory=Curvature)
    second_stage: SecondStage | None = None
    start: Start | None = None
    replay: Replay | None = None
    metric: str = "loss"  # of validation, what is best: or a name like forces_mae_meV_per_A
    patience: int | None = _number(None, least=1)  # validations without a better one: the end
    remat: str = "none"  # or dots, all: what backward passes compute again to save memory
    epochs: int = _number(100, least=1)
    hours: float | None = _number(None, above=0)  # the schedule ends here if it comes first
    ensemble: int = _number(1, least=1)  # members, trained together, in one model file
    ensemble_share: float = _number(1.0, above=0, most=1)  # of the frames that each member sees
    uncertainty: bool = False  # fit that of the last layer when the training is done
    batch_atoms: int = _number(192, least=1)
    buckets: int = _number(2, least=0)  # padded shapes; 0: as few, up to 6, as bound the padding
    seed: int = _number(0, least=0)
    dtype: str = "float32"
    output: str = "runs/train"
    checkpoint_minutes: float = _number(5.0, least=0)
    card: dict = field(default_factory=dict)  # copied into the model: level of theory, licence ...


SECTIONS = {
    "data": Data,
    "model": Model,
    "loss": Loss,
    "optimizer": Optimizer,
    "curvature": Curvature,
    "second_stage": SecondStage,
    "start": Start,
    "replay": Replay,
}
FUNCTIONS = ("squared", "absolute", "huber", "universal")
CHOICES = {
    "dtype": ("float32", "float64"),
    "remat": ("none", "dots", "all"),
    "loss.function": FUNCTIONS,
    "loss.energy_per": ("atom", "structure"),
    "loss.stress_as": ("stress", "virial"),
    "optimizer.method": ("adam", "muon", "schedule_free"),
    "optimizer.schedule": ("cosine", "constant", "plateau"),
    "start.update": ("all", "last", "lora"),
    "replay.labels": ("file", "start"),
    "curvature.draw": ("rademacher", "normal", "single"),
}
MAY_CHANGE = ("output", "epochs", "hours", "checkpoint_minutes", "card", "patience")
LABELS = (
    *("energy", "forces", "stress"),
    *("dipole", "polarizability", "charges", "born_charges", "hessian"),
)


def read_config(path, *, overrides: dict | None = None) -> Config:
    """The run in a YAML file. overrides: {'optimizer.learning_rate': 0.01} or nested dicts."""
    path = Path(path)
    try:
        text = path.read_text()
        values, lines = yaml.safe_load(text) or {}, _lines(yaml.compose(text), path)
    except OSError as error:
        raise UsageError(
            f"cannot read the configuration: {error.strerror}", where=str(path)
        ) from error
    except yaml.YAMLError as error:
        raise UsageError(f"not valid YAML: {error}", where=str(path)) from error
    if not isinstance(values, dict):
        raise UsageError("expected 'key: value' lines", where=str(path))
    given = _dotted(overrides or {})
    for key, value in given.items():
        _put(values, key.split("."), value)
    where = lambda key: (
        f"override {key}" if key in given else f"{path}:{lines[key]}" if key in lines else str(path)
    )
    config = _section(Config, values, "", where)
    return _resolved(config, path.resolve().parent, where)


def _lines(node, path, prefix=""):
    """{dotted key: line}; YAML itself would let a key stand twice and keep the last."""
    out = {}
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        name = f"{prefix}{key.value}"
        if name in out:
            raise UsageError(
                f"'{name}' is given twice (first in line {out[name]})",
                where=f"{path}:{key.start_mark.line + 1}",
            )
        out[name] = key.start_mark.line + 1
        out |= _lines(value, path, f"{name}.")
    return out


def _dotted(values, prefix=""):
    out = {}
    for key, value in values.items():
        nested = isinstance(value, dict) and value
        out |= _dotted(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return out


def _put(values, keys, value):
    for key in keys[:-1]:
        values = values.setdefault(key, {})
    values[keys[-1]] = value


def _section(cls, values, prefix, where):
    known = {f.name: f for f in fields(cls)}
    if not isinstance(values, dict):
        raise UsageError(
            f"'{prefix[:-1]}' must hold keys, got {values!r}", where=where(prefix[:-1])
        )
    for key in values:
        if key not in known:
            raise UsageError(
                f"unknown key '{prefix}{key}'.{did_you_mean(key, known)}",
                where=where(f"{prefix}{key}"),
                fix=f"one of {', '.join(known)}",
            )
    out = {}
    for name, spec in known.items():
        if name in values:
            key = f"{prefix}{name}"
            section = name in SECTIONS and not prefix
            out[name] = (
                _section(SECTIONS[name], values[name], f"{name}.", where)
                if section and not (values[name] is None and spec.default is None)
                else _value(spec, values[name], key, where)
            )
        elif spec.default is MISSING and spec.default_factory is MISSING:
            raise UsageError(f"'{prefix}{name}' is missing", where=where(prefix[:-1]))
    return cls(**out)


def _value(spec, value, key, where):
    kinds = getattr(spec.type, "__args__", None) or (spec.type,)
    if float in kinds and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML reads 1e-6 as a string
        except ValueError:
            pass
    if isinstance(value, bool) and bool not in kinds or not isinstance(value, kinds):
        names = " or ".join("nothing" if k is type(None) else k.__name__ for k in kinds)
        raise UsageError(f"'{key}' must be {names}, got {value!r}", where=where(key))
    chosen = value.items() if isinstance(value, dict) and key in CHOICES else [(None, value)]
    for label, choice in chosen if key in CHOICES else ():
        if choice not in CHOICES[key]:
            raise UsageError(
                f"'{key}{f'.{label}' if label else ''}' is {choice!r}."
                f"{did_you_mean(choice, CHOICES[key])}",
                where=where(key),
                fix=f"one of {', '.join(CHOICES[key])}",
            )
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_range(spec.metadata, value, key, where)
    return value


def _check_range(limits, value, key, where):
    above, least, most = (limits.get(k) for k in ("above", "least", "most"))
    sound = (
        (above is None or value > above)
        and (least is None or value >= least)
        and (most is None or value <= most)
    )
    if not sound:
        words = [
            f"{word} {limit}"
            for word, limit in (("above", above), ("at least", least), ("at most", most))
            if limit is not None
        ]
        raise UsageError(f"'{key}' is {value}, must be {' and '.join(words)}", where=where(key))


def _resolved(config, folder, where):
    """Paths made absolute, data files seen to exist, the cutoff and the loss checked."""
    from_file = lambda p: None if p is None else str((folder / Path(p).expanduser()).resolve())
    data = replace(
        config.data, train=from_file(config.data.train), valid=from_file(config.data.valid)
    )
    for name in ("train", "valid"):
        file = getattr(data, name)
        if file is not None and not Path(file).is_file():
            raise UsageError(f"'data.{name}': no such file {file}", where=where(f"data.{name}"))
    _check_fields(config.model, where)
    cutoff = config.model.fields.get("cutoff")
    started = config.start is not None and config.start.model is not None
    if not started and (not isinstance(cutoff, int | float) or not cutoff > 0):
        raise UsageError(
            f"'model.fields.cutoff' is {cutoff}, must be a length above 0 in Å",
            where=where("model.fields.cutoff"),
        )
    if not weights(config):
        raise UsageError("every weight of the loss is zero", where=where("loss"))
    for key in ("loss.function", "loss.delta"):
        _check_labels(getattr(config.loss, key[5:]), key, where)
    return replace(
        config,
        data=data,
        curvature=_curvature(config, from_file, where),
        start=_start(config, from_file, where),
        replay=_replay(config, from_file, where),
        output=from_file(config.output),
    )


def _check_labels(values, key, where):
    for name in values if isinstance(values, dict) else ():
        if name not in LABELS:
            raise UsageError(
                f"'{key}' names '{name}', which is no label.{did_you_mean(name, LABELS)}",
                where=where(key),
                fix=f"one of {', '.join(LABELS)}",
            )


def _curvature(config, from_file, where) -> Curvature:
    """Its files made absolute and seen to exist; a weight without a source is refused."""
    c = config.curvature
    names = [n for n in ("hessians", "valid_hessians", "teacher") if getattr(c, n) is not None]
    found = {n: from_file(getattr(c, n)) for n in names}
    if c.teacher is not None and not Path(found["teacher"]).is_file():
        del found["teacher"]  # the name of a potential
    found["force_constants"] = [from_file(str(file)) for file in c.force_constants]
    for name, files in found.items():
        for file in files if isinstance(files, list) else [files]:
            if not Path(file).is_file():
                raise UsageError(
                    f"'curvature.{name}': no such file {file}", where=where(f"curvature.{name}")
                )
    sources = (c.hessians, c.force_constants, c.teacher)
    if "hessian" in weights(config) and not any(sources):
        raise UsageError(
            "'loss.hessian' has a weight, but nothing says where Hessians come from",
            where=where("loss.hessian"),
            fix="curvature: hessians, force_constants or teacher",
        )
    return replace(c, **found)


def _start(config, from_file, where) -> Start | None:
    """Its model made absolute if it is a file; heads and references that can be used."""
    s, given = config.start, lambda name: where(f"start.{name}")
    if s is None:
        return None
    if s.reference_energies not in ("refit", "keep") and not isinstance(s.reference_energies, dict):
        raise UsageError(
            f"'start.reference_energies' is '{s.reference_energies}'",
            where=given("reference_energies"),
            fix="refit, keep, or {element: eV}",
        )
    if s.heads and (len(s.heads) < 2 or len(set(map(str, s.heads))) < len(s.heads)):
        raise UsageError(
            f"'start.heads' must be two or more different names, got {s.heads}",
            where=given("heads"),
        )
    for name, head in (("start", s.head), ("replay", config.replay and config.replay.head)):
        if head is not None and head not in s.heads:
            raise UsageError(
                f"'{name}.head' is '{head}', the heads are {s.heads}.{did_you_mean(head, s.heads)}",
                where=where(f"{name}.head"),
            )
    file = None if s.model is None else from_file(s.model)
    is_file = file is not None and Path(file).is_file()
    return replace(s, model=file if is_file else s.model, heads=[str(h) for h in s.heads])


def _replay(config, from_file, where) -> Replay | None:
    """Its file made absolute and seen to exist; labels of a start only where there is one."""
    r = config.replay
    if r is None:
        return None
    if not Path(from_file(r.train)).is_file():
        raise UsageError(
            f"'replay.train': no such file {from_file(r.train)}", where=where("replay.train")
        )
    if r.labels == "start" and (config.start is None or config.start.model is None):
        raise UsageError(
            "'replay.labels' is start, and there is no model to start from",
            where=where("replay.labels"),
            fix="start: {model: ...}",
        )
    return replace(r, train=from_file(r.train))


def _check_fields(model: Model, where):
    """Names and kinds of the fields of the architecture, before anything is written."""
    known = models.architectures()
    if model.architecture not in known:
        raise UsageError(
            f"unknown architecture '{model.architecture}'."
            f"{did_you_mean(model.architecture, known)}",
            where=where("model.architecture"),
            fix=f"one of {', '.join(known)}",
        )
    specs = known[model.architecture].__dataclass_fields__
    allowed = [name for name in specs if name not in ("parent", "name")]
    for name, value in model.fields.items():
        key = f"model.fields.{name}"
        if name not in allowed:
            raise UsageError(
                f"{model.architecture} has no field '{name}'.{did_you_mean(name, allowed)}",
                where=where(key),
                fix=f"one of {', '.join(allowed)}",
            )
        default = specs[name].default
        number = isinstance(default, int | float) and not isinstance(default, bool)
        if number and (isinstance(value, bool) or not isinstance(value, int | float | list)):
            raise UsageError(f"'{key}' must be a number, got {value!r}", where=where(key))
        if isinstance(default, bool) and not isinstance(value, bool):
            raise UsageError(f"'{key}' must be true or false, got {value!r}", where=where(key))


def weights(config: Config) -> dict[str, float]:
    """{label: weight} of the labels with a weight above zero in any stage; that of the first."""
    first, second = (stage_weights(config, stage) for stage in (1, 2))
    return {name: first[name] for name in LABELS if first[name] > 0 or second[name] > 0}


def stage_weights(config: Config, stage: int) -> dict[str, float]:
    """{label: weight} of every label in stage 1 or 2."""
    first = {name: getattr(config.loss, name) for name in LABELS}
    if stage == 1 or config.second_stage is None:
        return first
    given = {name: getattr(config.second_stage, name) for name in LABELS}
    return {name: first[name] if given[name] is None else given[name] for name in LABELS}


def _unknown(key, old):
    return key not in old and not any(k.startswith(f"{key}.") for k in old)


def changes(old: dict, new: dict) -> list[str]:
    """'key: old -> new' of every difference that makes it another run.

    What an older version did not know yet stands at its default.
    """
    default = asdict(Config(data=Data(train="")))
    kept = lambda values: {k: v for k, v in _dotted(values).items() if v not in ({}, [], None)}
    new, old = kept(new), kept(old)
    old = {k: v for k, v in kept(default).items() if _unknown(k, old)} | old
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if key.split(".")[0] not in MAY_CHANGE and old.get(key) != new.get(key)
    ]

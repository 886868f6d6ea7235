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


@dataclass(frozen=True, kw_only=True)
class Loss:
    energy: float = _number(1.0, least=0)
    forces: float = _number(10.0, least=0)
    stress: float = _number(0.0, least=0)
    dipole: float = _number(0.0, least=0)
    polarizability: float = _number(0.0, least=0)
    charges: float = _number(0.0, least=0)
    born_charges: float = _number(0.0, least=0)
    function: str = "squared"  # or huber
    delta: float | dict = _number(0.01, above=0)  # of huber: one for all, or {label: delta}


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    learning_rate: float = _number(0.005, above=0)
    floor: float = _number(0.01, least=0, most=1)  # share of the learning rate left at the end
    warmup_steps: int = _number(200, least=0)
    weight_decay: float = _number(1e-6, least=0)
    clip: float = _number(10.0, above=0)
    ema: float = _number(0.99, least=0, most=0.999999)
    amsgrad: bool = True


@dataclass(frozen=True, kw_only=True)
class Config:
    """One training run."""

    data: Data
    model: Model = field(default_factory=Model)
    loss: Loss = field(default_factory=Loss)
    optimizer: Optimizer = field(default_factory=Optimizer)
    epochs: int = _number(100, least=1)
    hours: float | None = _number(None, above=0)  # the schedule ends here if it comes first
    batch_atoms: int = _number(192, least=1)
    buckets: int = _number(2, least=1)
    seed: int = _number(0, least=0)
    dtype: str = "float32"
    output: str = "runs/train"
    checkpoint_minutes: float = _number(5.0, least=0)
    card: dict = field(default_factory=dict)  # copied into the model: level of theory, licence ...


SECTIONS = {"data": Data, "model": Model, "loss": Loss, "optimizer": Optimizer}
CHOICES = {"dtype": ("float32", "float64"), "loss.function": ("squared", "huber")}
MAY_CHANGE = ("output", "epochs", "hours", "checkpoint_minutes", "card")


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
            out[name] = (
                _section(SECTIONS[name], values[name], f"{name}.", where)
                if name in SECTIONS and not prefix
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
    if key in CHOICES and value not in CHOICES[key]:
        raise UsageError(
            f"'{key}' is {value!r}.{did_you_mean(value, CHOICES[key])}",
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
    if not isinstance(cutoff, int | float) or not cutoff > 0:
        raise UsageError(
            f"'model.fields.cutoff' is {cutoff}, must be a length above 0 in Å",
            where=where("model.fields.cutoff"),
        )
    if not weights(config):
        raise UsageError("every weight of the loss is zero", where=where("loss"))
    return replace(config, data=data, output=from_file(config.output))


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
    """{label: weight} of the labels with a weight above zero."""
    terms = {k: v for k, v in asdict(config.loss).items() if k not in ("function", "delta")}
    return {k: v for k, v in terms.items() if v > 0}


def changes(old: dict, new: dict) -> list[str]:
    """'key: old -> new' of every difference that makes it another run."""
    old, new = _dotted(old), _dotted(new)
    return [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if key.split(".")[0] not in MAY_CHANGE and old.get(key) != new.get(key)
    ]

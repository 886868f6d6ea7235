"""A training run read from YAML, every key and value checked (`settings` has the classes).

A key that is not known, twice there, or out of range is an error with its file and line: a typo
must not cost a night. Paths are relative to the file.
"""

from dataclasses import MISSING, asdict, fields
from pathlib import Path

import yaml

from jaxmlip.errors import UsageError, did_you_mean
from jaxmlip.train.config.resolve import resolved
from jaxmlip.train.config.settings import CHOICES, MAY_CHANGE, SECTIONS, Config, Data


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
    return resolved(config, path.resolve().parent, where)


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
        if not {key, key.split(".")[0]} & {*MAY_CHANGE} and old.get(key) != new.get(key)
    ]

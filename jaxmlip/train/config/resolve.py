"""What a configuration says together: paths, files, fields of the architecture, labels, heads."""

from dataclasses import replace
from pathlib import Path

from jaxmlip import models
from jaxmlip.errors import UsageError, did_you_mean
from jaxmlip.train.config.settings import LABELS, Config, Curvature, Model, Replay, Start, weights


def resolved(config: Config, folder: Path, where) -> Config:
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
    if isinstance(config.devices, str) and config.devices != "all":
        raise UsageError(
            f"'devices' is '{config.devices}'", where=where("devices"), fix="a number, or all"
        )
    if not weights(config):
        raise UsageError("every weight of the loss is zero", where=where("loss"))
    for key in ("loss.function", "loss.delta"):
        _check_labels(getattr(config.loss, key[5:]), key, where)
    _check_property(config, where)
    return replace(
        config,
        data=data,
        curvature=_curvature(config, from_file, where),
        start=_start(config, from_file, where),
        replay=_replay(config, from_file, where),
        output=from_file(config.output),
    )


def _check_property(config, where):
    """A readout of a frozen model: what would train something else is refused."""
    if config.property is None:
        return
    if config.start is None or config.start.model is None:
        raise UsageError(
            "a property is read from the features of a model, and there is none",
            where=where("property"),
            fix="start: {model: ...}",
        )
    beside = {
        "replay": config.replay,
        "second_stage": config.second_stage,
        "start.heads": config.start.heads,
        "ensemble": config.ensemble > 1,
        "uncertainty": config.uncertainty,
    }
    for name, given in beside.items():
        if given:
            raise UsageError(f"'{name}' and 'property' do not combine", where=where(name))


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

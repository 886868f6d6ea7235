"""`jaxmlip check-data`: what labelled files hold, what is wrong with them, how to train on them."""

from pathlib import Path
from typing import Annotated

import typer

from jaxmlip.cli import options
from jaxmlip.cli.output import note, plan, table, task, write, write_text
from jaxmlip.errors import UsageError

CUTOFF = 5.0  # Å, of the proposed model
TRAINED = {"energy": 1.0, "forces": 10.0, "stress": 1.0}  # weights proposed where labels are there


def check_data(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE]...",
            show_default=False,
            help="Labelled structures (extended XYZ, ASE db, HDF5; .gz and .xz too): the training "
            "file first, then others of the same set.",
        ),
    ] = None,
    train: Annotated[str | None, typer.Option(metavar="FILE", help="Training frames.")] = None,
    valid: Annotated[str | None, typer.Option(metavar="FILE", help="Validation frames.")] = None,
    test: Annotated[str | None, typer.Option(metavar="FILE", help="Test frames.")] = None,
    key: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=KEY",
            help="Where a label is in the files, such as energy=dft_energy; may be repeated.",
        ),
    ] = None,
    unit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=UNIT",
            help="Unit of a label in the files, such as forces=Ha/bohr, stress=kbar or "
            "forces=-eV/A (gradients); may be repeated.",
        ),
    ] = None,
    write_config: Annotated[
        Path | None,
        typer.Option(metavar="YAML", help="Write the configuration that is proposed."),
    ] = None,
    convert: Annotated[
        Path | None,
        typer.Option(metavar="H5", help="Write the frames of the first file as HDF5, too."),
    ] = None,
    skip_bad: Annotated[
        bool,
        typer.Option("--skip-bad", help="Leave out, and name, frames that cannot be read."),
    ] = False,
    json: options.Json = None,
    overwrite: options.Overwrite = False,
):
    """The card of a data set: labels, units, duplicates, leakage, outliers, reference energies.

    Exit status 1 if a fault was found, 0 if only notes. eV, eV/Å, eV/Å³ and ASE's sign of the
    stress are expected. A configuration for `jaxmlip train` is proposed.
    """
    from jaxmlip.cli import session

    parts = _parts(files or (), train, valid, test)
    first = next(iter(parts.values()))
    output = plan(first, [], json_file=json, overwrite=overwrite)
    for path in (write_config, convert):
        if path is not None and path.exists() and not overwrite:
            raise UsageError(
                "the file is already there", where=str(path), code="JM104", fix="--overwrite"
            )
    keys, units = _keys(first, key, unit)
    bad: list = []
    surveys = _surveys(parts, keys, units, bad if skip_bad else None)
    with task("checking") as tell:
        from jaxmlip.data import card

        found, reference = card.inspect(surveys)
        tell(f"{sum(f.fault for f in found)} fault(s), {len(found)} finding(s)")
    cards = [card.describe(s) for s in surveys]
    config = suggest(parts, surveys, found, reference, keys, units, base=_folder(write_config))
    _show(output, cards, reference, found, bad, config)
    if write_config is not None:
        write_text(write_config, config)
        note(f"written: {write_config}")
    if convert is not None:
        _convert(first, convert, skip_bad)
    output.finish(
        {"command": "check-data", **session.versions(), **_flat(parts, cards, reference)}
        | {"findings": [vars(f) for f in found], "n_faults": sum(f.fault for f in found)}
        | {"bad_frames": [str(e) for e in bad], "suggested_config": config}
    )
    if any(f.fault for f in found) or bad:
        raise typer.Exit(1)


def _parts(files, train, valid, test) -> dict[str, str]:
    """{part: file}, the training file first."""
    named = {"train": train, "valid": valid, "test": test}
    parts = {name: path for name, path in named.items() if path is not None}
    free = [name for name in ("train", "valid", "test") if name not in parts]
    for i, path in enumerate(files):
        parts[free[i] if i < len(free) else f"file{i + 1}"] = path
    if not parts:
        raise UsageError("no file is given", where="check-data", fix="jaxmlip check-data FILE")
    return {k: parts[k] for k in sorted(parts, key=("train", "valid", "test", *parts).index)}


def _keys(path, key, unit):
    """Keys and units that are named, and for the other labels those that are found."""
    from jaxmlip.cli.evaluate import _pairs
    from jaxmlip.interfaces.guess_keys import guess_keys

    named = _pairs(key or (), "--key", "energy=dft_energy")
    units = _pairs(unit or (), "--unit", "stress=kbar")
    guessed, guessed_units = guess_keys(path)
    guessed = {k: v for k, v in guessed.items() if k not in named}
    for label, found in guessed.items():
        note(f"{label} is read from '{found}': there is no 'REF_{label}'")
    new = {k: v for k, v in guessed_units.items() if k in guessed and k not in units}
    return guessed | named, new | units


def _surveys(parts, keys, units, bad):
    from jaxmlip.data.survey import survey
    from jaxmlip.errors import DataError
    from jaxmlip.interfaces.labels import iter_labelled

    out = []
    on_bad = None if bad is None else bad.append
    for path in parts.values():
        with task(f"reading {path}") as tell:
            frames = iter_labelled(path, None, keys=keys, units=units, on_bad=on_bad)
            out.append(survey(frames, name=Path(path).name))
            if not len(out[-1]):
                raise DataError("the file has no frames", where=path, code="JM202")
            tell(f"{len(out[-1])} frames, {int(out[-1]['n_atoms'].sum())} atoms")
    return out


def _folder(path):
    return Path.cwd() if path is None else path.resolve().parent


def _convert(source, target, skip_bad):
    from jaxmlip.interfaces.datasets import iter_atoms
    from jaxmlip.interfaces.hdf5 import write_frames

    with task(f"writing {target}") as tell:
        frames = iter_atoms(source, on_bad=(lambda error: None) if skip_bad else None)
        write(target, lambda partial: tell(f"{write_frames(partial, frames)} frames"))


# --- the configuration that is proposed ----------------------------------------------------------


def suggest(parts, surveys, found, reference, keys, units, *, base: Path) -> str:
    """YAML that `jaxmlip train` takes as it is; paths relative to the folder `base`."""
    import os

    import yaml

    from jaxmlip.data.faults import mending_units

    one = surveys[0]
    units = units | mending_units(found, units)
    place = lambda path: os.path.relpath(Path(path).resolve(), base)
    names = list(parts)
    data = {"train": place(parts[names[0]])}
    if "valid" in parts and names[0] == "train":
        data["valid"] = place(parts["valid"])
    data |= {"keys": keys} if keys else {}
    data |= {"units": units} if units else {}
    if (table := _table_of(one, reference)) and not units.get("energy"):
        data["reference_energies"] = table
    labels = one.labels
    loss = {name: TRAINED[name] if name in labels else 0.0 for name in TRAINED}
    config = {
        "data": data,
        "model": {"architecture": "MACE", "fields": {"cutoff": CUTOFF}},
        "loss": loss,
        "batch_atoms": max(192, int(one["n_atoms"].max())),
        "output": f"runs/{Path(parts[names[0]]).name.partition('.')[0]}",
    }
    other = [name for name in labels if name not in TRAINED and "weight" not in name]
    note_ = f"# labels that are there, too: {', '.join(other)} (give them a weight under loss)\n"
    return (note_ if other else "") + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _table_of(one, reference):
    """Energies of isolated atoms that are not in the training file itself."""
    from ase.data import chemical_symbols

    if reference is None or "isolated atom" not in reference.source.values():
        return {}
    own = {z for (z, _), *_ in (c[0] for c in one.compositions) if one["free"].any()}
    known = [z for z, source in reference.source.items() if source == "isolated atom"]
    if one["free"].any() and own >= set(known):
        return {}
    return {chemical_symbols[z]: reference.values[z] for z in known}


# --- what a person sees --------------------------------------------------------------------------


def _flat(parts, cards, reference) -> dict:
    from ase.data import chemical_symbols

    out = {}
    for part, card in zip(parts, cards, strict=True):
        card = card | {"elements": [chemical_symbols[z] for z in card["elements"]]}
        out |= {f"{part}_{name}": value for name, value in card.items()}
    if reference is not None:
        named = {chemical_symbols[z]: e for z, e in reference.values.items()}
        out["reference_energies_eV"] = named
        out["reference_energies_source"] = {
            chemical_symbols[z]: s for z, s in reference.source.items()
        }
        out["reference_energies_condition"] = reference.condition
        out["binding_energy_eV_per_atom"] = reference.binding
    return out


ROWS = {
    "n_frames": "frames",
    "n_atoms": "atoms",
    "elements": "elements",
    "n_compositions": "compositions",
    "n_isolated_atoms": "isolated atoms",
    "periodicity": "periodicity",
    "labels": "labels (frames)",
    "keys_used": "read from",
    "config_types": "config_type",
    "atoms_per_frame_median": "atoms a frame (median)",
    "energy_mean_eV_per_atom": "energy, eV/atom",
    "forces_rms_eV_per_A": "forces (rms), eV/Å",
    "force_max_eV_per_A": "longest force, eV/Å",
    "stress_max_eV_per_A3": "largest stress, eV/Å³",
}


def _show(output, cards, reference, found, bad, config):
    from ase.data import chemical_symbols

    print_ = output.console.print
    cards = [c | {"elements": [chemical_symbols[z] for z in c["elements"]]} for c in cards]
    rows = [(title, *(_text(c[name]) for c in cards)) for name, title in ROWS.items()]
    print_(table({"": "left"} | {c["file"]: "left" for c in cards}, rows))
    if reference is not None:
        print_()
        print_(_reference_table(reference))
    for error in bad:
        print_(f"bad frame: {error}")
    print_()
    for f in found:
        print_(f"{'FAULT' if f.fault else 'note'}  {f.name}: {f.text}")
    if not found:
        print_("nothing wrong was found")
    print_(f"\nproposed configuration (jaxmlip train):\n\n{config}")


def _reference_table(reference):
    from ase.data import chemical_symbols

    rows = [
        (chemical_symbols[z], f"{e:.6f}", reference.source[z]) for z, e in reference.values.items()
    ]
    title = f"Reference energies; structures are {reference.binding:.3f} eV/atom above (median)"
    title += f", condition of the fit {reference.condition:.3g}"
    return table({"": "left", "eV": "right", "source": "left"}, rows, title=title)


def _text(value) -> str:
    if isinstance(value, dict):
        inner = lambda v: "+".join(map(str, v)) if isinstance(v, dict) else str(v)
        return ", ".join(f"{k} ({inner(v)})" for k, v in list(value.items())[:8]) or "-"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "-" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)

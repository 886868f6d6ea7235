"""What must be settled before the first array: precision, compilation cache, model, structure."""

import os
import stat
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from jaxmlip.cli.output import Output, note
from jaxmlip.errors import ModelError, ResourceError, UsageError

MISCOMPILES = ("0.10.2",)  # versions of JAX with wrong numbers on CPU (vmapped matmul + reduce)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A potential that is ready for use."""

    name: str
    potential: tuple
    params: dict
    card: dict
    dtype: str

    @property
    def summary(self) -> dict:
        """What every JSON says of the model."""
        return {
            "model": self.name,
            "model_sha256": self.card["sha256"],
            "dtype": self.dtype,
            "level_of_theory": self.card.get("level_of_theory"),
        }


def start(*, x64: bool) -> None:
    """Sets JAX up. Raises `ResourceError` for a version that gives wrong numbers."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # what is wrong comes as an exception
    import jax

    if jax.__version__ in MISCOMPILES:
        raise ResourceError(
            f"jax {jax.__version__} gives wrong numbers on CPU",
            code="JM404",
            fix="pip install 'jax!=0.10.2'",
        )
    jax.config.update("jax_enable_x64", x64)
    jax.config.update("jax_default_matmul_precision", "highest")  # TF32 ruins curvature
    folder = cache_folder()
    if folder is not None and not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def cache_folder() -> Path | None:
    """Where compiled programs are kept, made if need be; None where that is not safe or possible.

    What is in it is run: it must belong to this user alone. One folder for each version and kind
    of processor, since home folders are shared between machines.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxmlip"
        folder = base / _machine()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        info = folder.stat()
    except (OSError, RuntimeError):
        return None
    foreign = hasattr(os, "getuid") and info.st_uid != os.getuid()
    shared = info.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return None if foreign or shared or not os.access(folder, os.W_OK) else folder


def _machine() -> str:
    import hashlib
    import platform
    from importlib.metadata import version

    cpu = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        flags = [line for line in info.read_text().splitlines() if line.startswith("flags")]
        cpu += "".join(flags[:1])
    return f"jaxlib-{version('jaxlib')}-{hashlib.sha256(cpu.encode()).hexdigest()[:8]}"


def open_model(
    model: str,
    dtype: str,
    *,
    needs_energy: bool = True,
    needs_dipole: bool = False,
    needs_polarizability: bool = False,
) -> Opened:
    """The potential with its parameters in `dtype`; `start` comes first.

    Raises `ModelError` for one that does not predict what is needed.
    """
    from jaxmlip import pretrained
    from jaxmlip.models import checkpoint
    from jaxmlip.pretrained import pull
    from jaxmlip.system import cast

    path = pretrained.path_of(model)
    potential, params, card = checkpoint.load(path, needs_energy=needs_energy)
    name = path.stem if model in pretrained.names() else str(model)
    if pull.outdated(card):
        again = f"jaxmlip models pull {card['name']}"
        again += f" --head {card['head']}" if card.get("head") else ""
        note(f"'{name}' was imported by another version; `{again}` does it anew")
    if needs_dipole and not has_dipole(card):
        raise ModelError(
            f"model '{name}' predicts no dipole, and infrared intensities are its derivatives",
            code="JM508",
            fix="another --model; `jaxmlip modes` gives frequencies without intensities",
        )
    if needs_polarizability and not predicts(card, "polarizability"):
        able = [n for n in pretrained.names() if predicts(pretrained.card(n), "polarizability")]
        raise ModelError(
            f"model '{name}' predicts no polarizability, and Raman activities are its derivatives",
            code="JM508",
            fix=f"--model {' or '.join(able) or 'PATH'}"
            + ("" if able else ", a potential trained with `polarizability: true`")
            + "; `jaxmlip ir` needs a dipole alone",
        )
    return Opened(
        name=name, potential=potential, params=cast(params, dtype), card=card, dtype=str(dtype)
    )


def bound(model: Opened, *structures, strained: bool = False) -> Opened:
    """The model with its long-range sums planned for these structures; itself if it has none.

    Crystals in a field that has no forces there (strained: or no stress) are refused.
    """
    import numpy as np

    from jaxmlip.interfaces.ase import from_ase
    from jaxmlip.potential import bind

    to_system = lambda a: from_ase(a, model.potential.cutoff, dtype=model.dtype)
    if getattr(model.potential, "plan", None) is not None:
        model = replace(model, potential=bind(model.potential, [*map(to_system, structures)]))
    for atoms in structures:
        if atoms.pbc.any() and np.any(atoms.info.get("field", 0)):
            check_field(model, to_system(atoms), strained=strained)
    return model


def check_field(model: Opened, system, *, strained: bool) -> None:
    from jaxmlip import derivatives

    how = {"strained": strained, "where": f"model '{model.name}'"}
    derivatives.check_field(model.potential.apply, model.params, system, **how)


def has_dipole(card: dict) -> bool:
    """Whether the energy of a molecule depends on the field: a readout, or equilibrated charges."""
    equilibrated = (card.get("electrostatics") or {}).get("equilibration") is not None
    return bool(card["fields"].get("dipole")) or equilibrated


def predicts(card: dict, name: str) -> bool:
    """Whether the model of a card predicts `dipole` or `polarizability`, coupled to the field."""
    fields = card["fields"]
    return bool(fields.get("dipole")) and bool(fields.get(name))


def read(file: str, model: Opened, output: Output, *, frame: int = -1):
    """One structure that the model knows, checked."""
    from jaxmlip.interfaces.read import read_structure

    return _known(read_structure(file, frame=frame), model, output, file)


def read_all(file: str, model: Opened, output: Output) -> list:
    """Every structure of a file, checked."""
    from jaxmlip.interfaces.read import read_structures

    frames = read_structures(file)
    where = [file if len(frames) == 1 else f"{file} frame {i}" for i in range(len(frames))]
    return [_known(a, model, output, w) for a, w in zip(frames, where, strict=True)]


def _known(atoms, model, output, where):
    from jaxmlip.interfaces.check import check_elements
    from jaxmlip.models import checkpoint

    check_elements(atoms.numbers, model.card["elements"], model=model.name, where=where)
    asked = atoms.info.get("charge", 0) != 0 or atoms.info.get("spin", 1) != 1
    if asked and not checkpoint.sees_charge(model.card):
        output.warn(
            f"{where}: the energy of model '{model.name}' does not depend on charge and "
            "spin; the structure has others than 0 and 1"
        )
    return atoms


def versions() -> dict:
    """The versions that decide the numbers."""
    from importlib.metadata import PackageNotFoundError, version

    import jaxmlip

    out = {"jaxmlip_version": jaxmlip.__version__, "python_version": sys.version.split()[0]}
    for name in ("jax", "jaxlib", "flax", "numpy", "ase"):
        try:
            out[f"{name}_version"] = version(name)
        except PackageNotFoundError:
            out[f"{name}_version"] = None
    return out


def positive(**values) -> None:
    """Raises `UsageError` unless every value is a finite number above zero."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} is {value}; it must be above zero", where=option)


def announce(command: str, model: Opened, n_atoms: int) -> None:
    """Tells of compilation before it makes anyone wonder: once for a command, model and size."""
    import hashlib

    folder = cache_folder()
    if folder is None:
        return note("compiling, half a minute for a small molecule (not kept: no cache folder)")
    text = f"{command} {model.card['sha256']} {model.dtype} {n_atoms}"
    mark = folder / f"seen-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    try:
        if not mark.exists():
            note(
                "compiling for this model and size, about half a minute for a small molecule "
                "(kept for the next time)"
            )
            mark.touch()
    except OSError:
        pass  # only a courtesy

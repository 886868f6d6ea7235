"""`jaxmlip doctor`: is this installation sound, and does it give right numbers here?

Every check ends in OK, WARN (with what to do) or FAIL; one FAIL makes the exit status 1.
"""

from typing import Annotated, NamedTuple

import typer

from jaxmlip.cli import options
from jaxmlip.cli.output import plan, table, task

FORCE, ROTATION, SINGLE = 1e-6, 1e-9, 2e-4  # eV/Å, eV, eV/Å: largest errors that are right


class Finding(NamedTuple):
    name: str
    verdict: str  # OK, WARN or FAIL
    value: str
    fix: str = ""


def doctor(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="NAME|PATH",
            help="The potential that is put to the test; "
            "default organic, and a Morse potential if that is not there.",
        ),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Also time a Hessian: half a minute more.")
    ] = False,
    json: options.Json = None,
    overwrite: options.Overwrite = False,
):
    """Versions, devices, precision, forces against differences of energies (eV/Å), cold start."""
    from jaxmlip.cli import session

    output = plan("doctor", [], json_file=json, overwrite=overwrite)
    findings, seconds = [_jax_version()], {}
    if findings[0].verdict != "FAIL":
        session.start(x64=True)
        with task("checking"):
            findings += [_devices(), _path(), _double(), _products(), _cache(), _memory()]
            findings += _numbers(model)
        with task("timing a fresh process"):
            found, seconds = _cold_start(model, full)
            findings += found
    rows = [(f.verdict, f.name, f.value) for f in findings]
    rows += [("", f"  fix for {f.name}", f.fix) for f in findings if f.fix]
    output.console.print(table({"": "left", "check": "left", "found": "left"}, rows))
    failed = [f.name for f in findings if f.verdict == "FAIL"]
    output.finish(
        {
            "command": "doctor",
            **session.versions(),
            "ok": not failed,
            "failed": failed,
            "checks": [f._asdict() for f in findings],
            **seconds,
        }
    )
    if failed:
        raise typer.Exit(1)


def _judged(name, error, limit, unit, fix) -> Finding:
    good = error <= limit  # NaN is not
    return Finding(
        name,
        "OK" if good else "FAIL",
        f"{error:.1e} {unit} (limit {limit:.0e})",
        "" if good else fix,
    )


# --- the installation ----------------------------------------------------------------------------


def _jax_version() -> Finding:
    from jaxmlip.cli.session import MISCOMPILES, versions

    found = versions()
    text = ", ".join(f"{k.removesuffix('_version')} {v}" for k, v in found.items())
    if found["jax_version"] in MISCOMPILES:
        return Finding(
            "versions",
            "FAIL",
            text,
            "this jax gives wrong numbers on CPU: pip install 'jax!=0.10.2'",
        )
    return Finding("versions", "OK", text)


def _devices() -> Finding:
    import shutil

    import jax

    text = ", ".join(f"{d.platform} {d.device_kind}" for d in jax.devices())
    if jax.default_backend() == "cpu" and shutil.which("nvidia-smi"):
        return Finding(
            "devices",
            "WARN",
            text,
            "there is a GPU that JAX does not use: "
            "pip install 'jaxmlip[cuda12]' or 'jaxmlip[cuda13]'",
        )
    return Finding("devices", "OK", text)


def _path() -> Finding:
    """What computes: kernels other than XLA's own are never taken without a word."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        other = f"cuequivariance-jax {version('cuequivariance-jax')} is installed, but not used"
    except PackageNotFoundError:
        other = "cuequivariance-jax is absent"
    return Finding("kernels", "OK", f"plain XLA; {other}, no Pallas kernels")


def _double() -> Finding:
    import jax.numpy as jnp

    dtype = jnp.ones(1, "float64").dtype
    good = dtype == "float64"
    return Finding(
        "float64", "OK" if good else "FAIL", str(dtype), "" if good else "unset JAX_ENABLE_X64=0"
    )


def _products() -> Finding:
    """Products of many matrices, summed: where a compiler has gone wrong before."""
    import jax
    import numpy as np

    a, b = np.random.default_rng(0).normal(size=(2, 16, 12, 12))
    found = jax.jit(jax.vmap(lambda x, y: (x @ y).sum(0)))(a, b)
    error = float(np.abs(np.asarray(found) - np.einsum("nij,njk->nk", a, b)).max())
    return _judged("compiled products", error, 1e-10, "", "another version of jax")


def _cache() -> Finding:
    from jaxmlip.cli.session import cache_folder

    folder = cache_folder()
    if folder is None:
        return Finding(
            "compilation cache",
            "WARN",
            "none",
            "make ~/.cache writable for you "
            "alone, or set XDG_CACHE_HOME or JAX_COMPILATION_CACHE_DIR",
        )
    size = sum(p.stat().st_size for p in folder.glob("*") if p.is_file())
    return Finding("compilation cache", "OK", f"{folder} ({size / 1e6:.0f} MB)")


def _memory() -> Finding:
    import os

    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (AttributeError, OSError, ValueError):
        return Finding("free memory", "OK", "not known on this system")
    few = "close other programs: a Hessian may need more" if free < 1 else ""
    return Finding("free memory", "WARN" if few else "OK", f"{free:.1f} GB", few)


# --- the time ------------------------------------------------------------------------------------


def _cold_start(name, full) -> tuple[list[Finding], dict]:
    """Seconds from nothing to the first forces, without and with compiled programs of before."""
    import subprocess

    from jaxmlip import pretrained
    from jaxmlip.cli import cold_start

    if name is None and "organic" not in pretrained.names():
        return [], {}
    try:
        empty, filled = cold_start.measure(pretrained.path_of(name or "organic"), hessian=full)
    except subprocess.TimeoutExpired as error:
        late = f"a fresh process took more than {error.timeout:g} s"
        return [Finding("cold start", "WARN", late, "try again when this machine is less busy")], {}
    except (subprocess.SubprocessError, ValueError, IndexError) as error:
        said = (getattr(error, "stderr", None) or "").strip() or str(error)
        return [Finding("cold start", "WARN", said.splitlines()[-1], "report it")], {}
    findings = [
        Finding("import of jax and jaxmlip", "OK", f"{empty['import_s']:.1f} s"),
        *(_seconds(what, empty, filled) for what in ["forces", *["hessian"] * full]),
    ]
    return findings, {"cold_start": empty, "cold_start_with_cache": filled}


def _seconds(what, empty, filled) -> Finding:
    first, again = empty[f"{what}_first_s"], filled[f"{what}_first_s"]
    text = (
        f"{first:.1f} s to the first of {empty['n_atoms']} atoms "
        f"({empty[f'{what}_compile_s']:.1f} s compiling), {again:.1f} s once the cache has it, "
        f"then {1e3 * empty[f'{what}_second_s']:.1f} ms"
    )
    slow = first > 60
    fix = "compiling takes long here: keep the compilation cache" if slow else ""
    return Finding(f"cold start, {what}", "WARN" if slow else "OK", text, fix)


# --- the numbers ---------------------------------------------------------------------------------


def _numbers(name) -> list[Finding]:
    """The potential on a molecule: gradient, symmetry, precision."""
    import jax

    from jaxmlip.derivatives.first import total_energy
    from jaxmlip.interfaces.ase import from_ase
    from jaxmlip.system import cast

    found, potential, params, atoms = _potential(name)
    system = from_ase(atoms, potential.cutoff, dtype="float64")
    params = cast(params, "float64")
    slope = jax.jit(jax.value_and_grad(total_energy(potential.apply)))
    energy, gradient = slope(system.positions, params, system)
    single = cast(system, "float32")
    _, rough = slope(single.positions, cast(params, "float32"), single)
    wrong = "the numbers of this installation cannot be trusted: report it"
    return [
        found,
        _judged(
            "forces against differences",
            _difference(slope, params, system, gradient),
            FORCE,
            "eV/Å",
            wrong,
        ),
        _judged("turned molecule", _turned(slope, params, system, energy), ROTATION, "eV", wrong),
        _judged(
            "float32 against float64",
            float(abs(rough - gradient).max()),
            SINGLE * max(1.0, float(abs(gradient).max())),
            "eV/Å",
            "use --dtype float64",
        ),
    ]


def _potential(name):
    """(finding, potential, params, a molecule that it knows)."""
    from jaxmlip import pretrained
    from jaxmlip.cli.cold_start import structure
    from jaxmlip.interfaces.read import read_structure
    from jaxmlip.models import checkpoint

    if name is None and "organic" not in pretrained.names():
        from jaxmlip.models import Morse

        potential = Morse(elements=(1, 6, 8), depth=4.0, a=2.0, r0=1.2, cutoff=4.0)
        return (
            Finding(
                "model",
                "WARN",
                "Morse instead of 'organic'",
                "reinstall jaxmlip: its packaged potential is missing",
            ),
            potential,
            {},
            read_structure("ethanol"),
        )
    path = pretrained.path_of(name or "organic")
    potential, params, card = checkpoint.load(path, needs_energy=True)
    return (
        Finding("model", "OK", f"{name or 'organic'}, sha256 {card['sha256'][:16]}..."),
        potential,
        params,
        structure(card),
    )


def _difference(slope, params, system, gradient, step=1e-4) -> float:
    """Largest error of the force along one direction that moves all atoms."""
    import numpy as np

    direction = np.random.default_rng(1).normal(size=system.positions.shape)
    direction /= np.linalg.norm(direction)
    at = lambda h: float(slope(system.positions + h * direction, params, system)[0])
    return abs((at(step) - at(-step)) / (2 * step) - float((gradient * direction).sum()))


def _turned(slope, params, system, energy) -> float:
    """Change of the energy when the molecule is turned."""
    import numpy as np

    q, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    return abs(float(slope(system.positions @ q, params, system)[0]) - float(energy))

"""Weights of other codes, put to the test and written as a model file of ours.

What a reader makes of a foreign file is not believed: every array must have the shape that the
architecture asks for, and on a small cluster of the model's own elements the numbers must be
finite, the forces the slope of the energy, the energy blind to rotations, and dipole and
polarisability must turn with the cluster.
"""

import hashlib
import json
from dataclasses import replace
from functools import reduce
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxmlip
from jaxmlip.errors import ModelError
from jaxmlip.interfaces import weights
from jaxmlip.neighbors import find_edges
from jaxmlip.system import System, cast, pad

SLOPE, TURN = 1e-6, 1e-9  # largest relative errors of a force, and of what a turned cluster has
RESPONSES = {"dipole": "eA", "polarizability": "e2A2_per_eV"}  # and their units
CLUSTER = np.array(  # five atoms without symmetry, in units of the nearest distance
    [[0, 0, 0], [1.05, 0.1, 0], [-0.3, 1.1, 0.2], [0.25, 0.3, -1.2], [-0.9, -0.6, 0.5]]
)
REPORT = "report the file and where it is from"
BESIDE = {"so3lr": ("hyperparameters.json",)}  # what the reader of a format takes from the folder
SOURCES = ("interfaces/weights", "nn", "models", "pretrained/imports.py")  # they make the numbers
UNKNOWN = "not stated in the file: that of its source applies, and goes with every copy"


def import_weights(path, output, *, name=None, head=None, extra=None) -> dict:
    """Reads foreign weights, tests them and writes the model file `output`; returns its card.

    extra: further entries of the card, such as licence and citation. Raises `ModelError` for what
    cannot be imported exactly, `ResourceError` where nothing can be written; either way no file.
    """
    from jaxmlip.models import checkpoint

    card, params = read(path, name=name, head=head, extra=extra)
    checkpoint.save(output, card, params)
    return checkpoint.read(output)[0]


@np.errstate(all="ignore")  # of numbers that are not finite the error speaks
def read(path, *, name=None, head=None, extra=None) -> tuple[dict, dict]:
    """(card, params) of a foreign file that has passed the tests."""
    from jaxmlip.pretrained.published import known_file

    card, params = weights.read(path, head=head)
    if beside := hashes_beside(path):
        card["source"]["beside"] = beside
    published = known_file(card["source"]["sha256"], beside) or {}
    card = {"licence": UNKNOWN, **published, **card, **(extra or {})}
    if head is not None:
        card["head"] = head
    card["name"] = name or card.get("name") or stem(path)
    card["verified"] = verify(card, params, where=str(path))
    return json.loads(json.dumps(card)), params  # keys as a file has them: they are hashed


def hashes_beside(path) -> dict[str, str]:
    """{name: SHA-256} of the files that are read with the weights at `path`."""
    files = [Path(path).with_name(name) for name in BESIDE.get(weights.format_of(path), ())]
    return {file.name: weights.sha256(file) for file in files if file.is_file()}


def version() -> str:
    """Hash of all that an import depends on but its files: this package's version and sources."""
    root = Path(jaxmlip.__file__).parent
    found = hashlib.sha256(jaxmlip.__version__.encode())
    for place in SOURCES:
        path = root / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return found.hexdigest()


def verify(card: dict, params, *, where: str = "") -> dict:
    """What was found, or `ModelError` if the weights do not do what a potential does.

    Shapes against the architecture; then, in float64: finite numbers, forces against differences
    of energies (relative to the largest force), the energy of a turned cluster (per atom), if there
    is an energy; dipole and polarisability of a turned cluster, if there are any.
    """
    try:
        return _verify(card, params, where)
    except ModelError:
        raise
    except Exception as error:  # whatever the fields of a stranger may lead to
        first = (str(error).splitlines() or [""])[0]
        raise ModelError(
            f"no potential can be made of this ({type(error).__name__}: {first})",
            where=where,
            code="JM512",
            fix=REPORT,
        ) from error


def _verify(card, params, where):
    from jaxmlip.models import checkpoint

    model = checkpoint.build(card)
    elements = [int(z) for z in model.elements]
    _check_references(card, elements, where)
    with jax.enable_x64(True):
        system = small_cluster(elements, float(model.cutoff))
        check_shapes(model, params, system, where)
        potential = checkpoint.potential_of(card)
        return _check_numbers(potential, params, system, where, checkpoint.has_energy(card))


def small_cluster(elements, cutoff: float) -> System:
    """Five atoms of up to five of the elements, 0.4 cutoffs (at most 1.8 Å) apart, float64."""
    n = len(CLUSTER)
    numbers = np.array(elements, np.int32)[np.linspace(0, len(elements) - 1, n).astype(int)]
    positions = CLUSTER * min(1.8, 0.4 * cutoff)
    system = System(
        positions=positions,
        numbers=numbers,
        graph=np.zeros(n, np.int32),
        cell=np.eye(3)[None],
        pbc=np.zeros((1, 3), bool),
        charge=np.zeros(1),
        spin=np.ones(1),
        field=np.zeros((1, 3)),
        edges=find_edges(positions, np.eye(3), False, cutoff),
    )
    return pad(system, n_neighbors=max(n, system.edges.senders.shape[1]))


def check_shapes(model, params, system, where: str = "") -> None:
    """Raises `ModelError` unless the parameters are those that the architecture has."""
    from jaxmlip.models import checks

    wanted = _by_name(jax.eval_shape(model.init, jax.random.key(0), system))
    found = _by_name(params)
    wrong = [
        *checks.misfits(found, {name: x.shape for name, x in wanted.items()}),
        *(f"{k} holds {np.asarray(v).dtype}" for k, v in found.items() if not _is_number(v)),
        *(f"{k} is not finite" for k, v in found.items() if _is_number(v) and not _finite(v)),
    ]
    if wrong:
        raise ModelError(
            f"the weights are not those of this {type(model).__name__}: {checks.some(wrong)}",
            where=where,
            code="JM511",
            fix=f"copy or download the file again; if it is whole, {REPORT}",
        )


def _check_references(card, elements, where):
    known = {int(z) for z in card.get("reference_energies") or {}}
    missing = sorted(set(elements) - known) if known else []
    if missing:
        raise ModelError(
            f"no reference energy for atomic numbers {missing}",
            where=where,
            code="JM511",
            fix=f"copy or download the file again; if it is whole, {REPORT}",
        )


def _check_numbers(potential, params, system, where, has_energy):
    at = _predictions(potential, cast(params, "float64"), system)
    x = system.positions
    energy, gradient, responses = at(x)
    if not all(np.isfinite(value).all() for value in (energy, gradient, *responses.values())):
        what = f"energy, forces, dipole or polarizability are not finite: {energy} eV"
        raise ModelError(what, where=where, code="JM512", fix=REPORT)
    if not (has_energy or responses):
        what = "neither an energy nor a dipole nor a polarisability is predicted"
        raise ModelError(what, where=where, code="JM512", fix=REPORT)
    random = np.random.default_rng(0)
    direction = random.normal(size=x.shape) / np.sqrt(x.size)
    turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
    turned, _, turned_responses = at(x @ turn.T)
    found, limits = _turned(responses, turned_responses, turn)
    if has_energy:
        force = float(np.abs(gradient).max())
        differences = _difference(lambda h: at(x + h * direction)[0])
        found |= {
            "energy_eV": float(energy),
            "largest_force_eV_per_A": force,
            "force_error_eV_per_A": abs(float(differences - (gradient * direction).sum())),
            "rotation_error_eV": abs(float(turned - energy)),
        }
        # differences lose what the sum of energies is rounded by: eps x |E| / step
        limits |= {
            "force_error_eV_per_A": SLOPE * max(1.0, force) + 1e-12 * abs(energy),
            "rotation_error_eV": TURN * max(1.0, force, 1e-3 * abs(energy)),
        }
    for key, limit in limits.items():
        if not found[key] <= limit:
            raise ModelError(
                f"{key} is {found[key]:.1e} (limit {limit:.0e}): no potential here",
                where=where,
                code="JM512",
                fix=REPORT,
            )
    return found


def _predictions(potential, params, system):
    """positions -> (energy, its gradient, {dipole and polarizability, if predicted})."""

    def energy(positions, params, system):
        out = potential.apply(params, replace(system, positions=positions))
        return out["energy"].sum(), {k: out[k][0] for k in RESPONSES if k in out}

    slope = jax.jit(jax.value_and_grad(energy, has_aux=True))

    def at(positions):
        (value, responses), gradient = jax.device_get(slope(positions, params, system))
        return value, gradient, responses

    return at


def _turned(responses, turned, turn):
    """What dipole and polarisability are, how far from theirs those of a turned cluster; limits."""
    found, limits = {}, {}
    for name, value in responses.items():
        expected = turn @ value if value.ndim == 1 else turn @ value @ turn.T
        size, key = float(np.abs(value).max()), f"{name}_rotation_error_{RESPONSES[name]}"
        found[f"largest_{name}_{RESPONSES[name]}"] = size
        found[key] = float(np.abs(turned[name] - expected).max())
        limits[key] = TURN * max(1.0, size)
    return found, limits


def _difference(energy, step=1e-3):
    """Slope at zero by central differences of fourth order."""
    e = [float(energy(k * step)) for k in (-2, -1, 1, 2)]
    return (e[0] - 8 * e[1] + 8 * e[2] - e[3]) / (12 * step)


def _by_name(tree) -> dict:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    name = lambda path: "/".join(str(getattr(k, "key", k)) for k in path)
    return {name(path): leaf for path, leaf in leaves}


def _is_number(value) -> bool:
    return jnp.issubdtype(np.asarray(value).dtype, jnp.floating)


def _finite(value) -> bool:
    return bool(np.isfinite(np.asarray(value, np.float64)).all())


def stem(path) -> str:
    """The name of a file of weights without its usual endings."""
    endings = (".zip", ".model", ".nqx", ".pth", ".pt", ".pkl")
    return reduce(str.removesuffix, endings, Path(path).name)

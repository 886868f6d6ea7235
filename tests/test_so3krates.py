"""So3krates with physical terms: the numbers of its original code, and the laws every energy obeys.

`data/so3lr.npz` holds a tiny model with random weights and what the original code makes of it in
float64; `data/so3lr_trained.npz` what it makes of the published weights, for six structures and
without the weights themselves:

    python benchmarks/compare_so3lr.py --mlff CHECKOUT --export FILE [--weights FOLDER]

Limits: 1e-10 relative to the largest number of a kind, a million roundings of 1e-16.
"""

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose

import jaxmlip
from jaxmlip.derivatives.first import with_forces
from jaxmlip.errors import ModelError, UsageError
from jaxmlip.interfaces.weights import sha256, so3lr
from jaxmlip.models import So3krates, checkpoint
from jaxmlip.nn import pairwise
from jaxmlip.pretrained.imports import hashes_beside
from jaxmlip.pretrained.published import known_file
from jaxmlip.system import cast, concatenate, pad, strain, supercell

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from compare_so3lr import jaxmlip_system, write_weights  # noqa: E402

DATA = Path(__file__).parent / "data"
TRAINED = Path(__file__).parents[2] / "shared" / "weights" / "so3lr"  # beside a checkout, if at all
RANDOM = np.load(DATA / "so3lr.npz")
N_ATOMS, N_NEIGHBORS = 9, 363  # one shape for all: ice has 309 neighbours within 12 Å
NAMES = ["ethanol", "dimer", "apart", "acetate", "hydroxyl", "ice"]


def reference(file, name):
    return {k.split("|")[1]: file[k] for k in file if k.startswith(f"{name}|")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("so3lr")
    write_weights(RANDOM, path)
    return path


@pytest.fixture(scope="module")
def model(folder):
    """(potential, params) of the tiny model, after a trip through a file of ours."""
    card, params = so3lr.read(folder / "params.pkl")
    checkpoint.save(folder / "ours.safetensors", card, params)
    potential, params, _ = checkpoint.load(folder / "ours.safetensors")
    return potential, cast(params, jnp.float64)


@pytest.fixture(scope="module")
def predict(model):
    potential, params = model
    function = jax.jit(jaxmlip.predict(potential.apply))
    return lambda system: jax.tree.map(np.asarray, dict(function(params, system)))


def build(atoms, cutoff=12.0):
    system = atoms if not isinstance(atoms, Atoms) else jaxmlip.from_ase(atoms, cutoff)
    return pad(system, n_atoms=N_ATOMS, n_neighbors=N_NEIGHBORS)


def system_of(name, file=RANDOM):
    return build(jaxmlip_system(reference(file, name), 12.0))


def atoms_of(name):
    r = reference(RANDOM, name)
    return Atoms(r["numbers"], r["positions"], cell=r["cell"], pbc=r["pbc"])


def assert_same(found, expected, rtol):
    assert_allclose(found, expected, rtol=0, atol=rtol * max(np.abs(expected).max(), 1e-3))


# --- numbers from outside -------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_prediction_is_that_of_the_original_code(predict, name):
    """Charged, with unpaired electrons, apart by more than the network sees, in a small cell."""
    expected = reference(RANDOM, name)
    out, n = predict(system_of(name)), len(expected["numbers"])
    for key in ("energy", "dipole", "stress"):
        if key in expected:
            assert_same(out[key].squeeze(), expected[key], 1e-10)
    for key in ("forces", "charges"):
        assert_same(out[key][:n], expected[key], 1e-10)
    assert (out["forces"][n:] == 0).all() and (out["charges"][n:] == 0).all()


@pytest.fixture(scope="module")
def hessian(model):
    potential, params = model
    system = jaxmlip_system(reference(RANDOM, "dimer"), 12.0)
    return np.asarray(jax.jit(jaxmlip.hessian(potential.apply))(params, system))


def test_the_hessian_is_that_of_the_original_code(hessian):
    assert_same(hessian, reference(RANDOM, "dimer")["hessian"], 1e-10)


@pytest.mark.slow
@pytest.mark.skipif(not TRAINED.is_dir(), reason="the published weights are not on this machine")
def test_published_weights_give_published_forces():
    """In float32 to 1e-4 eV/Å; in float64 they agree to 1e-11 (benchmarks/compare_so3lr.py)."""
    file = np.load(DATA / "so3lr_trained.npz")
    path = TRAINED / "params.pkl"
    card, params = so3lr.read(path)
    assert "licence" not in card  # that is told by the hashes of both files
    assert known_file(sha256(path), hashes_beside(path))["licence"] == "MIT"
    assert card["fields"]["elements"] == [1, 6, 7, 8, 9, 15, 16, 17]
    function = jax.jit(jaxmlip.predict(checkpoint.potential_of(card).apply))
    for name in sorted({k.split("|")[0] for k in file}):
        expected, system = reference(file, name), cast(system_of(name, file), jnp.float32)
        out, n = function(cast(params, jnp.float32), system), len(expected["numbers"])
        assert_allclose(out["forces"][:n], expected["forces"], rtol=0, atol=1e-4)
        assert_allclose(out["charges"][:n], expected["charges"], rtol=0, atol=1e-5)


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ethanol", "acetate", "ice"])
def test_forces_and_stress_are_slopes_of_the_energy(predict, name):
    """Fourth-order central differences: truncation and round-off are below 1e-7 of the slopes."""
    system, rng, h = system_of(name), np.random.default_rng(0), 1e-3
    out = predict(system)
    slope = lambda at: (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    d = rng.normal(size=(N_ATOMS, 3)) * system.atom_mask[:, None] / 5
    moved = lambda x: predict(replace(system, positions=system.positions + x * d))["energy"][0]
    assert_allclose((out["forces"] * d).sum(), -slope(moved), rtol=1e-6)
    if system.pbc.any():
        e = rng.normal(size=(1, 3, 3)) / 5
        e, volume = e + e.swapaxes(1, 2), abs(np.linalg.det(system.cell[0]))
        strained = lambda x: predict(strain(system, x * e))["energy"][0]
        assert_allclose((out["stress"] * e).sum(), slope(strained) / volume, rtol=1e-6)


def test_the_hessian_is_minus_the_slope_of_the_forces(predict, hessian):
    system, rng, h = system_of("dimer"), np.random.default_rng(0), 1e-3
    d = rng.normal(size=(N_ATOMS, 3)) * system.atom_mask[:, None] / 5
    at = lambda x: predict(replace(system, positions=system.positions + x * d))["forces"]
    slope = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
    assert_same(-np.einsum("iajb,jb->ia", hessian, d[:6]), slope[:6], 1e-6)
    assert_same(hessian, hessian.transpose(2, 3, 0, 1), 1e-10)
    assert_same(hessian.sum(2), np.zeros_like(hessian.sum(2)), 1e-9 * np.abs(hessian).max())


@pytest.mark.parametrize("name", ["acetate", "ice"])
def test_rotoinversion_and_another_order_of_atoms_turn_and_permute_the_forces(predict, name):
    atoms = atoms_of(name)
    q, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    q *= -np.sign(np.linalg.det(q))
    order = np.random.default_rng(3).permutation(len(atoms))
    other = Atoms(atoms.numbers, atoms.positions @ q.T, cell=atoms.cell @ q.T, pbc=atoms.pbc)
    before, after = predict(build(atoms)), predict(build(other[order]))
    n = len(atoms)
    assert_same(after["energy"], before["energy"], 1e-10)
    assert_same(after["forces"][:n], (before["forces"] @ q.T)[order], 1e-10)
    assert_same(after["dipole"], before["dipole"] @ q.T, 1e-10)
    if atoms.pbc.any():
        assert_same(after["stress"], q @ before["stress"] @ q.T, 1e-10)


def test_batches_and_both_layouts_of_edges_give_the_same(model, predict):
    potential, params = model
    names = ["hydroxyl", "dimer", "ice"]
    alone = [predict(system_of(n)) for n in names]
    flat = [
        jaxmlip.from_ase(a, 12.0, flat=True)
        for a in (build_state(atoms_of(n), reference(RANDOM, n)) for n in names)
    ]
    batch = pad(concatenate(flat), n_graphs=4, n_atoms=13)
    out = jax.jit(jaxmlip.predict(potential.apply))(params, batch)
    assert out["energy"][3] == 0
    assert_same(np.asarray(out["energy"][:3]), np.concatenate([a["energy"] for a in alone]), 1e-10)
    sizes = [2, 6, 3]
    forces = np.concatenate([a["forces"][:n] for a, n in zip(alone, sizes, strict=True)])
    assert_same(np.asarray(out["forces"][:11]), forces, 1e-10)


def build_state(atoms, ref):
    atoms.info.update(charge=int(ref["charge_spin"][0]), spin=int(ref["charge_spin"][1]))
    return atoms


def test_the_energy_of_a_supercell_is_a_multiple(model, predict):
    potential, params = model
    ice = jaxmlip.from_ase(atoms_of("ice"), None)
    doubled = jaxmlip.to_ase(supercell(ice, (2, 1, 1)))[0]
    alone, twice = predict(system_of("ice")), predict(build(doubled))
    assert_same(twice["energy"], 2 * alone["energy"], 1e-10)
    assert_same(twice["forces"][:6], np.tile(alone["forces"][:3], (2, 1)), 1e-10)


def test_a_slab_is_a_crystal_with_a_vacuum_wider_than_the_cutoff(predict):
    """The crystal's cell cuts the slab in two, so that half of its edges cross the border."""
    slab = atoms_of("ice")
    slab.set_cell([*slab.cell[:2], [0, 0, np.ptp(slab.positions[:, 2]) + 12.5]])
    slab.pbc, crystal = (True, True, False), slab.copy()
    crystal.pbc = True
    crystal.positions[:, 2] -= crystal.positions[:, 2].mean()
    crystal.wrap()
    assert np.ptp(crystal.positions[:, 2]) > 12
    open_, closed = predict(build(slab)), predict(build(crystal))
    for key in ("energy", "forces", "stress", "charges"):
        assert_same(open_[key], closed[key], 1e-10)


def test_charges_add_up_and_the_state_matters(predict):
    neutral = system_of("ethanol")
    out = [predict(replace(neutral, charge=np.array([q]))) for q in (-1.0, 0.0, 1.0)]
    assert_allclose([o["charges"].sum() for o in out], [-1, 0, 1], atol=1e-12)
    triplet = predict(replace(neutral, spin=np.array([3.0])))
    assert len({round(float(o["energy"][0]), 6) for o in [*out, triplet]}) == 4


def test_the_dipole_is_minus_the_slope_of_the_energy_with_the_field(predict):
    system, h = system_of("ethanol"), 1e-2
    at = lambda x: predict(replace(system, field=np.array([[0.0, 0.0, x]])))["energy"][0]
    assert_allclose(predict(system)["dipole"][0, 2], -(at(h) - at(-h)) / (2 * h), rtol=1e-10)


def test_an_unknown_element_gives_not_a_number(predict):
    out = predict(build(Atoms("CN", [[0, 0, 0], [0, 0, 1.2]])))
    for key in ("energy", "forces", "charges", "dipole"):
        assert np.isnan(out[key][:2]).all(), key  # the rest is padding


# --- cutoffs --------------------------------------------------------------------------------------


def pair(r):
    return build(Atoms("CO", [np.zeros(3), r * np.array([2.0, 1.0, -2.0]) / 3]), 12.5)


@pytest.mark.parametrize("cutoff", [3.5, 12.0])
def test_energy_and_forces_are_continuous_where_network_and_physics_end(predict, cutoff):
    """A step of 2e-6 Å changes forces by the curvature times that, and energies by less."""
    near, far = predict(pair(cutoff - 1e-6)), predict(pair(cutoff + 1e-6))
    assert_allclose(near["energy"], far["energy"], rtol=0, atol=1e-5)
    assert_allclose(near["forces"], far["forces"], rtol=0, atol=1e-5)
    if cutoff == 12.0:
        assert (far["forces"] == 0).all()


def test_the_curvature_of_the_coulomb_energy_ends_with_a_step_as_published():
    """Shifting the force makes the slope end at zero, not the curvature: a step of V''(cutoff)."""
    curve = lambda r: pairwise.damped_coulomb(r, 12.0, width=4.0)
    curvature = jax.grad(jax.grad(curve))
    expected = 2 * 14.399645 / 12.0**3  # of 1/r: erf is 1 to 2e-5 there
    assert_allclose(curvature(11.9999), expected, rtol=1e-2)
    assert curvature(12.0001) == 0 and curve(12.0) == 0
    assert abs(jax.grad(curve)(11.999999)) < 1e-7


def test_dispersion_of_two_hydrogen_atoms_decays_as_c6():
    """London's limit -C6/r^6, C6 = 6.5 of the free atom; at 60 Å damping and C8 are 1e-3 of it."""
    from jaxmlip import units

    r = jnp.asarray(60.0)
    found = pairwise.dispersion(r, (4.5, 4.5), (6.5, 6.5), scale=1.2)
    assert_allclose(found, -6.5 * units.hartree * (units.bohr / 60) ** 6, rtol=2e-3)


def test_the_switch_is_flat_at_both_ends():
    x = jnp.array([-1.0, 0.0, 0.1, 0.75, 1.4, 1.5, 3.0])
    derivatives = jax.vmap(jax.grad(jax.grad(lambda r: pairwise.switch(r, 0.0, 1.5))))(x)
    assert_allclose(pairwise.switch(x, 0.0, 1.5)[jnp.array([0, 1, 3, 5, 6])], [1, 1, 0.5, 0, 0])
    assert (derivatives[jnp.array([0, 1, 5, 6])] == 0).all() and jnp.isfinite(derivatives).all()


# --- which edges the network sees -----------------------------------------------------------------


@pytest.mark.parametrize("flat", [False, True])
def test_the_short_edges_of_a_long_list_are_all_there_and_sorted(flat):
    atoms = atoms_of("ice")
    long = jaxmlip.from_ase(atoms, 12.0, flat=flat)
    short = jaxmlip.from_ase(atoms, 3.5, flat=flat)
    found, crowded = pairwise.near(long, 3.5, 20)
    assert not crowded.any() and found.edges.senders.size == 60
    lengths = lambda s: np.sort(
        np.linalg.norm(np.asarray(jaxmlip.system.edge_vectors(s))[np.asarray(s.edges.mask)], axis=1)
    )
    assert_allclose(lengths(found), lengths(short), rtol=1e-12)
    if flat:
        assert (np.diff(found.edges.receivers) >= 0).all()
    assert pairwise.near(long, 3.5, 2)[1].any()


@pytest.mark.slow
def test_more_neighbours_than_the_network_has_room_for_are_not_dropped(folder):
    card, params = so3lr.read(folder / "params.pkl")
    crowded = checkpoint.build({**card, "fields": card["fields"] | {"local_neighbors": 2}})
    system = jaxmlip_system(reference(RANDOM, "ice"), 12.0)
    out = jax.jit(with_forces(crowded.apply))(params, system)
    assert np.isnan(out["energy"]).all() and np.isnan(out["forces"]).all()


def test_dispersion_needs_free_atoms():
    system = jaxmlip.from_ase(Atoms("Au"), 5.0)
    with pytest.raises(UsageError, match="79"):
        jax.eval_shape(So3krates(elements=(79,)).init, jax.random.key(0), system)


# --- files ----------------------------------------------------------------------------------------


def test_weights_are_told_from_other_pickles(folder, tmp_path):
    other = tmp_path / "other.pkl"
    other.write_bytes(pickle.dumps({"params": {"layers": np.ones(3)}}))
    assert so3lr.matches(folder / "params.pkl")
    assert (
        not so3lr.matches(other)
        and not so3lr.matches(folder / "none")
        and not so3lr.matches(folder)
    )


def changed(folder, path, *, tree=lambda t: t, settings=lambda s: s, cut=None):
    """A copy of the weights with something else in it."""
    content = pickle.loads((folder / "params.pkl").read_bytes())
    found = json.loads((folder / "hyperparameters.json").read_text())
    data = pickle.dumps(tree(content))
    (path / "params.pkl").write_bytes(data[:cut])
    (path / "hyperparameters.json").write_text(json.dumps(settings(found)))
    return path / "params.pkl"


def with_model(**values):
    return lambda s: {**s, "model": {**s["model"], **values}}


def with_params(**values):
    return lambda t: {"params": {**t["params"], **values}}


def with_shared_parts(tree):
    """A tree of few dicts with 2**15 paths; the one with 2**40 is in test_unpickle."""
    part = {"kernel": np.ones(3)}
    for _ in range(15):
        part = {"a": part, "b": part}
    return with_params(layers_9=part)(tree)


class Hostile:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"settings": with_model(radial_basis_fn="fourier")}, "radial_basis_fn"),
        ({"settings": with_model(num_features=32)}, "shape"),
        ({"settings": with_model(num_layers=3)}, "missing"),
        ({"settings": with_model(num_layers="many")}, "num_layers"),
        ({"settings": with_model(num_heads=0)}, "num_heads"),
        ({"settings": with_model(num_heads=3)}, "groups"),
        ({"settings": with_model(degrees=3)}, "degrees"),
        ({"settings": with_model(zbl_repulsion_bool=False)}, "zbl"),
        ({"settings": with_model(use_spin_embed=False)}, "without spin"),
        ({"settings": lambda s: [1]}, "not those"),
        ({"tree": with_params(layers_9={"kernel": np.ones(3)})}, "layers_9"),
        ({"tree": with_params(layers_9=[1, 2])}, "no array"),
        ({"tree": with_params(layers_9={"kernel": np.full(3, np.nan)})}, "not finite"),
        ({"tree": lambda t: [1, 2]}, "no tree"),
        ({"tree": with_params(layers_9=Hostile())}, "."),
        ({"tree": with_shared_parts}, "no tree of arrays"),
        ({"cut": 3000}, "."),
    ],
)
def test_other_damaged_and_hostile_files_are_refused(
    folder, tmp_path, monkeypatch, change, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message):
        so3lr.read(changed(folder, tmp_path, **change))
    assert not (tmp_path / "executed").exists()


def test_weights_without_their_settings_are_refused(folder, tmp_path):
    (tmp_path / "params.pkl").write_bytes((folder / "params.pkl").read_bytes())
    with pytest.raises(ModelError, match="settings are missing"):
        so3lr.read(tmp_path / "params.pkl")

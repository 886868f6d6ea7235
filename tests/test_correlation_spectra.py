"""Spectra and transport from trajectories: exact sums, analytic oscillators, calibrated errors."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from numpy.testing import assert_allclose
from structures import KEY

import jaxmlip
from jaxmlip import pretrained, units, vibrations
from jaxmlip.derivatives.response import current, dipole
from jaxmlip.errors import DataError
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.md.integrators import langevin, nve
from jaxmlip.md.motion import at_rest, thermal_motion
from jaxmlip.md.relax import relax
from jaxmlip.md.run import prepare, trajectory
from jaxmlip.potential import Potential, add_field
from jaxmlip.system import concatenate, edge_vectors, sum_atoms, sum_edges, to_edges
from jaxmlip.vibrations import raman, spectra
from jaxmlip.vibrations.spectra import quantum
from jaxmlip.vibrations.spectra.along import along
from jaxmlip.vibrations.spectra.correlation import fast_length, square_displacements
from jaxmlip.vibrations.spectra.density import (
    LIGHT,
    blackman,
    density_of_rate,
    gaussian,
    hann,
)

WINDOWS = (gaussian, hann, blackman)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def relaxing(n_frames, n, keep, seed=0):
    """Stationary Ornstein-Uhlenbeck series [n_frames, n] of variance one, correlation keep**k."""
    x, kicks = noise(n_frames, n, seed=seed), np.sqrt(1 - keep**2)
    for t in range(1, n_frames):
        x[t] = keep * x[t - 1] + kicks * x[t]
    return x


# --- correlations --------------------------------------------------------------------------------


def test_correlations_by_fft_are_the_sums_over_pairs():
    x, y, w = noise(50, 3, 2), noise(50, 3, 2, seed=1), np.arange(6.0)
    pairs = lambda x, y: [
        np.mean([(w * x[t].ravel() * y[t + k].ravel()).sum() for t in range(50 - k)])
        for k in range(50)
    ]
    assert_allclose(spectra.correlation(x, y, weights=w), pairs(x, y), atol=1e-12)
    assert_allclose(spectra.correlation(x, n_lags=7, weights=w), pairs(x, x)[:7], atol=1e-12)
    r = 100 + noise(50, 4, 3).cumsum(0)
    direct = [((r[k:] - r[: 50 - k]) ** 2).sum(2).mean() for k in range(30)]
    assert_allclose(square_displacements(r, n_lags=30), direct, atol=1e-10)


def test_lengths_of_transforms_have_small_factors():
    for n in (1, 2, 7, 11, 97, 1021, 65537, 10**6 + 3):
        size = fast_length(n)
        rest = size
        for p in (2, 3, 5):
            while rest % p == 0:
                rest //= p
        assert rest == 1 and n <= size <= max(1.2 * n, n + 1)


def test_the_error_bars_of_blocks_are_standard_deviations():
    # 400 series with a known mean: errors / error bars have variance (n - 1)/(n - 3) for n blocks
    keep, n = 0.8, 400
    x = relaxing(5000, n, keep)
    mean, error = spectra.block_average(x, n_blocks=20)
    share = mean / error
    assert abs(share.var() - 19 / 17) < 4 * np.sqrt(2 / n) * 19 / 17
    assert (np.abs(share) < 3).mean() > 0.98
    # frames per independent sample (1 + keep)/(1 - keep); the scatter of the means knows it, too
    times = [spectra.correlation_time(series) for series in x.T[:20]]
    assert_allclose(np.mean(times), 9, rtol=0.1)
    assert_allclose(mean.std(), np.sqrt(9 / 5000), rtol=4 / np.sqrt(2 * n))


# --- spectral densities --------------------------------------------------------------------------


@pytest.mark.parametrize("window", WINDOWS)
def test_the_integral_of_a_density_is_the_mean_square(window):
    x, w = noise(2000, 3), np.array([1.0, 2.0, 5.0])
    found = spectra.spectral_density(x, dt=0.7, width=120.0, window=window, weights=w)
    assert_allclose(spectra.integral(found)[0], (w * x**2).sum(1).mean(), rtol=1e-12)
    assert_allclose(found.wavenumbers_cm1[-1], 1 / (2 * 0.7 * LIGHT), rtol=1e-12)


@pytest.mark.parametrize("window", WINDOWS)
def test_an_undamped_oscillator_is_a_line_of_the_asked_width(window):
    nu, dt, width = 1500.0, 1.0, 25.0
    x = np.sin(2 * np.pi * LIGHT * nu * dt * np.arange(40_000) + 0.3)
    found = spectra.spectral_density(x, dt=dt, width=width, window=window)
    grid, y = found.wavenumbers_cm1, found.values
    assert_allclose(spectra.integral(found, 1300, 1700)[0], 0.5, rtol=2e-3)
    half = grid[y > y.max() / 2]
    assert_allclose(half.mean(), nu, atol=grid[1])
    assert width - 2 * grid[1] <= np.ptp(half) <= width
    if window is gaussian:
        sigma = width / np.sqrt(8 * np.log(2))
        line = 0.5 * np.exp(-((grid - nu) ** 2) / 2 / sigma**2) / sigma / np.sqrt(2 * np.pi)
        assert_allclose(y, line, atol=2e-3 * line.max())
    # the rate of x has 2 pi c nu times its amplitude, differences or not
    rate = density_of_rate(x, dt=dt, width=width, window=window)
    omega = 2 * np.pi * nu * LIGHT / units.fs
    assert_allclose(spectra.integral(rate, 1300, 1700)[0], omega**2 / 2, rtol=5e-3)


def test_a_damped_oscillator_has_its_analytic_spectrum():
    # Langevin by its exact propagator: G = 4 c gamma (kT/m) / ((w0² - w²)² + gamma² w²); 6.4 ns in
    # all are 5800 samples of a line of 30 cm⁻¹: noise of 1.3 % at a point, 0.4 % in the band
    nu0, damping, dt, n = 800.0, 400.0, 2.0, 320
    omega, gamma = (2 * np.pi * LIGHT * x for x in (nu0, damping))
    values, vectors = np.linalg.eig(np.array([[0, 1], [-(omega**2), -gamma]]))
    step = ((vectors * np.exp(values * dt)) @ np.linalg.inv(vectors)).real
    covariance = np.diag([1 / omega**2, 1.0])  # <x²>, <v²> for kT/m = 1
    root = np.linalg.cholesky(covariance - step @ covariance @ step.T)
    state, rng = np.linalg.cholesky(covariance) @ noise(2, n), np.random.default_rng(1)
    x = np.empty((10_000, n))
    for t in range(len(x)):
        x[t] = state[0]
        state = step @ state + root @ rng.standard_normal((2, n))
    found = spectra.spectral_density(x, dt=dt, width=30.0, n_blocks=10)
    w = 2 * np.pi * LIGHT * found.wavenumbers_cm1
    exact = 4 * LIGHT * n * gamma / ((omega**2 - w**2) ** 2 + gamma**2 * w**2)
    band = exact > 0.3 * exact.max()
    assert_allclose(found.values[band], exact[band], rtol=0.05)
    error = np.trapezoid((found.values - exact)[band]) / np.trapezoid(exact[band])
    assert abs(error) < 0.01


def test_error_bars_of_spectra_hold_what_is_true():
    # white noise has the density 2 c dt; points a few widths apart are independent
    found = spectra.spectral_density(noise(300_000, 1), dt=1.0, width=200.0)
    share = ((found.values - 2 * LIGHT) / found.errors)[8:-8:12]
    assert len(found.blocks) == 10 and len(share) > 50
    assert abs((share**2).mean() - 9 / 7) < 5 * np.sqrt(2 / len(share)) * 9 / 7


def test_every_quantum_factor_obeys_detailed_balance():
    x = np.array([1e-8, 1e-3, 0.5, 3.0, 20.0])
    for factor in (quantum.harmonic, quantum.standard, quantum.schofield, quantum.mixed):
        assert_allclose(factor(x), np.exp(x) * factor(-x), rtol=1e-12)
        assert_allclose(factor(0.0), 1)
        assert_allclose(factor(1e-3), 1 + 5e-4, rtol=1e-6)  # all alike near the classical limit


# --- a harmonic molecule: the spectra of its modes -----------------------------------------------


MASSES = np.array([15.999, 1.008, 1.008])
PLACES = np.array([[0.0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]])
TEMPERATURE, DT = 300.0, 0.5


def springs():
    """The Hessian of three springs between three atoms, [3, 3, 3, 3] eV/Å²."""
    out = np.zeros((3, 3, 3, 3))
    for i, j, k in ((0, 1, 45.0), (0, 2, 47.0), (1, 2, 8.0)):
        n = PLACES[i] - PLACES[j]
        block = k * np.outer(n, n) / (n @ n)
        out[i, :, i] += block
        out[j, :, j] += block
        out[i, :, j] -= block
        out[j, :, i] -= block
    return out


@pytest.fixture(scope="module")
def harmonic():
    """Velocity Verlet in a quadratic potential, every mode with the energy kT, and its modes."""
    hessian = springs()
    energy = lambda u: 0.5 * jnp.einsum("ia,iajb,jb->", u, hessian, u)
    potential = Potential(
        lambda key, system: {},
        lambda params, system: {"energy": energy(system.positions - PLACES)[None]},
        1.0,
    )
    modes = vibrations.normal_modes(hessian, MASSES, PLACES)
    system = from_ase(Atoms("OH2", PLACES), 1.0)
    observe = lambda motion, *_: {"r": motion.positions, "v": motion.velocities}
    run = prepare(potential, {}, system, nve(dt=DT), masses=MASSES, observe=observe)
    speed = np.sqrt(2 * units.kB * TEMPERATURE) * modes.displacements.sum(0)
    start = replace(at_rest(system, KEY), velocities=jnp.asarray(speed))
    done = next(trajectory(run, start, steps=20_000, block=20_000, record=2))
    z = noise(3, 3, 3)
    z -= z.mean(0)  # acoustic sum rule
    tensors = noise(3, 3, 3, 3, seed=2)
    tensors = tensors + tensors.swapaxes(2, 3)
    tensors -= tensors.mean(0)
    u = done.records["r"] - PLACES
    # Verlet: sin(w' dt/2) = w dt/2; its velocities are sin(w' dt)/(w' dt) of the true rate, and it
    # is they that have the energy kT at the start
    angle = np.arcsin(np.pi * LIGHT * DT * modes.frequencies_cm1)
    return SimpleNamespace(
        modes=modes,
        swing=(2 * angle / np.sin(2 * angle)) ** 2,
        moved=replace(modes, frequencies_cm1=angle / (np.pi * LIGHT * DT)),
        born=z,
        tensors=tensors,
        velocities=done.records["v"],
        dipoles=3.0 + np.einsum("tia,iab->tb", u, z),
        currents=np.einsum("tia,iab->tb", done.records["v"], z),
        alpha=np.eye(3) + np.einsum("tia,iabc->tbc", u, tensors),
        options={"dt": 2 * DT, "width": 20.0},
        thermal={"dt": 2 * DT, "width": 20.0, "temperature": TEMPERATURE},
    )


def bands(spectrum, modes):
    """Integrals and centres of the bands of the modes."""
    out = []
    for nu in modes.frequencies_cm1:
        area = spectra.integral(spectrum, nu - 80, nu + 80)[0]
        near = np.abs(spectrum.wavenumbers_cm1 - nu) < 80
        x, y = spectrum.wavenumbers_cm1[near], spectrum.values[near]
        out.append((area, np.trapezoid(x * y, x) / area))
    return np.array(out).T


def test_classical_infrared_bands_are_the_harmonic_intensities(harmonic):
    expected = vibrations.intensities(harmonic.born, harmonic.modes)
    found = spectra.infrared_from_dipole(harmonic.dipoles, **harmonic.thermal)
    exact = spectra.without_verlet_shift(found, DT)
    areas, centres = bands(exact, harmonic.modes)
    assert_allclose(areas / harmonic.swing, expected, rtol=0.01)
    assert_allclose(centres, harmonic.modes.frequencies_cm1, atol=0.5)  # cm⁻¹
    # f-sum rule: all absorption is that of the modes; with the rotations it is sum of |Z|²/m
    flow = spectra.infrared_from_current(harmonic.currents, **harmonic.thermal)
    assert_allclose(bands(flow, harmonic.moved)[0], expected, rtol=0.01)
    assert_allclose(spectra.integral(flow)[0], expected.sum(), rtol=0.01)
    total = units.infrared_intensity * (harmonic.born**2 / MASSES[:, None, None]).sum()
    assert expected.sum() <= total * (1 + 1e-9)


@pytest.mark.parametrize("window", WINDOWS[1:])
def test_bands_do_not_depend_on_the_window(harmonic, window):
    first = spectra.infrared_from_dipole(harmonic.dipoles, **harmonic.thermal)
    other = spectra.infrared_from_dipole(harmonic.dipoles, window=window, **harmonic.thermal)
    assert_allclose(bands(other, harmonic.moved)[0], bands(first, harmonic.moved)[0], rtol=0.005)


def test_classical_raman_bands_are_the_harmonic_activities(harmonic):
    found = spectra.raman_scattering(harmonic.alpha, **harmonic.thermal)
    activity = raman.activities(harmonic.tensors, harmonic.modes)
    areas = bands(found.activity, harmonic.moved)[0] / harmonic.swing
    assert_allclose(areas, activity, rtol=0.01)
    ratio = raman.depolarization(harmonic.tensors, harmonic.modes)
    vertical, horizontal = (
        bands(s, harmonic.moved)[0] for s in (found.parallel, found.perpendicular)
    )
    assert_allclose(horizontal / vertical, ratio, rtol=0.01)
    light = {"temperature": TEMPERATURE, "laser": 1e7 / 785}
    sections = raman.cross_sections(harmonic.moved.frequencies_cm1, activity, **light)
    scattered = spectra.cross_section(found.activity, **light)
    assert_allclose(bands(scattered, harmonic.moved)[0] / harmonic.swing, sections, rtol=0.01)


def test_states_are_counted(harmonic):
    labels = np.array(["O", "H", "H"])
    whole, parts = spectra.density_of_states(
        harmonic.velocities, MASSES, dof=3, labels=labels, **harmonic.options
    )
    assert_allclose(spectra.integral(whole)[0], 3, rtol=1e-12)
    assert_allclose(bands(whole, harmonic.moved)[0], 1, rtol=0.02)  # one state a mode
    share = lambda atoms: (harmonic.modes.vectors[:, atoms] ** 2).sum((1, 2))
    for label, atoms in (("O", [0]), ("H", [1, 2])):
        assert_allclose(bands(parts[label], harmonic.moved)[0], share(atoms), atol=0.02)


def test_other_quantum_factors_scale_the_bands(harmonic):
    plain = spectra.infrared_from_dipole(harmonic.dipoles, **harmonic.thermal)
    found = spectra.infrared_from_dipole(
        harmonic.dipoles, quantum=quantum.standard, **harmonic.thermal
    )
    x = quantum.reduced(harmonic.moved.frequencies_cm1, TEMPERATURE)
    ratio = bands(found, harmonic.moved)[0] / bands(plain, harmonic.moved)[0]
    assert_allclose(ratio, 2 / x * np.tanh(x / 2), rtol=0.01)


def test_absorption_coefficients_are_those_of_si_units():
    # one charge e swings with 0.1 Å at 1000 cm⁻¹ in 1000 Å³, by textbook in SI
    nu, temperature, volume = 1000.0, 300.0, 1000.0
    t = np.arange(40_000)
    x = 0.1 * np.cos(2 * np.pi * LIGHT * nu * t)
    dipoles = np.stack([x, 0 * x, 0 * x], 1)
    found = spectra.infrared_from_dipole(dipoles, dt=1.0, temperature=temperature, width=20.0)
    area = spectra.integral(spectra.absorption_coefficient(found, volume), 900, 1100)[0]
    c, e, kB, eps0 = 299792458.0, 1.6021766e-19, 1.380649e-23, 8.8541878e-12
    omega = 2 * np.pi * c * 100 * nu
    mean_square = (e * 0.1e-10 * omega) ** 2 / 2  # <J²>
    # n alpha(omega) = 1/(3 V eps0 c kT) int_0^inf <JJ> cos: a line of area pi/2 <J²>
    by_omega = mean_square * np.pi / 2 / (3 * volume * 1e-30 * eps0 * c * kB * temperature)
    by_nu = by_omega / (2 * np.pi * c * 100) / 100  # rad/s to cm⁻¹, 1/m to 1/cm
    assert_allclose(area, by_nu, rtol=2e-3)


# --- a molecule in a large box -------------------------------------------------------------------


def bond_charges():
    """Charges that flow along bonds as these stretch: a crystal has their current, no dipole."""

    def apply(params, system):
        v = edge_vectors(system)
        d = jnp.sqrt((v**2).sum(-1))
        z = system.numbers.astype(v.dtype)
        flow = 0.1 * (z[:, None] - to_edges(system, z)) * jnp.exp(-d)
        charges = sum_edges(system, flow)
        dipole = sum_atoms(system, charges[:, None] * system.positions)
        return {"energy": 0 * dipole[:, 0], "charges": charges, "dipole": dipole}

    return add_field(Potential(lambda key, system: {}, apply, 4.0))


def test_in_a_periodic_box_the_current_gives_the_spectrum_of_the_dipole():
    # a molecule that vibrates, turns and leaves its box, wrapped, against the same in the open
    model, dt = bond_charges(), 1.0
    modes = vibrations.normal_modes(springs(), MASSES, PLACES)
    w = 2 * np.pi * LIGHT * modes.frequencies_cm1 * np.array([0.7, 0.8, 1.0])

    def place(t):
        u = 0.06 * jnp.einsum("k,kia->ia", jnp.cos(w * t), modes.displacements)
        turn = 0.004 * t
        c, s = jnp.cos(turn), jnp.sin(turn)
        axes = jnp.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
        return (PLACES + u) @ axes + 0.007 * t * jnp.array([1.0, 2.0, -1.5])

    times = dt * np.arange(1200)
    r, v = jax.jit(jax.vmap(lambda t: jax.jvp(place, (t,), (1.0,))))(times)
    r, v = np.asarray(r), np.asarray(v) / units.fs
    boxed = Atoms("OH2", PLACES, cell=[9.0, 9.5, 10.0], pbc=True)
    cell = np.asarray(boxed.cell)
    wrapped = (r @ np.linalg.inv(cell) % 1) @ cell
    jumps = wrapped - r
    assert np.ptp(jumps, axis=0).max() > 8  # it left
    assert_allclose(
        spectra.unwrapped(wrapped, cell, True) - r, jumps[:1].repeat(1200, 0), atol=1e-9
    )
    options = {"cutoff": 4.0}
    outside = along(dipole(model.apply), {}, from_ase(Atoms("OH2", PLACES), None), r, **options)
    flow = along(current(model.apply), {}, from_ase(boxed, None), wrapped, moving=v, **options)
    thermal = {"dt": dt, "width": 80.0, "temperature": 300.0}
    expected = spectra.infrared_from_dipole(outside, **thermal)
    found = spectra.infrared_from_current(flow[:-1], **thermal)
    # a frame more or less, and means over intervals: both fall as dt² and 1/frames
    assert_allclose(found.values, expected.values, atol=2e-3 * expected.values.max())
    assert_allclose(spectra.integral(found)[0], spectra.integral(expected)[0], rtol=2e-3)


def test_jumps_of_the_dipole_between_branches_are_taken_back():
    cell = np.array([[5.0, 0, 0], [1, 6, 0], [0, 2, 7]])
    smooth = np.cumsum(0.3 * noise(200, 3), 0)
    jumps = np.random.default_rng(1).integers(-2, 3, (200, 3)) * [1, 1, 0]
    jumps[0] = 0
    found = spectra.continuous_dipoles(smooth + jumps @ cell, cell, [True, True, False])
    assert_allclose(found, smooth, atol=1e-12)


# --- transport -----------------------------------------------------------------------------------


def test_a_brownian_particle_diffuses():
    # velocities of an Ornstein-Uhlenbeck process: D = <v²> tau
    n, dt, keep = 60, 2.0, 0.9
    v = relaxing(8000, 3 * n, keep).reshape(-1, n, 3)
    r = np.cumsum(v, 0) * dt * units.fs
    tau = dt / 2 * (1 + keep) / (1 - keep)  # of the sum of correlations, trapezoidal
    exact = units.fs**2 * tau * 0.1  # cm²/s
    einstein = spectra.diffusion_from_displacements(r, dt=dt, between=(200.0, 1000.0))
    kubo = spectra.diffusion_from_velocities(v, dt=dt, upto=200.0)
    for found in (einstein, kubo):
        assert abs(found.value - exact) < 4 * found.error
        assert found.error < 0.1 * exact
    assert kubo.curves.shape == (5, 101)


def test_a_cell_that_breathes_carries_no_atom_away():
    # fractions are what diffuses: seven cells away, wrapped or not
    start = np.array([[4.0, 0, 0], [1, 5, 0], [0, 1, 6]])
    cells = start @ (np.eye(3) + 0.02 * noise(50, 3, 3))
    fractions = np.broadcast_to([[0.1, 0.2, 0.3], [7.1, -6.2, 0.4]], (50, 2, 3)).copy()
    fractions[:, 1] += np.cumsum(0.1 * noise(50, 3), 0)
    expected = fractions @ cells.mean(0)
    for given in (fractions, fractions % 1):
        r = spectra.unwrapped(given @ cells, cells, [True, True, True])
        r = spectra.in_mean_cell(r, cells)
        assert_allclose(r - r[0], expected - expected[0], atol=1e-12)


def test_viscosity_and_conductivity_are_those_of_si_units():
    keep, dt, temperature, volume = 0.8, 1.0, 120.0, 5000.0
    tau = 1e-15 * dt / 2 * (1 + keep) / (1 - keep)  # s
    kT, cubic = 1.380649e-23 * temperature, volume * 1e-30
    x = 1e-4 * relaxing(20_000, 9, keep).reshape(-1, 3, 3)
    thermal = {"dt": dt, "temperature": temperature, "volume": volume, "upto": 60.0}
    found = spectra.viscosity(x, **thermal)
    pascal = 1e-4 * 1.6021766e-19 * 1e30
    # an element off the diagonal is the mean of two independent ones: half their variance
    assert_allclose(found.value, cubic / kT * pascal**2 / 2 * tau, rtol=0.1)
    found = spectra.thermal_conductivity(x[:, 0], **thermal)
    watt_metre = 1e-4 * 1.6021766e-19 * 1e-10 * units.second
    exact = watt_metre**2 * tau / (cubic * kT * temperature)
    assert_allclose(found.value, exact, rtol=0.1)


def test_the_correction_for_periodic_images_is_that_of_si_units():
    # water: 298 K, 0.89 mPa s, a cube of 20 Å
    found = spectra.infinite_cell_diffusion(
        2e-5, temperature=298.0, viscosity=0.89e-3, volume=8000.0
    )
    by_hand = 2.837297 * 1.380649e-23 * 298 / (6 * np.pi * 0.89e-3 * 2e-9)  # m²/s
    assert_allclose(found - 2e-5, 1e4 * by_hand, rtol=1e-5)


# --- what cannot be ------------------------------------------------------------------------------


def test_what_a_trajectory_cannot_tell_is_refused():
    short = noise(100, 3)
    with pytest.raises(DataError, match="a width above"):
        spectra.infrared_from_current(short, dt=1.0, temperature=300.0, width=1.0)
    with pytest.raises(DataError, match="longer than a block"):
        spectra.diffusion_from_velocities(short[:, None], dt=1.0, upto=500.0)
    with pytest.raises(DataError, match="not finite in 1 frames, first 7"):
        broken = short.copy()
        broken[7, 1] = np.nan
        spectra.spectral_density(broken, dt=1.0, width=1000.0)
    with pytest.raises(DataError, match="not \\[n_frames, 3\\]"):
        spectra.infrared_from_dipole(short[:, :2], dt=1.0, temperature=300.0)
    with pytest.raises(DataError, match="temperature"):
        spectra.infrared_from_dipole(short, dt=1.0, temperature=0.0, width=1000.0)


# --- a molecule that is not harmonic -------------------------------------------------------------


def anharmonicity(hessian_at, modes, place):
    """x_ij [n, n] cm⁻¹ of second-order perturbation theory without rotation (Nielsen, 1951,
    10.1103/RevModPhys.23.90), from Hessians a step along each mode.
    """
    w, step = modes.frequencies_cm1, 0.2
    along_q = modes.displacements * np.sqrt(units.hbar**2 / (w * units.invcm))[:, None, None]

    def second(move):
        h = np.asarray(hessian_at(place + move))
        return np.einsum("iax,axby,jby->ij", along_q, h, along_q) / units.invcm

    zero = second(0)
    pairs = [(second(step * a), second(-step * a)) for a in along_q]
    cubic = np.stack([(up - down) / (2 * step) for up, down in pairs], -1)
    quartic = np.stack([np.diag(up + down - 2 * zero) / step**2 for up, down in pairs], -1)
    n, x = len(w), np.zeros((len(w), len(w)))
    for i in range(n):
        x[i, i] = quartic[i, i] / 16
        for k in range(n):
            x[i, i] -= (
                cubic[i, i, k] ** 2 * (8 * w[i] ** 2 - 3 * w[k] ** 2) / (4 * w[i] ** 2 - w[k] ** 2)
            ) / (16 * w[k])
        for j in set(range(n)) - {i}:
            x[i, j] = quartic[i, j] / 4
            for k in range(n):
                x[i, j] -= cubic[i, i, k] * cubic[j, j, k] / (4 * w[k])
                sums = [w[i] + a * w[j] + b * w[k] for a in (1, -1) for b in (1, -1)]
                x[i, j] += (
                    cubic[i, j, k] ** 2
                    * w[k]
                    * (w[i] ** 2 + w[j] ** 2 - w[k] ** 2)
                    / (2 * np.prod(sums))
                )
    return x


@pytest.mark.slow
@pytest.mark.optimised
def test_bands_of_water_at_300_K_lie_where_its_anharmonicity_puts_them():
    # classical: E = sum of w J + x J J with <J> = kT/w shifts w_i by 2 x_ii J_i + sum of x_ij J_j
    if "organic" not in pretrained.names():
        pytest.skip("the packaged weights are absent")
    potential, params = jaxmlip.load("organic", elements=[1, 8])
    params = jaxmlip.cast(params, np.float64)
    start = from_ase(Atoms("OH2", PLACES), potential.cutoff)
    single, info = relax(potential, params, start, fmax=1e-5)
    assert info.converged
    place = np.asarray(single.positions)
    hessian = jax.jit(jaxmlip.hessian(potential.apply))
    hessian_at = lambda r: hessian(params, replace(single, positions=jnp.asarray(r)))
    modes = vibrations.normal_modes(hessian_at(place), MASSES, place)
    strength = vibrations.intensities(
        jax.jit(jaxmlip.born_charges(potential.apply))(params, single), modes
    )
    w = modes.frequencies_cm1
    x, actions = anharmonicity(hessian_at, modes, place), units.kB * 300 / units.invcm / w
    expected = w + (x + np.diag(np.diag(x))) @ actions

    batch = concatenate([single] * 8)
    observe = lambda motion, *_: {
        "dipole": motion.extra["dipole"],
        "places": motion.positions.reshape(8, 3, 3),
    }
    options = {"masses": np.tile(MASSES, 8), "observe": observe, "keep": ("dipole",)}
    warm = prepare(
        potential, params, batch, langevin(dt=0.5, temperature=300.0, friction=0.02), **options
    )
    motion = thermal_motion(batch, warm.bodies, KEY, temperature=300.0)
    motion = next(trajectory(warm, motion, steps=1600, block=1600, record=4)).motion
    alone = prepare(potential, params, batch, nve(dt=0.5), **options)
    motion = replace(motion, bath=(), list=(), step=np.int32(-1))
    records = next(trajectory(alone, motion, steps=6000, block=6000, record=4)).records
    dipoles = records["dipole"]
    thermal = {"dt": 2.0, "width": 40.0, "temperature": 300.0}
    found = [spectra.infrared_from_dipole(d, **thermal) for d in dipoles.swapaxes(0, 1)]
    found = spectra.without_verlet_shift(spectra.averaged(*found), 0.5)
    for low, high, chosen in ((1200, 2200, [0]), (3000, 4500, [1, 2])):
        inside = (found.wavenumbers_cm1 > low) & (found.wavenumbers_cm1 < high)
        centre = np.average(found.wavenumbers_cm1[inside], weights=found.values[inside])
        assert abs(centre - np.average(expected[chosen], weights=strength[chosen])) < 30
    # the two stretches by themselves: the sum and the difference of the bonds
    bonds = np.linalg.norm(records["places"][:, :, 1:] - records["places"][:, :, :1], axis=-1)
    along = place[1:] - place[:1]
    along /= np.linalg.norm(along, axis=1, keepdims=True)
    moved = modes.displacements[:, 1:] - modes.displacements[:, :1]
    changes = np.einsum("kia,ia->ki", moved, along)  # of the bonds, by mode
    for sign in (1, -1):
        which = int(np.abs(changes[:, 0] + sign * changes[:, 1])[1:].argmax()) + 1
        stretch = np.diff((bonds[..., 0] + sign * bonds[..., 1]), axis=0)  # its velocity
        one = spectra.spectral_density(stretch, dt=2.0, width=40.0)
        one = spectra.without_verlet_shift(one, 0.5)
        inside = (one.wavenumbers_cm1 > 3000) & (one.wavenumbers_cm1 < 4500)
        centre = np.average(one.wavenumbers_cm1[inside], weights=one.values[inside])
        assert abs(centre - expected[which]) < 30

"""Heat capacity, entropy and free energy of a crystal from its vibrations at Γ or at a few q.

Large cells (frameworks) need few wavevectors, and small ones more. Whatever gave the frequencies,
what follows sees a `Spectrum`: frequencies and how many modes of a cell each of them stands for.
Modes that are not oscillators (imaginary ones, translations at Γ) are never dropped in silence:
their number stands beside every heat capacity, and so does the heat capacity with each of them at
its classical k, from which the quantum value of a soft mode is not far.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from jaxmlip import units
from jaxmlip.errors import DataError, NumericalError, UsageError
from jaxmlip.vibrations.modes import frequencies_cm1, normal_modes
from jaxmlip.vibrations.rigid import checked_masses, rigid_motions


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Vibrations of one cell; host numpy, float64."""

    frequencies_cm1: np.ndarray  # [n] negative = imaginary
    weights: (
        np.ndarray
    )  # [n] modes that each stands for; the sum is 3 n_atoms less what is left out
    n_probes: int = 0  # random vectors of which the weights are a mean; 0: they are exact
    quality: dict = field(default_factory=dict)  # figures of merit of the Hessian, for the record


@dataclass(frozen=True, kw_only=True)
class CrystalThermodynamics:
    """Harmonic vibrations of one cell. Energies eV, entropies and heat capacities eV/K, a cell."""

    temperatures: np.ndarray  # [n_T] K
    heat_capacity: np.ndarray  # [n_T] at constant volume, of the modes that are counted
    heat_capacity_error: np.ndarray  # [n_T] standard deviation of a spectrum of random probes
    classical_heat_capacity: np.ndarray  # [n_T] the same, and k for each mode that is left out
    entropy: np.ndarray  # [n_T]
    free_energy: np.ndarray  # [n_T] zero point included, potential energy not
    zero_point_energy: float
    n_imaginary: float  # whole numbers at Γ; an average over q or an estimate elsewhere
    n_left_out: float  # imaginary modes left out, and the three translations at Γ
    lowest_cm1: float
    mass: float  # amu a cell

    def molar(self, value):
        """J/(K mol of cells) of a value in eV/K, J/mol of one in eV."""
        return np.asarray(value) / units.kJ_mol * 1000

    def gravimetric(self, value):
        """J/(K g) of a value in eV/K, J/g of one in eV."""
        return self.molar(value) / self.mass


# --- what becomes of imaginary modes -------------------------------------------------------------


def left_out(imaginary):
    """Imaginary modes count for nothing: a lower bound of the heat capacity."""
    return imaginary[:0]


def as_real(imaginary):
    """Imaginary modes count as real ones of the same magnitude."""
    return np.abs(imaginary)


def refused(imaginary):
    """Imaginary modes are an error, `NumericalError`."""
    if len(imaginary):
        raise NumericalError(
            f"{len(imaginary)} modes are imaginary, lowest {imaginary.min():.1f} cm⁻¹",
            where="heat capacity",
            fix="relax to a smaller fmax, or in a larger cell; or leave them out",
        )
    return imaginary


# --- thermodynamics of a spectrum ----------------------------------------------------------------


def crystal_thermodynamics(
    spectrum: Spectrum, masses, temperatures, *, imaginary: Callable = left_out
) -> CrystalThermodynamics:
    """Heat capacity, entropy and free energy of one cell at `temperatures` (K).

    masses: [n_atoms] amu. imaginary: `left_out`, `as_real`, `refused`, or a function from negative
    wavenumbers (cm⁻¹) to positive ones, as many (each stands for its mode) or none. A frequency
    of exactly zero is left out by all. Formulas: Einstein functions, as in `thermodynamics`.
    """
    masses = checked_masses(masses, len(masses))
    temperatures = _checked_temperatures(temperatures)
    frequencies, weights = _checked(spectrum)
    used, counted = _counted(frequencies, weights, imaginary)
    capacity, entropy, free_energy, square = _oscillators(used, counted, temperatures)
    n_left_out = 3 * len(masses) - float(counted.sum())
    return CrystalThermodynamics(
        temperatures=temperatures,
        heat_capacity=capacity,
        heat_capacity_error=_error(capacity, square, float(weights.sum()), spectrum.n_probes),
        classical_heat_capacity=capacity + units.kB * n_left_out,
        entropy=entropy,
        free_energy=free_energy,
        zero_point_energy=float(0.5 * units.invcm * (counted @ used)),
        n_imaginary=float(weights[frequencies < 0].sum()),
        n_left_out=n_left_out,
        lowest_cm1=float(frequencies.min()),
        mass=float(masses.sum()),
    )


def _counted(frequencies, weights, imaginary):
    """Positive frequencies and their weights, imaginary ones as the policy says."""
    soft = frequencies < 0
    real = frequencies > 0
    replaced = np.asarray(imaginary(frequencies[soft]), np.float64)
    if len(replaced) not in (0, soft.sum()) or not (replaced > 0).all():
        raise UsageError(
            f"the policy made {len(replaced)} frequencies of {soft.sum()} imaginary ones; it must "
            "give as many positive ones, or none",
            where="crystal_thermodynamics",
        )
    kept = weights[soft] if len(replaced) else weights[:0]
    return np.concatenate([frequencies[real], replaced]), np.concatenate([weights[real], kept])


def _oscillators(frequencies, weights, temperatures):
    """[n_T] heat capacity, entropy, free energy, and sum of squared heat capacities of modes."""
    kT = units.kB * temperatures[:, None]
    x = frequencies * units.invcm / kT
    vacant = -np.expm1(-x)  # not 1/expm1(x), which overflows for a stiff cold mode
    filled = np.exp(-x) / vacant
    each = units.kB * x**2 * filled * (filled + 1)
    entropy = units.kB * (x * filled - np.log(vacant)) @ weights
    free_energy = (kT * (x / 2 + np.log(vacant))) @ weights
    return each @ weights, entropy, free_energy, each**2 @ weights


def _error(total, squares, n_modes, n_probes):
    """Of a sum over modes by random vectors: the variance of uniform directions on a sphere."""
    if not n_probes:
        return np.zeros_like(total)
    spread = np.maximum(squares / n_modes - (total / n_modes) ** 2, 0)
    return n_modes * np.sqrt(2 * spread / ((n_modes + 2) * n_probes))


# --- spectra -------------------------------------------------------------------------------------


def gamma_spectrum(apply, *, memory: float | None = None) -> Callable:
    """(params, system, masses) -> `Spectrum` of the 3 n_atoms - 3 modes at Γ.

    From the whole Hessian within `memory` bytes (`plan_hessian`, compiled once for each shape). One
    structure, host; padding atoms come last, masses [n_atoms] (amu) are of the real ones.
    """
    from jaxmlip.derivatives.second.plan import plan_hessian

    plans = {}

    def spectrum_of(params, system, masses) -> Spectrum:
        _check_several(masses)
        shapes = _shapes((params, system))
        if shapes not in plans:
            plans[shapes] = plan_hessian(apply, params, system, memory=memory)
        plan, n = plans[shapes], _real_atoms(system, masses)
        hessian = np.asarray(plan.run(params, system), np.float64)[:n, :, :n]
        positions = np.asarray(system.positions, np.float64)[:n]
        modes = normal_modes(hessian, masses, positions, pbc=True)
        return Spectrum(
            frequencies_cm1=modes.frequencies_cm1,
            weights=np.ones(len(modes.frequencies_cm1)),
            quality={
                "hessian_asymmetry_eV_per_A2": modes.asymmetry,
                "acoustic_sum_eV_per_A2": modes.acoustic_sum,
                "acoustic_cm1": float(np.abs(modes.rigid_frequencies_cm1).max()),
                "hessian_planned_bytes": plan.peak_bytes,
                "hessian_columns_at_once": plan.chunk,
            },
        )

    return spectrum_of


def lanczos_spectrum(
    apply, *, n_probes: int = 5, n_steps: int = 20, seed: int = 0, memory: float | None = None
) -> Callable:
    """(params, system, masses) -> `Spectrum` at Γ of a cell too large for its Hessian.

    n_probes x n_steps Hessian-vector products (`derivatives.second.lanczos`); heat capacities then
    have an error bar. Imaginary modes are a fraction of the weight, an estimate of their number.
    memory: bytes that the probes of one chunk may use.
    """
    import jax

    from jaxmlip.derivatives.second.lanczos import nodes_and_weights, spectral_density

    density_of = spectral_density(apply, n_probes=n_probes, n_steps=n_steps, memory=memory)

    def spectrum_of(params, system, masses) -> Spectrum:
        _check_several(masses)
        _real_atoms(system, masses)
        density = density_of(params, system, masses, jax.random.key(seed))
        nodes, weights = (x.reshape(-1) for x in nodes_and_weights(density))
        real = weights > 1e-24  # others fill up a space that was exhausted early
        return Spectrum(
            frequencies_cm1=frequencies_cm1(nodes[real]),
            weights=weights[real] * density.n_modes / n_probes,
            n_probes=n_probes,
            quality={"n_hessian_vector_products": density.n_products},
        )

    return spectrum_of


def bloch_spectrum(dynamical_matrix: Callable, qpoints, weights=None) -> Callable:
    """(params, system, masses) -> `Spectrum` averaged over wavevectors, without a supercell.

    dynamical_matrix: (params, system, q) -> [n_q, 3 n_atoms, 3 n_atoms] complex, eV/Å², as
    `derivatives.bloch.dynamical_matrix(apply)`. qpoints: [n_q, 3] in fractions of the
    reciprocal cell, weights [n_q] (default equal). At Γ the translations are left out.
    """
    qpoints = np.atleast_2d(np.asarray(qpoints, np.float64))
    weights = np.ones(len(qpoints)) if weights is None else np.asarray(weights, np.float64)
    if qpoints.shape != (len(weights), 3) or not (weights > 0).all():
        raise UsageError(f"q-points {qpoints.shape} need as many positive weights, [n_q, 3]")

    def spectrum_of(params, system, masses) -> Spectrum:
        n = _real_atoms(system, masses)
        if (qpoints == np.round(qpoints)).all():
            _check_several(masses)
        matrices = np.asarray(dynamical_matrix(params, system, qpoints))[:, : 3 * n, : 3 * n]
        found = [bloch_frequencies(m, masses, q) for m, q in zip(matrices, qpoints, strict=True)]
        shares = [np.full(len(f), w) for f, w in zip(found, weights / weights.sum(), strict=True)]
        asymmetry = np.abs(matrices - matrices.conj().swapaxes(1, 2)).max()
        return Spectrum(
            frequencies_cm1=np.concatenate(found),
            weights=np.concatenate(shares),
            quality={"hessian_asymmetry_eV_per_A2": float(asymmetry), "n_qpoints": len(qpoints)},
        )

    return spectrum_of


def bloch_frequencies(matrix, masses, q):
    """Wavenumbers (cm⁻¹) of D(q) [3 n_atoms, 3 n_atoms] (eV/Å²); at Γ without the translations."""
    root = np.repeat(np.sqrt(masses), 3)
    weighted = np.asarray(matrix) / np.outer(root, root)
    weighted = (weighted + weighted.conj().T) / 2
    if np.abs(q - np.round(q)).max() < 1e-9:
        rigid = rigid_motions(np.zeros((len(masses), 3)), masses, rotations=False)
        rest = np.linalg.qr(rigid.reshape(3, -1).T, mode="complete")[0][:, 3:]
        weighted = rest.T @ weighted @ rest
    return frequencies_cm1(np.linalg.eigvalsh(weighted))


# --- checks --------------------------------------------------------------------------------------


def _real_atoms(system, masses) -> int:
    real = np.asarray(system.numbers) > 0
    n = int(real.sum())
    if system.n_graphs != 1 or not real[:n].all():
        raise UsageError("a spectrum is of one structure, its padding atoms last")
    if not np.any(np.asarray(system.pbc)):
        raise DataError(
            "the structure is not periodic, so it is no crystal",
            where="heat capacity",
            code="JM214",
            fix="`jaxmlip modes` has the thermochemistry of molecules",
        )
    checked_masses(masses, n)
    return n


def _check_several(masses):
    if len(masses) == 1:
        raise DataError(
            "a cell of one atom has no vibrations at Γ but its translations",
            where="heat capacity",
            fix="wavevectors (--qpoints), or a larger cell",
        )


def _shapes(tree):
    import jax

    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((np.shape(x), np.result_type(x).name) for x in leaves)


def _checked(spectrum):
    frequencies = np.asarray(spectrum.frequencies_cm1, np.float64)
    weights = np.asarray(spectrum.weights, np.float64)
    if frequencies.shape != weights.shape or frequencies.ndim != 1 or not len(frequencies):
        raise DataError(f"{frequencies.shape} frequencies have weights {weights.shape}")
    if not (np.isfinite(frequencies).all() and (weights >= 0).all()):
        raise NumericalError("frequencies or weights are not finite", where="heat capacity")
    return frequencies, weights


def _checked_temperatures(temperatures):
    temperatures = np.atleast_1d(np.asarray(temperatures, np.float64))
    if not (np.isfinite(temperatures) & (temperatures > 0)).all():
        raise UsageError(f"temperatures are {temperatures.tolist()} K; they must be positive")
    return temperatures

"""Screening: nothing done twice, nothing lost, nothing hidden; heat capacities of crystals."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import typer
from ase.io import read, write
from numpy.testing import assert_allclose
from salts import CUTOFF, rocksalt, save_salt
from screening_items import deadly, logged, square

from jaxmlip import models, units
from jaxmlip.cli.crystal import screen
from jaxmlip.derivatives.bloch import matrix as bloch
from jaxmlip.derivatives.bloch.matrix import dynamical_matrix
from jaxmlip.derivatives.second import hessian as second
from jaxmlip.derivatives.second import lanczos
from jaxmlip.electrostatics import ewald
from jaxmlip.errors import (
    DataError,
    Interrupted,
    JaxmlipError,
    ModelError,
    NumericalError,
    UsageError,
)
from jaxmlip.interfaces.ase import from_ase
from jaxmlip.models import LennardJones, checkpoint
from jaxmlip.potential import Potential, bind, planned_later
from jaxmlip.system import ladder, pad
from jaxmlip.vibrations.crystals import heat_capacity as cv
from jaxmlip.vibrations.modes import frequencies_cm1
from jaxmlip.workflows import heat_capacity as work
from jaxmlip.workflows import map_resumable, processes
from jaxmlip.workflows.resumable import Outcome

EPSILON, SIGMA = 0.0104, 3.405  # argon: eV, Å
HERE = str(Path(__file__).parent)
threads = partial(ThreadPoolExecutor, 2)


def items_of(numbers, **more):
    return {f"n{x}": {"x": x, **more} for x in numbers}


def until(happened, seconds=600):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def runs(process):
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # it ended just now, or the system has no /proc
        return not Path("/proc/self").exists()
    return state != "Z"  # it has ended, and no one has asked how


def attempts(log):
    return [int(x) for x in Path(log).read_text().split()]


# --- nothing done twice --------------------------------------------------------------------------


def test_finished_items_are_not_computed_again(tmp_path):
    log = str(tmp_path / "log")
    run = partial(map_resumable, logged, executor=threads, folder=tmp_path / "records")
    first = run(items_of([1, 2], log=log))
    second = run(items_of([1, 2, 3], log=log))
    assert sorted(attempts(log)) == [1, 2, 3]
    assert (first.n_reused, second.n_reused) == (0, 2)
    assert second.results == {"n1": {"square": 1}, "n2": {"square": 4}, "n3": {"square": 9}}


def test_what_the_key_says_has_changed_is_computed_again_where_that_is_asked_for(tmp_path):
    log, folder = str(tmp_path / "log"), tmp_path / "records"
    run = partial(map_resumable, logged, executor=threads, folder=folder)
    with_key = lambda setting: partial(run, key=lambda item: [item["x"], setting])
    for setting in ("a", "a"):
        with_key(setting)(items_of([1], log=log))
    before = (folder / "n1.json").read_text()
    with pytest.raises(UsageError, match="JM104 .*1 of the results are .* model or settings: n1"):
        with_key("b")(items_of([1, 2], log=log))
    assert attempts(log) == [1] and (folder / "n1.json").read_text() == before
    with_key("b")(items_of([1], log=log), overwrite=True)
    assert attempts(log) == [1, 1]
    (folder / "n1.json").write_text("{ damaged")
    assert with_key("b")(items_of([1], log=log)).results["n1"] == {"square": 1}
    assert attempts(log) == [1, 1, 1]


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path):
    """Killed while the second item runs: no warning, nothing to clean up."""
    code = f"""if True:
        import time
        from concurrent.futures import ThreadPoolExecutor
        from jaxmlip.workflows import map_resumable
        def slow(item):
            print("begun", item["x"], flush=True)
            time.sleep(0 if item["x"] == 1 else 60)
            return {{"square": item["x"] ** 2}}
        map_resumable(slow, {items_of([1, 2])!r}, executor=lambda: ThreadPoolExecutor(1),
                      folder={str(tmp_path)!r}, in_flight=1)
    """
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    while "begun 2" not in child.stdout.readline():
        assert child.poll() is None
    child.kill()
    child.wait()
    assert [p.name for p in tmp_path.iterdir()] == ["n1.json"]
    done = map_resumable(square, items_of([1, 2]), executor=threads, folder=tmp_path)
    assert done.n_reused == 1 and done.results["n2"] == {"square": 4}


@pytest.fixture
def ctrl_c():
    """Ctrl-C raises; a shell starts its background jobs with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_keeps_what_is_finished_and_says_that_it_resumes(tmp_path, ctrl_c):
    release = threading.Event()

    def blocked(item):
        if item["x"] == 2:
            time.sleep(0.2)  # a signal that comes just before Python waits is heard after the wait
            os.kill(os.getpid(), signal.SIGINT)
            release.wait(20)
        return square(item)

    with pytest.raises(Interrupted, match="1 of 2 are left") as error:
        map_resumable(blocked, items_of([1, 2]), executor=threads, folder=tmp_path, in_flight=1)
    release.set()
    assert error.value.exit_code == 75
    assert [p.name for p in tmp_path.iterdir()] == ["n1.json"]
    assert error.value.outcome.results == {"n1": {"square": 1}}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_run_that_started_it(tmp_path, how, ctrl_c):
    """Whether it was interrupted or had no time for anything."""
    code = f"""if True:
        from screening_items import nap
        from jaxmlip.errors import Interrupted
        from jaxmlip.workflows import map_resumable, processes
        if __name__ == "__main__":
            items = {items_of([1], log=str(tmp_path / "pid"))!r}
            try:
                map_resumable(nap, items, executor=processes(1), folder={str(tmp_path / "r")!r})
            except Interrupted as error:
                raise SystemExit(error.exit_code)
    """
    script = tmp_path / "script.py"
    script.write_text(code)
    path = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path}
    child = subprocess.Popen([sys.executable, script], env=environment)
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    child.send_signal(how)
    assert child.wait(300) == (75 if how == signal.SIGINT else -how)
    worker = int((tmp_path / "pid").read_text())
    until(lambda: not runs(worker), seconds=300)


# --- nothing lost --------------------------------------------------------------------------------


def test_a_failing_item_is_tried_again_and_then_listed(tmp_path):
    log = str(tmp_path / "log")
    items = items_of([1], log=log) | items_of([2], log=log, fails=1)
    items |= items_of([3], log=log, fails=9)
    out = map_resumable(logged, items, executor=threads, folder=tmp_path / "r", retries=2)
    assert list(out.results) == ["n1", "n2"] and list(out.failures) == ["n3"]
    assert sorted(attempts(log)) == [1, 2, 2, 3, 3, 3]
    failure = out.failures["n3"]
    assert failure.attempts == 3 and failure.reason == "OSError: not now"
    assert "in logged" in failure.traceback
    assert not (tmp_path / "r" / "n3.json").exists()  # so that the next run tries again


class Remembering(Executor):
    """As that of dask.distributed: it knows a call by its arguments and makes it once."""

    def __init__(self):
        self.known = {}

    def submit(self, function, *arguments):
        future, call = Future(), repr((function, arguments))
        if call not in self.known:
            self.known[call] = function(*arguments)
        future.set_result(self.known[call])
        return future

    def shutdown(self, wait=True):
        pass


def test_an_executor_needs_to_know_no_more_than_submit_and_shutdown(tmp_path):
    log = str(tmp_path / "log")
    items = items_of([1], log=log) | items_of([2], log=log, fails=1)
    out = map_resumable(logged, items, executor=Remembering, folder=tmp_path / "r")
    assert list(out.results) == ["n1", "n2"] and attempts(log) == [1, 2, 2]


def test_an_error_that_must_come_again_is_not_tried_again(tmp_path):
    log = str(tmp_path / "log")
    items = items_of([1], log=log, fails=9, for_ever=True)
    out = map_resumable(logged, items, executor=threads, folder=tmp_path / "r", retries=5)
    assert attempts(log) == [1]
    assert out.failures["n1"].reason == "JM201 not now"


def test_results_that_are_not_plain_json_are_failures_not_files(tmp_path):
    for value in (float("nan"), np.zeros(2), object()):
        out = map_resumable(
            lambda item, v=value: {"value": v}, {"a": 1}, executor=threads, folder=tmp_path
        )
        assert not out.results and not list(tmp_path.iterdir()), value


def test_a_result_that_is_no_number_is_named_and_not_tried_again(tmp_path):
    for value in (float("nan"), [1.0, [float("inf")]]):
        run = partial(map_resumable, lambda item, v=value: {"here": 1.0, "there": v})
        failure = run({"a": 1}, executor=threads, folder=tmp_path).failures["a"]
        assert failure.attempts == 1 and "'there': a number is not finite" in failure.reason


@pytest.mark.parametrize("killer", [1, 2])
def test_an_item_that_kills_its_worker_fails_alone(tmp_path, killer):
    """Others that were in flight are run again, without an attempt on their account."""
    out = map_resumable(
        deadly,
        items_of(range(6), deadly=killer),
        executor=processes(2),
        folder=tmp_path,
        retries=0,
        in_flight=2,
    )
    assert list(out.failures) == [f"n{killer}"]
    assert "worker died" in out.failures[f"n{killer}"].reason
    assert out.results == {f"n{x}": {"square": x * x} for x in range(6) if x != killer}


@pytest.mark.parametrize("in_flight", [1, 2, 3])
def test_whoever_is_suspected_runs_without_company(tmp_path, in_flight):
    """A pool whose workers all die with the first that does, as that of `processes`."""
    together = []

    class Fragile(Executor):
        def __init__(self):
            self.handed, self.lock = [], threading.Lock()

        def submit(self, attempt, function, item, number):
            with self.lock:
                self.handed.append((future := Future(), item))
                if len(self.handed) == 1:
                    threading.Timer(0.05, self.run).start()  # when all are in
            return future

        def run(self):
            with self.lock:
                done, self.handed = self.handed, []
            together.append([item["x"] for _, item in done])
            for future, item in done:
                if any(i["x"] in i["deadly"] for _, i in done):
                    future.set_exception(BrokenExecutor())
                else:
                    future.set_result({"result": square(item), "seconds": 0.0})

        def shutdown(self, wait=True):
            pass

    items = items_of(range(7), deadly=[1, 3, 6])
    out = map_resumable(
        square, items, executor=Fragile, folder=tmp_path, retries=0, in_flight=in_flight
    )
    assert list(out.failures) == ["n1", "n3", "n6"]
    assert list(out.results) == ["n0", "n2", "n4", "n5"]
    runs = [x for wave in together for x in wave]
    for x in range(7):  # at most once in a pool that died, then alone
        assert runs.count(x) == 1 or (runs.count(x) == 2 and [x] in together), together


def test_names_that_are_no_file_names_are_refused_before_anything_runs(tmp_path):
    for name in ("", "../x", "a/b", ".hidden"):
        with pytest.raises(UsageError, match="not a file name"):
            map_resumable(square, {name: {"x": 1}}, executor=threads, folder=tmp_path)
    with pytest.raises(UsageError, match="case alone"):
        map_resumable(square, {"a": 1, "A": 2}, executor=threads, folder=tmp_path)


# --- heat capacities -----------------------------------------------------------------------------


def spectrum(*frequencies):
    return cv.Spectrum(frequencies_cm1=np.array(frequencies), weights=np.ones(len(frequencies)))


def test_einstein_crystal_has_the_einstein_heat_capacity():
    """Closed forms of Cv, S and F; Dulong-Petit and the third law at the ends."""
    hot, cold, x = 1e5, 1.0, 1.7
    temperature = 200 * units.invcm / (units.kB * x)
    out = cv.crystal_thermodynamics(spectrum(200, 200, 200), [12.0], [temperature, hot, cold])
    einstein = 3 * units.kB * x**2 * np.exp(x) / np.expm1(x) ** 2
    assert_allclose(out.heat_capacity, [einstein, 3 * units.kB, 0], rtol=1e-5, atol=1e-30)
    entropy = 3 * units.kB * (x / np.expm1(x) - np.log1p(-np.exp(-x)))
    assert_allclose(out.entropy[[0, 2]], [entropy, 0], rtol=1e-12, atol=1e-30)
    kT = units.kB * temperature
    assert_allclose(out.free_energy[0], 3 * kT * np.log(2 * np.sinh(x / 2)), rtol=1e-12)
    assert_allclose(out.zero_point_energy, 300 * units.invcm, rtol=1e-12)
    assert_allclose(out.molar(units.kB), 8.314459, rtol=1e-6)  # the gas constant, J/(K mol)
    assert_allclose(out.gravimetric(units.kB), 8.314459 / 12, rtol=1e-6)


def test_imaginary_modes_are_counted_and_the_policy_decides_what_they_add():
    soft, hard = spectrum(-50.0, 100, 200), spectrum(50.0, 100, 200)
    of = lambda s, policy: cv.crystal_thermodynamics(s, [12.0], 300, imaginary=policy)
    dropped, real = of(soft, cv.left_out), of(soft, cv.as_real)
    assert (dropped.n_imaginary, dropped.n_left_out) == (1, 1)
    assert (real.n_imaginary, real.n_left_out, real.lowest_cm1) == (1, 0, -50)
    assert_allclose(real.heat_capacity, of(hard, cv.left_out).heat_capacity, rtol=1e-14)
    assert_allclose(dropped.classical_heat_capacity - dropped.heat_capacity, units.kB, rtol=1e-9)
    assert dropped.heat_capacity < real.heat_capacity < dropped.classical_heat_capacity
    with pytest.raises(NumericalError, match="1 modes are imaginary, lowest -50.0"):
        of(soft, cv.refused)
    with pytest.raises(UsageError, match="as many positive"):
        of(soft, lambda imaginary: imaginary)


def springs():
    """(potential, params, primitive fcc cell, masses, k): Lennard-Jones to the first shell only.

    At the bottom of the well no bond is under tension, so each of the 12 is a spring k = V''.
    """
    potential = LennardJones(elements=(18,), epsilon=EPSILON, sigma=SIGMA, cutoff=5.0)
    atoms = ase.build.bulk("Ar", "fcc", a=2 ** (2 / 3) * SIGMA)
    k = 72 * EPSILON / (2 ** (1 / 3) * SIGMA**2)
    return potential, {}, atoms, k


def analytic(atoms, k, q):
    """Wavenumbers of springs k between first neighbours: D(q) = k sum of n n (1 - cos 2 pi q.R)."""
    images = np.array([x for x in np.ndindex(3, 3, 3)]) - 1
    vectors = images @ atoms.cell.array
    first = abs(np.linalg.norm(vectors, axis=1) - 2 ** (1 / 6) * SIGMA) < 1e-6
    n = vectors[first] / np.linalg.norm(vectors[first], axis=1)[:, None]
    phase = 1 - np.cos(2 * np.pi * images[first] @ q)
    matrix = k * np.einsum("r,ra,rb->ab", phase, n, n) / atoms.get_masses()[0]
    return frequencies_cm1(np.linalg.eigvalsh(matrix))


def test_gamma_of_a_padded_supercell_has_the_analytic_frequencies_of_the_cell():
    """2 x 2 x 2 cells at Γ are one cell at eight q: each Hessian is known in closed form."""
    potential, params, atoms, k = springs()
    large = atoms * (2, 2, 2)
    system = pad(from_ase(large, potential.cutoff), n_atoms=ladder(9))
    found = cv.gamma_spectrum(potential.apply, memory=1e9)(params, system, large.get_masses())
    q = np.array(list(np.ndindex(2, 2, 2))) / 2
    exact = np.sort(np.concatenate([analytic(atoms, k, x) for x in q]))[3:]
    assert_allclose(np.sort(found.frequencies_cm1), exact, rtol=1e-9)
    assert found.quality["acoustic_cm1"] < 1e-3
    assert found.quality["hessian_planned_bytes"] < 1e9


def test_few_wavevectors_of_a_cell_are_as_good_as_a_supercell():
    potential, params, atoms, k = springs()
    system = from_ase(atoms, potential.cutoff)
    q = np.array([[0, 0, 0], [0.5, 0, 0], [0.25, 0.25, 0.25]])
    spectrum_of = cv.bloch_spectrum(dynamical_matrix(potential.apply), q, [1, 2, 1])
    found = spectrum_of(params, system, atoms.get_masses())
    exact = np.concatenate([analytic(atoms, k, x) for x in q])[3:]
    assert_allclose(found.frequencies_cm1, exact, rtol=1e-9)
    assert_allclose(found.weights, [0.5] * 3 + [0.25] * 3)
    thermo = cv.crystal_thermodynamics(found, atoms.get_masses(), 30)
    assert_allclose(thermo.n_left_out, 3 / 4)  # the translations of Γ, a quarter of the weight


def test_a_cell_of_one_atom_has_no_modes_at_gamma_and_says_what_to_do():
    potential, params, atoms, _ = springs()
    one, masses = from_ase(atoms[:1], potential.cutoff), atoms.get_masses()[:1]
    for spectrum in (
        cv.gamma_spectrum(potential.apply),
        cv.lanczos_spectrum(potential.apply),
        cv.bloch_spectrum(dynamical_matrix(potential.apply), [[0, 0, 0]]),
    ):
        with pytest.raises(DataError, match="(?s)one atom.*qpoints"):
            spectrum(params, one, masses)


def test_lanczos_gives_the_heat_capacity_of_the_hessian_within_its_error_bar():
    potential, params, atoms, _ = springs()
    large = atoms * (3, 3, 3)
    system, masses = from_ase(large, potential.cutoff), large.get_masses()
    whole = cv.gamma_spectrum(potential.apply)(params, system, masses)
    few = cv.lanczos_spectrum(potential.apply, n_probes=4, n_steps=12)(params, system, masses)
    exact, found = (cv.crystal_thermodynamics(s, masses, 20) for s in (whole, few))
    error = found.heat_capacity_error
    assert 0 < error < 0.05 * exact.heat_capacity and exact.heat_capacity_error == 0
    assert abs(found.heat_capacity - exact.heat_capacity) < 4 * error
    assert_allclose(found.n_left_out, 3, atol=1e-6)


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two crystals that are not at their minimum, a molecule, half a file, and a model."""
    folder = tmp_path_factory.mktemp("crystals")
    *_, atoms, _ = springs()
    for name, repeats in (("small", 2), ("large", 3)):
        crystal = atoms * (repeats, 2, 2)
        crystal.rattle(0.02, seed=1)
        write(folder / f"{name}.cif", crystal)
    (folder / "cut.cif").write_text((folder / "small.cif").read_text()[:700])
    fields = {"elements": [18], "epsilon": EPSILON, "sigma": SIGMA, "cutoff": 5.0}
    checkpoint.save(
        folder / "lj.safetensors", {"architecture": "LennardJones", "fields": fields}, {}
    )
    return folder


def command(*arguments):
    app = typer.Typer()
    app.command()(screen.screen)
    return app(args=[str(a) for a in arguments], standalone_mode=False)


def test_a_folder_is_screened_by_two_processes_as_by_one(folder, tmp_path):
    """Failures are listed and set the exit status; the rest is there and relaxed to the lattice."""
    model = folder / "lj.safetensors"
    options = ("--model", model, "--out", tmp_path, "--temperature", 30, "--fmax", 1e-5)
    with pytest.raises(JaxmlipError, match="1 of 3 structures failed") as error:
        command(folder, *options, "--workers", 2)
    assert error.value.exit_code == 1 and "cut: JM207" in str(error.value)
    summary = json.loads((tmp_path / "screen.json").read_text())
    assert list(summary["failures"]) == ["cut"] and summary["n_reused"] == 0
    rows = {row["name"]: row for row in csv.DictReader(open(tmp_path / "screen.csv"))}
    assert set(rows) == {"small", "large"} and float(rows["small"]["n_imaginary"]) == 0

    settings = work.Settings(temperatures=(30.0,), fmax=1e-5)
    item = work.items([folder / "small.cif"], str(model), settings)["small"]
    here = work.heat_capacity(item)
    cv_here, cv_there = here["cv_J_per_K_mol"][0], float(rows["small"]["cv_J_per_K_mol_30K"])
    assert_allclose(cv_there, cv_here, rtol=1e-9)
    assert here["fmax_eV_per_A"] <= 1e-5
    *_, atoms, k = springs()
    q = np.array(list(np.ndindex(2, 2, 2))) / 2
    exact = np.sort(np.concatenate([analytic(atoms, k, x) for x in q]))[3:]
    whole = cv.Spectrum(frequencies_cm1=exact, weights=np.ones(len(exact)))
    expected = cv.crystal_thermodynamics(whole, [39.948] * 8, 30)
    assert_allclose(cv_here, expected.molar(expected.heat_capacity)[0], rtol=1e-4)

    files = folder / "small.cif", folder / "large.cif"  # the second time: nothing to do
    command(*files, *options)
    assert json.loads((tmp_path / "screen.json").read_text())["n_reused"] == 2


def test_the_key_of_a_structure_is_its_content_the_model_and_the_settings(folder, tmp_path):
    model, settings = str(folder / "lj.safetensors"), work.Settings()
    key = lambda file, settings, **more: work.key(
        work.items([file], model, settings, **more)[Path(file).stem]
    )
    moved = tmp_path / "small.cif"
    moved.write_text((folder / "small.cif").read_text())
    same = key(folder / "small.cif", settings)
    assert key(moved, settings, memory=1e9, workers=3) == same
    moved.write_text(moved.read_text() + "\n# seen\n")
    assert key(moved, settings) != same
    for other in ({"fmax": 1e-2}, {"relax": False}, {"probes": 2}):
        assert key(folder / "small.cif", replace(settings, **other)) != same, other
    for other in ({"temperatures": (310.0,)}, {"imaginary": "as-real"}):
        assert key(folder / "small.cif", replace(settings, **other)) == same, other


SOFT = {"frequencies_cm1": [-20.0, 40.0, 60.0], "mode_weights": [1.0, 8.0, 12.0]}


def record(settings):
    """A result of 8 argon atoms, of random probes, and its spectrum."""
    lines, weights = map(np.array, SOFT.values())
    known = cv.Spectrum(frequencies_cm1=lines, weights=weights, n_probes=settings.probes)
    sums = work._thermodynamics(known, np.full(8, 39.948), settings)
    return {"formula": "Ar8", "n_atoms": 8, **SOFT, **sums}, known


def test_other_temperatures_and_policies_are_summed_from_the_modes_that_are_kept(
    folder, tmp_path, monkeypatch
):
    """As if computed anew, error bars too; nothing is."""
    made, known = record(work.Settings(probes=2))
    monkeypatch.setattr(work, "heat_capacity", lambda item: made)
    monkeypatch.setattr("jaxmlip.workflows.processes", lambda *a, **k: threads)
    model, out = ("--model", folder / "lj.safetensors"), ("--out", tmp_path / "out")
    run = partial(command, folder / "small.cif", *model, *out, "--probes", 2)
    run()
    run("--temperature", 20, "--temperature", 50, "--imaginary", "as-real")
    found = json.loads((tmp_path / "out" / "screen.json").read_text())
    assert found["n_reused"] == 1
    temperatures = [20.0, 50.0]
    sums = cv.crystal_thermodynamics(known, [39.948] * 8, temperatures, imaginary=cv.as_real)
    row, columns = found["results"][0], {"cv": "heat_capacity", "cv_error": "heat_capacity_error"}
    for column, name in columns.items():
        there = [row[f"{column}_J_per_K_g_{t:g}K"] for t in temperatures]
        assert_allclose(there, sums.gravimetric(getattr(sums, name)), rtol=1e-12)
    with pytest.raises(JaxmlipError, match="1 modes are imaginary"):
        run("--imaginary", "refused")
    with pytest.raises(UsageError, match="JM104"):
        run("--no-relax")


def test_an_interrupted_screening_has_a_table_of_what_is_there(folder, tmp_path, monkeypatch):
    made, _ = record(work.Settings())

    def stopped(*args, **options):
        stop = Interrupted("interrupted")
        stop.outcome = Outcome(results={"small": made}, failures={}, n_reused=0)
        raise stop

    monkeypatch.setattr("jaxmlip.workflows.map_resumable", stopped)
    with pytest.raises(Interrupted):
        command(folder / "small.cif", "--model", folder / "lj.safetensors", "--out", tmp_path)
    assert [row["name"] for row in csv.DictReader(open(tmp_path / "screen.csv"))] == ["small"]


def test_atoms_that_are_not_relaxed_are_where_the_file_has_them(folder):
    """Energy and positions to float64: nothing on the way was rounded to float32."""
    file, settings = folder / "small.cif", work.Settings(relax=False)
    items = work.items([file], str(folder / "lj.safetensors"), settings)
    found = work.heat_capacity(items["small"])
    potential, params, *_ = springs()
    system = from_ase(read(file), potential.cutoff)
    assert_allclose(found["positions_A"], system.positions, rtol=0, atol=1e-13)
    energy = float(potential.apply(params, system)["energy"][0])
    assert_allclose(found["energy_eV"], energy, rtol=1e-13)
    assert found["relax_dtype"] == "float64" and found["relax_steps"] == 0


@pytest.mark.parametrize("how", [{"qpoints": ((0.5, 0.0, 0.0),)}, {"probes": 3}])
def test_every_route_keeps_to_the_memory_of_one_worker(folder, monkeypatch, how):
    """4000 bytes for each of two workers: one direction at a time, where 2e8 take all at once.

    That is as much as is fast, however much there is.
    """
    chunks = []
    in_chunks = second.in_chunks

    def seen(function, items, chunk):
        chunks.append(chunk)
        return in_chunks(function, items, chunk)

    monkeypatch.setattr(bloch, "in_chunks", seen)
    monkeypatch.setattr(lanczos, "in_chunks", seen)
    settings = work.Settings(relax=False, **how)
    for memory in (8000.0, None, 1e12):
        files, model = [folder / "small.cif"], str(folder / "lj.safetensors")
        work.heat_capacity(work.items(files, model, settings, memory=memory, workers=2)["small"])
    assert chunks[0] == 1 < chunks[-2] == chunks[-1]


def ions(cells):
    """Charges in an argon-like well, to be planned; tells `cells` of the volumes planned for."""
    well = models.LennardJones(elements=(11, 17), epsilon=0.05, sigma=2.4, cutoff=CUTOFF)

    def plan(system):
        cells.append(float(np.abs(np.linalg.det(system.cell[0]))))
        solver = ewald(system, CUTOFF, 1e-4)

        def apply(params, s):
            charges, out = jnp.where(s.numbers == 11, 0.5, -0.5) * s.atom_mask, well.apply({}, s)
            return out | {"energy": out["energy"] + solver(s, charges)}

        return Potential(well.init, apply, CUTOFF)

    return planned_later(plan, well.init, CUTOFF)


def test_long_range_sums_are_planned_for_the_cell_of_each_structure(folder, tmp_path, monkeypatch):
    """Energy and curvature of the second are not those of the plan of the first."""
    cells, curved, model = [], [], str(folder / "lj.safetensors")
    card = checkpoint.read(model)[0] | {"elements": [11, 17], "sha256": ""}
    potential = ions(cells)

    def seen(apply, memory):
        curved.append(apply)
        return lambda params, system, masses: spectrum(100.0)

    monkeypatch.setattr(checkpoint, "load", lambda *a, **k: (potential, {}, card))
    monkeypatch.setattr(cv, "gamma_spectrum", seen)
    structures = {"near": rocksalt(5.64), "far": rocksalt(6.3)}
    for name, atoms in structures.items():
        write(tmp_path / f"{name}.cif", atoms)
        item = work.items([tmp_path / f"{name}.cif"], model, work.Settings(relax=False))[name]
        found = work.heat_capacity(item | {"elements": [11, 17]})
        system = from_ase(read(tmp_path / f"{name}.cif"), CUTOFF)
        both = [bind(potential, system).apply, curved[-1]]
        energies = jax.jit(lambda s, both=both: [f({}, s)["energy"][0] for f in both])(system)
        assert_allclose(found["energy_eV"], energies, rtol=1e-9)
    volumes = [a.get_volume() for a in structures.values()]
    assert_allclose(cells, np.repeat(volumes, 2), rtol=1e-6)  # that of the file, and ours


@pytest.mark.slow
def test_a_relaxed_cell_has_its_long_range_sums_planned_anew():
    cells, atoms = [], rocksalt(5.9)
    settings = work.Settings(cell=True, fmax=1e-4, stress=1e-5)
    potential = ions(cells)
    bound, system, *_ = work.relaxed(potential, {}, atoms, settings)
    volume = float(np.abs(np.linalg.det(system.cell[0])))
    assert_allclose(cells, [atoms.get_volume(), volume], rtol=1e-12)
    assert volume < 0.9 * cells[0]
    anew = bind(potential, system).apply({}, system)["energy"][0]
    assert_allclose(bound.apply({}, system)["energy"][0], anew, rtol=1e-12)


@pytest.mark.slow
def test_a_model_file_with_electrostatics_is_screened(tmp_path):
    model, file = save_salt(tmp_path / "salt.safetensors"), tmp_path / "salt.cif"
    write(file, rocksalt())
    found = work.heat_capacity(work.items([file], model, work.Settings(relax=False))["salt"])
    system = from_ase(read(file), CUTOFF)
    potential, params, _ = checkpoint.load(model)
    bound = bind(potential, system)
    assert_allclose(found["energy_eV"], bound.apply(params, system)["energy"][0], rtol=1e-6)
    modes = cv.gamma_spectrum(bound.apply)(params, system, read(file).get_masses())
    assert_allclose(found["frequencies_cm1"], modes.frequencies_cm1, rtol=1e-4, atol=0.01)


def test_what_is_no_crystal_is_refused(folder, tmp_path):
    model = str(folder / "lj.safetensors")
    molecule = ase.Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]])
    write(tmp_path / "molecule.xyz", molecule)
    write(tmp_path / "neon.cif", ase.build.bulk("Ne", "fcc", a=4.4))
    run = lambda name: work.heat_capacity(
        work.items([tmp_path / name], model, work.Settings())[Path(name).stem]
    )
    with pytest.raises(DataError, match="JM214"):
        run("molecule.xyz")
    with pytest.raises(ModelError, match="JM507"):
        run("neon.cif")
    for wrong in ("0 0", "a b c", "0 0 0;1 1 1"):
        with pytest.raises(UsageError, match="not a list of wavevectors"):
            screen.parsed_qpoints(wrong)
    assert screen.parsed_qpoints("0 0 0, .5 0 -1") == ((0, 0, 0), (0.5, 0, -1))

"""float64 unless precision is the subject; programs that run once are not optimised.

The default run compiles hundreds of programs and runs most of them for milliseconds: LLVM's
optimisation is most of its time, and what XLA does with the arrays is the same without. Slow tests
and those marked `optimised`, whose programs run long, are compiled as users compile.
JAX_DISABLE_MOST_OPTIMIZATIONS=0 has all of them so.

What a user has in the cache and in the environment decides no test, and commands that were called
leave JAX as they found it.
"""

import atexit
import os
import shutil
import tempfile

OPTION = "jax_disable_most_optimizations"
UNOPTIMISED = os.environ.setdefault(OPTION.upper(), "1") != "0"  # processes of tests inherit it

for name in ("COLUMNS", "FORCE_COLOR", "GITHUB_ACTIONS"):  # they change what rich prints
    os.environ.pop(name, None)
if "PYTEST_XDIST_WORKER" not in os.environ:  # workers inherit it
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="jaxmlip-tests-")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_enable_x64", True)

# Files that take longest, longest first: begun last they would leave one worker without work.
LONG = (
    "parallel readme bloch models phonons engine long_range response electrostatics mesh screening "
    "cli train so3krates mace_torch hessian nn elements cell_relaxation quasiharmonic elasticity "
    "pretrained export raman benchmarks trajectory md_cli correlation_spectra heat_flux "
    "constant_pressure transfer data_parallel uncertainty ensemble audit dual_cutoff curvature "
    "losses restart"
).split()
SETTINGS = (  # of `jaxmlip.cli.session.start`
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)
RANK = {f"test_{name}.py": rank for rank, name in enumerate(LONG)}


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    jax.config.update("jax_enable_x64", True)  # whatever a fixture of this file has left
    quick = UNOPTIMISED and not any(map(item.get_closest_marker, ("slow", "optimised")))
    jax.config.update(OPTION, quick)
    os.environ[OPTION.upper()] = str(int(quick))


def kept():
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    yield
    for name, value in before.items():
        if getattr(jax.config, name) != value:
            jax.config.update(name, value)


after_a_test = pytest.fixture(autouse=True)(kept)
after_a_file = pytest.fixture(autouse=True, scope="module")(kept)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: RANK.get(item.path.name, len(RANK)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests of one file share what they compiled: they run in one process."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # in the order above
    return LoadFileScheduling(config, log)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of its own, and a cache."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "work"

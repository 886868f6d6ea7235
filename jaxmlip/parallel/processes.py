"""The processes of one run: how they find each other, and what they must agree on.

Each process has devices of its own and goes through the same loop. What they see differently,
clocks, signals and disks, would lead them apart and leave one waiting for the others for ever;
so the first process decides, and tells.
"""

import os

import jax
import numpy as np

from jaxmlip.errors import ResourceError, UsageError

ENVIRONMENT = ("JAX_COORDINATOR", "JAX_PROCESSES", "JAX_PROCESS")
TASKS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")  # how many processes a launcher has started
DAY = 86400  # s


def connect(**options) -> int:
    """Joins the processes of a run; returns how many there are. Call it before anything else.

    Taken from JAX_COORDINATOR, JAX_PROCESSES and JAX_PROCESS, if they are set, else from Slurm or
    Open MPI where one of them started this process among others; alone, nothing is done.
    Once they are joined, nothing more is done. options: of `jax.distributed.initialize`. Raises
    `ResourceError` if the others are not found.
    """
    if jax.distributed.is_initialized():
        return jax.process_count()
    given = [os.environ.get(name) for name in ENVIRONMENT]
    if any(given) and not all(given):
        raise UsageError(
            f"of {', '.join(ENVIRONMENT)} only some are set", where="connect", fix="set all three"
        )
    if all(given):
        options = {
            "coordinator_address": given[0],
            "num_processes": int(given[1]),
            "process_id": int(given[2]),
        } | options
    elif not options and not any(int(os.environ.get(name, "1")) > 1 for name in TASKS):
        return 1
    try:
        # the first one has files to write when the others are done: they wait for it
        jax.distributed.initialize(**{"shutdown_timeout_seconds": DAY} | options)
    except (RuntimeError, ValueError) as error:
        raise ResourceError(
            f"cannot join the other processes: {error}",
            where="connect",
            fix="start it with srun, or set " + ", ".join(ENVIRONMENT),
        ) from error
    return jax.process_count()


def first_process() -> bool:
    """Whether this process writes the files of the run."""
    return jax.process_index() == 0


def agreed(*values) -> tuple[float, ...]:
    """The numbers of the first process, in all processes (rounded to float32 where several)."""
    if jax.process_count() == 1:
        return values
    return tuple(float(x) for x in _all(values)[0])


def anywhere(flag: bool) -> bool:
    """Whether it is so in any process."""
    return bool(flag) if jax.process_count() == 1 else bool(_all([flag]).any())


def _all(values):
    """[n_processes, n] what each process gives; all must ask."""
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(np.asarray(values, np.float32)))

"""Many structures, one property: what joins relaxation, vibrations and models.

Level 4: above md, vibrations and pretrained, which do not know each other; below the command line.
"""

from jaxmlip.workflows.executors import processes
from jaxmlip.workflows.resumable import Failure, Outcome, map_resumable

__all__ = ["Failure", "Outcome", "map_resumable", "processes"]

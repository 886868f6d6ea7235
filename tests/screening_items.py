"""What the workers of test_screening run: light to import, since worker processes start clean."""

import os
import signal
import time
from pathlib import Path

from jaxmlip.errors import DataError


def square(item):
    return {"square": item["x"] ** 2}


def logged(item):
    """square, leaving a line for each attempt; fails `fails` times."""
    with open(item["log"], "a") as log:
        log.write(f"{item['x']}\n")
    if Path(item["log"]).read_text().split().count(str(item["x"])) <= item.get("fails", 0):
        raise (DataError if item.get("for_ever") else OSError)("not now")
    return square(item)


def nap(item):
    """A calculation longer than any test waits, which says in which process."""
    Path(item["log"]).write_text(str(os.getpid()))
    time.sleep(3600)
    return square(item)


def deadly(item):
    """As a kernel that kills what takes all the memory."""
    if item["x"] == item["deadly"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return square(item)

"""How much memory is free for a calculation: of a device, or of the host and this container."""

from pathlib import Path

import jax

CONTROLLED = "sys/fs/cgroup"


def free_memory(device=None) -> float:
    """Bytes that are free on the device (default: the first), infinite where nobody tells."""
    device = device or jax.devices()[0]
    figures = device.memory_stats() or {}
    if "bytes_limit" in figures:
        return float(figures["bytes_limit"] - figures.get("bytes_in_use", 0))
    return host_memory()


def host_memory(root="/") -> float:
    """Bytes free on the host, or within the limits of the control groups that this process is in.

    Linux: MemAvailable, and memory.max less memory.current of each group from one's own upwards
    (memory.limit_in_bytes and memory.usage_in_bytes in version 1). Files in the cache that are
    inactive count as free in both, since the kernel gives them up. root: where /proc and /sys are.
    """
    root = Path(root)
    available = 1024 * _number(root / "proc/meminfo", "MemAvailable:")
    return float(min([available, *_left_in_groups(root)]))


def _left_in_groups(root):
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top, names = CONTROLLED, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = f"{CONTROLLED}/memory"
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        inside = Path(path.lstrip("/"))
        for group in (inside, *inside.parents):  # a path from outside of a container is not there
            yield _left(root / top / group, *names)


def _left(folder, limit, usage, cache):
    """Bytes; infinite without a limit, or without the files."""
    most = _number(folder / limit)
    held = _number(folder / usage)
    if most == float("inf") or held == float("inf"):
        return float("inf")
    spare = _number(folder / "memory.stat", cache)
    return max(most - held + (spare if spare < held else 0), 0)


def _number(path, name: str | None = None) -> float:
    """The number in a file, or behind a name in it; infinite if there is none."""
    for line in _text(path).splitlines():
        first, *rest = line.split() or [""]
        value = first if name is None else rest[0] if first == name and rest else ""
        if value.isdigit():
            return int(value)
    return float("inf")


def _text(path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError):
        return ""

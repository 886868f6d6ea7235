"""Batches made in a thread while the device works."""

from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from threading import Event, Thread

END = object()
PATIENCE = 0.1  # s between looks at whether anybody still waits


def prefetch(items: Iterable, ahead: int = 2) -> Iterator:
    """The items in their order, up to `ahead` of them made before they are asked for.

    The iterator runs in a thread of its own (numpy and JAX release Python's lock while they work);
    what it raises is raised here, at the place of the item. The thread ends with the iterator, when
    it is closed or when it is no longer referred to. ahead = 0: no thread.
    """
    if ahead < 1:
        yield from items
        return
    queue, stop = Queue(maxsize=ahead), Event()
    thread = Thread(target=_fill, args=(iter(items), queue, stop), daemon=True, name="prefetch")
    thread.start()
    try:
        while True:
            item, error = _take(queue, thread)
            if error is not None:
                raise error
            if item is END:
                return
            yield item
    finally:
        stop.set()
        thread.join()


def _fill(items, queue, stop):
    try:
        for item in items:
            if not _put(queue, (item, None), stop):
                return
        _put(queue, (END, None), stop)
    except BaseException as error:  # raised again where the item is asked for
        _put(queue, (END, error), stop)


def _put(queue, item, stop) -> bool:
    while not stop.is_set():
        try:
            queue.put(item, timeout=PATIENCE)
        except Full:
            continue
        return True
    return False


def _take(queue, thread):
    while True:
        try:
            return queue.get(timeout=PATIENCE)
        except Empty:
            if not thread.is_alive() and queue.empty():
                return END, None

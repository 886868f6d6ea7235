"""Changes of a binary file that are made whole or not at all, wherever the program is killed.

HDF5 rewrites its tables in place: killed in between, a file is lost. Here its writes go to pages
in memory; at the end they are put down in a journal, with a SHA-256, and only then in the file. A
journal that is found later is carried out again, one that is not whole is thrown away.
"""

import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

PAGE = 2**16  # bytes


class Pages:
    """A file that can be read and written, of which the disk knows nothing yet."""

    def __init__(self, path):
        self.base = open(path, "rb") if Path(path).exists() else None  # noqa: SIM115
        self.size = 0 if self.base is None else os.fstat(self.base.fileno()).st_size
        self.place, self.changed = 0, {}

    def seek(self, offset, whence=0):
        self.place = offset + (0, self.place, self.size)[whence]
        return self.place

    def tell(self):
        return self.place

    def flush(self):
        pass

    def truncate(self, size=None):
        self.size = self.place if size is None else size
        return self.size

    def read(self, size):
        out = bytearray(max(0, min(size, self.size - self.place)))
        self.readinto(out)
        return bytes(out)

    def readinto(self, buffer):
        view, done = memoryview(buffer).cast("B"), 0
        n = max(0, min(len(view), self.size - self.place))
        while done < n:
            number, start = divmod(self.place, PAGE)
            part = self._page(number)[start : start + n - done]
            view[done : done + len(part)] = part
            done += len(part)
            self.place += len(part)
        return done

    def write(self, data):
        view, done = memoryview(data).cast("B"), 0
        while done < len(view):
            number, start = divmod(self.place, PAGE)
            part = view[done : done + PAGE - start]
            page = self.changed.get(number) or bytearray(self._page(number))
            page[start : start + len(part)] = part
            self.changed[number] = page
            done += len(part)
            self.place += len(part)
        self.size = max(self.size, self.place)
        return done

    def _page(self, number):
        page = self.changed.get(number)
        if page is not None:
            return page
        if self.base is None:
            return bytes(PAGE)
        self.base.seek(number * PAGE)
        return self.base.read(PAGE).ljust(PAGE, b"\0")

    def close(self):
        if self.base is not None:
            self.base.close()


@contextmanager
def journaled(path):
    """`Pages` of a file, which is changed when the block ends without an error."""
    settle(path)
    pages = Pages(path)
    try:
        yield pages
    finally:
        pages.close()
    if pages.changed:
        _put_down(path, pages)
        settle(path)


def settle(path) -> None:
    """Carries out what a journal beside the file says, if there is one."""
    journal = _journal(path)
    if not journal.exists():
        return
    with open(journal, "rb") as file:
        head = json.loads(file.readline())
        body = file.read()
    if hashlib.sha256(body).hexdigest() == head["sha256"]:
        with open(path, "r+b" if Path(path).exists() else "w+b") as file:
            for i, number in enumerate(head["pages"]):
                file.seek(number * PAGE)
                file.write(body[i * PAGE : (i + 1) * PAGE])
            file.truncate(head["size"])
            file.flush()
            os.fsync(file.fileno())
    journal.unlink()


def _journal(path):
    return Path(path).with_name(Path(path).name + ".journal")


def _put_down(path, pages):
    numbers = sorted(n for n in pages.changed if n * PAGE < pages.size)
    body = b"".join(pages.changed[n] for n in numbers)
    digest = hashlib.sha256(body).hexdigest()
    head = json.dumps({"size": pages.size, "pages": numbers, "sha256": digest})
    partial = _journal(path).with_name(_journal(path).name + ".partial")
    with open(partial, "wb") as file:
        file.write(head.encode() + b"\n" + body)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, _journal(path))

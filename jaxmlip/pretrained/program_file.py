"""The file of an exported program: arrays in an .npz, a manifest, a SHA-256 of each; no pickle."""

import hashlib
import json

import jax
import numpy as np

from jaxmlip import json_text
from jaxmlip.errors import ModelError, UsageError

FORMAT = 1
OWED = {  # of a manifest: what it must be
    "format": int,
    "sizes": list,
    "dtype": str,
    "x64": bool,
    "cutoff": (int, float),
    "platforms": list,
    "params": (dict, int),
    "card": dict,
}


def write(path, arrays: dict, manifest: dict) -> None:
    """Writes the file atomically; the manifest holds `digest` of each array."""
    from jaxmlip.models.checkpoint import whole_file  # readers need no model code

    text = json.dumps(manifest).encode()
    arrays = arrays | {
        "manifest": np.frombuffer(text, np.uint8),
        "manifest_sha256": np.frombuffer(hashlib.sha256(text).digest(), np.uint8),
    }
    with whole_file(path) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)


def read(path) -> tuple[dict, dict]:
    """(arrays, manifest) of a file. Raises `ModelError` if it is not whole or not ours."""
    if not path.is_file():
        raise ModelError("no such file", where=str(path), code="JM501", fix="jaxmlip models export")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        text = arrays.pop("manifest").tobytes()
        whole = hashlib.sha256(text).digest() == arrays.pop("manifest_sha256").tobytes()
        manifest = json_text.parse(text)
        whole = whole and manifest["sha256"] == {k: digest(v) for k, v in arrays.items()}
    except Exception as error:  # zip, zlib, numpy and JSON each have kinds of their own
        raise ModelError(
            f"not a program that jaxmlip has exported, or not whole ({error})",
            where=str(path),
            code="JM504",
            fix="export it again",
        ) from error
    if not whole:
        raise ModelError(
            "does not match its SHA-256: the file is damaged",
            where=str(path),
            code="JM504",
            fix="copy or export it again",
        )
    wrong = [k for k, kind in OWED.items() if not isinstance(manifest.get(k), kind)]
    if wrong:
        raise _foreign(f"its manifest has no sound {', '.join(wrong)}", path)
    if manifest["format"] > FORMAT:
        raise ModelError(
            f"written in format {manifest['format']}, this version reads up to {FORMAT}",
            where=str(path),
            code="JM506",
            fix="pip install -U jaxmlip",
        )
    _check_contents(arrays, manifest, path)
    return arrays, manifest


def _check_contents(arrays, manifest, path):
    """Raises `ModelError` unless all that the manifest speaks of is there, and can be."""
    try:
        pairs = [(int(n), int(k)) for n, k in manifest["sizes"]]
        owed = {f"program_{i}" for i in range(len(pairs) or 1)}
        owed |= {f"param_{i}" for i in leaves(manifest["params"])}
        np.dtype(manifest["dtype"])
        elements = [int(z) for z in manifest["card"].get("elements") or []]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise _foreign(f"its manifest cannot be read: {error}", path) from error
    if missing := sorted(owed - set(arrays)):
        raise _foreign(f"it lacks {', '.join(missing[:3])}", path)
    if not (0 < manifest["cutoff"] < float("inf") and min(map(min, pairs), default=1) > 0):
        raise _foreign("its cutoff or sizes are not above zero", path)
    if not all(0 < z < 119 for z in elements):
        raise _foreign("its card lists elements that are none", path)


def _foreign(what, path):
    return ModelError(
        f"not a program that jaxmlip has exported: {what}",
        where=str(path),
        code="JM505",
        fix="export it again",
    )


def digest(array) -> str:
    array = np.ascontiguousarray(array)
    head = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()


def skeleton(params):
    """The containers of params as JSON, with numbers for their leaves."""
    leaves, tree = jax.tree.flatten(params)
    return _as_json(jax.tree.unflatten(tree, range(len(leaves))))


def _as_json(tree):
    if isinstance(tree, dict):
        return {"dict": {str(k): _as_json(v) for k, v in tree.items()}}
    if type(tree) in (tuple, list):
        return {type(tree).__name__: [_as_json(v) for v in tree]}
    if isinstance(tree, int):
        return tree
    raise UsageError(f"params hold a {type(tree).__name__}; dicts, tuples and lists are exported")


def filled(skeleton, values):
    if isinstance(skeleton, int):
        return values[skeleton]
    ((kind, inner),) = skeleton.items()
    if kind == "dict":
        return {k: filled(v, values) for k, v in inner.items()}
    return {"tuple": tuple, "list": list}[kind](filled(v, values) for v in inner)


def leaves(skeleton) -> list[int]:
    """The numbers of its leaves."""
    if isinstance(skeleton, int):
        return [skeleton]
    ((kind, inner),) = skeleton.items()
    inner = {"dict": dict.values, "tuple": list, "list": list}[kind](inner)
    return [number for part in inner for number in leaves(part)]

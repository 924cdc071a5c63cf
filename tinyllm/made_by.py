"""What lies in a folder already: whether it was made from the same input and settings, and by the same code.

In: a folder and a plan, everything that its files depend on. Out: what need not be made again. prepare.py and
quickstart.py ask before they work. Explained by tests/test_prepare.py.
"""

import ast
import contextlib
import hashlib
import json
import shutil
import sys
from pathlib import Path

from tinyllm.config import read_json, write_atomically


def code_of(*modules: str) -> str:
    """A hash of sources() and, where these write texts or questions, of the tables they write them from."""
    rules = sources(*modules)
    if any(path.stem == "lexicon" for path in rules):
        rules += sorted(path for kind in ("world_*", "problems_*") for path in Path(__file__).parent.glob(kind))
    return hashlib.sha256(b"".join(path.read_bytes() for path in rules)).hexdigest()


def sources(*modules: str) -> list[Path]:
    """The files of the modules and of all that they import from this package, which decide what they make; without
    config.py, as settings are compared by their values."""
    found, waiting = {}, list(modules)
    while waiting:
        name = waiting.pop()
        path = Path(__file__).parent / f"{name}.py"
        if name not in found and name != "config" and path.is_file():
            found[name] = path
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and node.module == "tinyllm":
                    waiting += [one.name for one in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    waiting.append(node.module.removeprefix("tinyllm."))
    return [found[name] for name in sorted(found)]


def finished_report(out: Path, plan: dict) -> dict | None:
    """The report of an earlier complete run under the same plan; None also where its meta.json is damaged."""
    if not (out / "meta.json").is_file() or not (out / "tokenizer.model").is_file():
        return None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        meta = read_json(out / "meta.json")
        if {key: meta.get(key) for key in plan} != plan:
            return None
        for split in ("train", "val"):
            sizes = [(out / name).stat().st_size for name in meta[split]["files"] if (out / name).is_file()]
            if sum(sizes) != 2 * meta[split]["tokens"]:              # two bytes a token
                return None
        return meta["report"]
    return None


def has_plan(folder: Path, plan: dict) -> bool:
    """True if the parts in `folder` were made under `plan`, as far as that can be read."""
    with contextlib.suppress(ValueError, FileNotFoundError):
        return read_json(folder / "plan.json") == plan
    return False


def continue_or_clear(folder: Path, plan: dict, restart: bool) -> int:
    """The number of finished parts of an interrupted run under the same plan; anything else is cleared away."""
    if folder.exists():
        if {path.name for path in folder.iterdir()} - {"plan.json.tmp"} and not (folder / "plan.json").is_file():
            raise ValueError(f"{folder} holds files that prepare did not write, and it needs a folder of that name for "
                             "its own; choose another --out")
        if has_plan(folder, plan) and not restart:
            n_finished = len(list(folder.glob("part-*.npz")))
            print(f"continuing after {n_finished} finished parts", file=sys.stderr)
            return n_finished
        print("starting over" + ("" if restart else f": {folder} belongs to other input or settings"), file=sys.stderr)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    write_atomically(folder / "plan.json", json.dumps(plan, ensure_ascii=False).encode())
    return 0

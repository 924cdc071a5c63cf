"""Parts: documents cleaned, fingerprinted and tokenised by parallel workers, one file a part; then written as shards.

A finished part is a file that an interrupted run leaves behind and the next run does not make again. Which documents
survive is decided afterwards, over all parts in order, so the result does not depend on how the work was shared out.
Used by prepare.py; explained by tests/test_prepare.py.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyllm import clean
from tinyllm.config import start_worker, write_atomically
from tinyllm.corpus import Tally
from tinyllm.tokenizer import Tokenizer

SHARD_TOKENS = 64_000_000             # 128 MB a file


def text_hash(text: str) -> int:
    """64 bits of BLAKE2: equal texts have equal hashes; also the lot that decides between train and val."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def make_parts(texts: Iterable[str], folder: Path, model: bytes, *, part_chars: int, min_bytes: int,
               workers: int) -> dict:
    """Makes every part of `texts` that `folder` does not hold yet; returns how much was read.

    `model` is the tokenizer's. A single part, or a single worker, stays in this process.
    """
    read = {"documents": 0, "characters": 0, "bytes": 0}

    def missing() -> Iterator[tuple[Path, list[str]]]:
        for number, batch in enumerate(in_parts(texts, part_chars)):
            read["documents"] += len(batch)
            read["characters"] += sum(map(len, batch))
            read["bytes"] += sum(len(text.encode("utf-8", "surrogatepass")) for text in batch)
            path = folder / f"part-{number:06}.npz"
            if not path.exists():
                yield path, batch

    jobs = missing()
    first_two = list(itertools.islice(jobs, 2))
    if workers == 1 or len(first_two) < 2:
        for path, batch in itertools.chain(first_two, jobs):
            make_part(path, batch, model, min_bytes)
        return read
    # "spawn" works on every system; a few waiting parts keep the workers busy without filling the memory.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker) as pool:
        try:
            waiting = set()
            for path, batch in itertools.chain(first_two, jobs):
                waiting.add(pool.submit(make_part, path, batch, model, min_bytes))
                if len(waiting) > 2 * workers:
                    done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
            for future in waiting:
                future.result()
        except BrokenProcessPool:
            raise OSError("a worker process was killed, perhaps for lack of memory; run the same command with fewer "
                          "--workers, it continues from here") from None
        except BaseException:
            pool.shutdown(cancel_futures=True)                       # parts in the making are still finished
            raise
    return read


def in_parts(texts: Iterable[str], part_chars: int) -> Iterator[list[str]]:
    """`texts` in lists of about `part_chars` characters."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= part_chars:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@functools.lru_cache(maxsize=1)
def load_once(model: bytes) -> Tokenizer:
    """The tokenizer made of `model`; a worker keeps it for all of its parts."""
    return Tokenizer(model)


def make_part(path: Path, texts: list[str], model: bytes, min_bytes: int) -> None:
    """Cleans, fingerprints and tokenises `texts` into the file `path`."""
    words = load_once(model)
    cleaned, dropped, removed = [], Tally(), Tally()
    for raw in texts:
        text, taken = clean.clean(raw)
        removed.merge(taken)
        cleaned.append(text)
    cleaned, repeated = clean.drop_repeated_lines(cleaned)
    removed.merge(repeated)
    ids, rows, signatures = [], [], []
    for text in cleaned:
        n_bytes = len(text.encode())
        if not text or n_bytes < min_bytes:
            dropped.add("too short" if text else "empty after cleaning", 1, len(text))
            continue
        tokens = [*words.encode(text), words.eos]
        ids.append(np.array(tokens, "<u2"))
        rows.append((text_hash(text), len(tokens), len(text), n_bytes))
        signatures.append(clean.signature(text))
    columns = np.array(rows, np.uint64).reshape(-1, 4)
    counts = json.dumps({"dropped": dropped, "removed": removed}).encode()
    file = io.BytesIO()
    np.savez(file, ids=np.concatenate([np.zeros(0, "<u2"), *ids]), hashes=columns[:, 0],
             sizes=columns[:, 1:].astype(np.uint32), counts=np.frombuffer(counts, np.uint8),
             signatures=np.array(signatures, np.uint8).reshape(-1, clean.N_BANDS * clean.BAND_ROWS))
    write_atomically(path, file.getvalue())


@dataclass
class Parts:
    """What all parts say about their n documents, small enough to hold for gigabytes of text."""
    paths: list[Path]
    ends: np.ndarray                  # (parts + 1,) part i holds the documents ends[i] .. ends[i + 1]
    hashes: np.ndarray                # (n,) uint64
    sizes: np.ndarray                 # (n, 3) uint32: tokens, characters, bytes
    signatures: np.ndarray            # (n, 60) uint8
    dropped: Tally
    removed: Tally


@contextlib.contextmanager
def open_part(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of a finished part; ValueError when the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as part:
            yield part
    except (zipfile.BadZipFile, EOFError, KeyError):
        raise ValueError(f"{path}: damaged; remove it, and the same command makes it again") from None


def read_parts(folder: Path) -> Parts:
    """All finished parts in `folder`, without their tokens."""
    paths, dropped, removed, lengths = sorted(folder.glob("part-*.npz")), Tally(), Tally(), []
    for path in paths:
        with open_part(path) as part:
            counts = json.loads(part["counts"].tobytes())
            lengths.append(len(part["hashes"]))
        dropped.merge(counts["dropped"])
        removed.merge(counts["removed"])
    ends = np.cumsum([0, *lengths])
    n = ends[-1]
    parts = Parts(paths, ends, np.empty(n, np.uint64), np.empty((n, 3), np.uint32),
                  np.empty((n, clean.N_BANDS * clean.BAND_ROWS), np.uint8), dropped, removed)
    for path, start, end in zip(paths, ends, ends[1:]):
        with open_part(path) as part:
            for name in ("hashes", "sizes", "signatures"):
                getattr(parts, name)[start:end] = part[name]
    return parts


def survivors(parts: Parts, threshold: float) -> np.ndarray:
    """(n,) bool: the first document of all equals and of all that resemble it; the others go to `parts.dropped`."""
    exact = np.ones(len(parts.hashes), bool)
    exact[np.unique(parts.hashes, return_index=True)[1]] = False
    near = clean.near_duplicates(parts.signatures, threshold, exact) if threshold else np.zeros_like(exact)
    for reason, gone in (("exact duplicate", exact), ("near duplicate", near)):
        parts.dropped.add(reason, int(gone.sum()), int(parts.sizes[gone, 1].sum()))
    return ~(exact | near)


def held_out(hashes: np.ndarray, kept: np.ndarray, share: float) -> np.ndarray:
    """(n,) bool: the validation documents, drawn by the hash of their text, at least one on either side.

    A document's lot depends on its text alone, so it stays in its split when other documents come or go.
    """
    n = int(kept.sum())
    if n < 2:
        left = ("no text is", "only 1 document is")[n]
        raise ValueError(f"{left} left after cleaning, but training and validation need a document each; give more "
                         "text, or cut it smaller with --documents block or --max-chars")
    low, high = hashes[kept].min(), hashes[kept].max()
    return (hashes < np.uint64(max(int(share * 2**64), int(low) + 1))) & (hashes < high)


def write_shards(parts: Parts, chosen: np.ndarray, folder: Path, split: str) -> list[str]:
    """Writes the tokens of the `chosen` (n,) documents to `folder`; returns the names of the files."""
    names, written = [], SHARD_TOKENS
    for path, start, end in zip(parts.paths, parts.ends, parts.ends[1:]):
        with open_part(path) as part:
            ids = part["ids"][np.repeat(chosen[start:end], parts.sizes[start:end, 0])]
        if not len(ids):
            continue
        if written >= SHARD_TOKENS:
            names.append(f"{split}-{len(names):05}.bin")
            (folder / names[-1]).unlink(missing_ok=True)              # half of it may be left from an interrupted run
            written = 0
        with (folder / names[-1]).open("ab") as file:
            file.write(ids.tobytes())
        written += len(ids)
    for name in names:
        with (folder / name).open("rb+") as file:
            os.fsync(file.fileno())
    return names

"""The loop with a folder around it: what every stage calls to train, resume, log and survive signals.

In: a model, its batches and a folder. Out: the folder with checkpoints and metrics.jsonl. Stopping at any moment, by
Ctrl-C, a full disk or kill -9, costs at most the steps since the last checkpoint. Explained by tests/test_train.py.
"""

import contextlib
import ctypes.util
import dataclasses
import functools
import json
import math
import os
import signal
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from tinyllm import checkpoint, parallel, plot
from tinyllm.config import from_dict, read_json
from tinyllm.data import Batch
from tinyllm.model import TinyLLM
from tinyllm.tokenizer import Tokenizer
from tinyllm.train import LossFn, TrainConfig, TrainState, next_token_loss, pick_device, pick_dtype, train


def run_stage(model: TinyLLM, tokenizer: Tokenizer, batch_at: Callable[[int], Batch], config: TrainConfig,
              folder: str | Path, *, val: Mapping[str, Sequence[Batch]], loss_fn: LossFn = next_token_loss,
              bytes_per_token: float | None = None, report: Callable[[dict], None] = lambda row: None) -> TrainState:
    """Trains in `folder`: resumes what is there, shows a progress bar, logs metrics.jsonl, saves, survives signals.

    With `bytes_per_token` of the validation text, validation rows also carry bits per byte. Ctrl-C and SIGTERM finish
    the step, save and raise KeyboardInterrupt.
    """
    folder, leads = Path(folder), parallel.rank() == 0
    marks = {"held_out": fingerprint(getattr(batch, part) for part in ("tokens", "targets")
                                     for batches in val.values() for batch in batches),
             "began": fingerprint(model.state_dict().values())}
    with checkpoint.lock(folder) if leads else contextlib.nullcontext(), _stop_on_signal() as stop:
        with parallel.first_alone():
            if config.restart and leads:
                TrainState().progress(config), parallel.share(batch_at(0))        # a run that cannot be: said before
                checkpoint.forget(folder, [*folder.glob("step-*"), *folder.glob("damaged-step-*")])
            resume = None if config.restart else load_run(folder, model, tokenizer, config, marks["began"])
        step = resume[0].step if resume else 0
        if parallel.size() > 1:
            parallel.refuse_different(
                step=step, weights=fingerprint(model.state_dict().values()), rows=fingerprint([batch_at(step).tokens]),
                dtype=pick_dtype(config.dtype, pick_device(config.device)).itemsize)
        if resume and leads:
            print(f"resuming {folder} at step {step:,}", file=sys.stderr)
        if resume and resume[0].progress(config) >= 1:
            print("it has already reached its limit: raise the limit to go on, or --restart", file=sys.stderr)
            return resume[0]
        if not leads:                                                # process 0 validates, shows and saves for all
            return train(model, batch_at, config, loss_fn=loss_fn, resume=resume)
        hint_at_allocator()
        with _open_metrics(folder / "metrics.jsonl", step) as metrics, _ProgressBar() as bar:

            def log(row: dict) -> None:
                if "val_loss" in row and bytes_per_token:
                    row["bits_per_byte"] = row["val_loss"] / bytes_per_token / math.log(2)
                metrics.write(json.dumps(row) + "\n")
                metrics.flush()
                bar.show(row)
                report(row)

            def save(state: TrainState, tensors: dict[str, Tensor]) -> None:
                checkpoint.save(folder, model, tokenizer, config, dataclasses.asdict(state) | marks, tensors)

            state = train(model, batch_at, config, val=val, loss_fn=loss_fn, save=save, resume=resume, report=log,
                          should_stop=lambda: bool(stop))
    if stop:
        again = "the same command" + " without --restart" * config.restart + " goes on from here"
        print("stopped before the first step" if not state.step else f"stopped and saved at step {state.step:,}; " + (
              again if state.progress(config) < 1 else "it was the last one"), file=sys.stderr)
        raise KeyboardInterrupt
    return state


@functools.cache
def hint_at_allocator() -> None:
    """One line, once, where tcmalloc is installed and not in use: it hands out memory faster than the C library."""
    name = ctypes.util.find_library("tcmalloc_minimal") or ctypes.util.find_library("tcmalloc")
    if name and sys.platform == "linux" and "tcmalloc" not in os.environ.get("LD_PRELOAD", ""):
        print(f"tcmalloc is installed: with LD_PRELOAD={name} before the command, training may be some percent faster",
              file=sys.stderr)


def fingerprint(tensors: Iterable[Tensor]) -> int:
    """A number that changes with the tensors: the held-out rows, for losses on different ones are not compared, or the
    weights that a run begins with."""
    mark = 0
    for tensor in tensors:
        mark = zlib.crc32(tensor.detach().cpu().contiguous().view(torch.uint8).numpy(), mark)
    return mark


def load_run(folder: Path, model: TinyLLM, tokenizer: Tokenizer, config: TrainConfig,
             began: int) -> tuple[TrainState, dict[str, Tensor]] | None:
    """Puts the newest whole state of `folder` into `model`; returns it with its optimizer tensors, or None if empty.

    A damaged state is set aside with a line on stderr, and the one before it is used; if none can be read, ValueError:
    a run is never begun again unasked. ValueError also if the run is of another stage, recipe, seed, shape or
    tokenizer; other settings that have changed since are named on stderr, and whether it `began` with other weights.
    """
    damaged: dict[Path, Exception] = {}
    for newest in reversed(checkpoint.steps(folder)):
        try:
            stored, words = checkpoint.load(newest)
            tensors = checkpoint.read_tensors(newest / "optimizer.safetensors")
            kept = read_json(newest / "state.json")
            marks = {name: kept.pop(name, None) for name in ("held_out", "began")}
            state = from_dict(TrainState, kept, str(newest / "state.json"))
        except (ValueError, FileNotFoundError) as error:
            damaged[newest] = error
            continue
        for one, error in damaged.items():
            print(f"{error}; set aside as damaged-{one.name}", file=sys.stderr)
            one.rename(folder / f"damaged-{one.name}")
        stored_config, kind = read_json(newest / "config.json"), type(config).__name__
        if stored_config.get("made_by", kind) != kind:
            raise ValueError(f"{folder} holds a run of another stage ({stored_config['made_by']}, not {kind}); choose "
                             "another --out, or begin again with --restart")
        changed = _changed(stored_config.get("settings", {}), dataclasses.asdict(config))
        for name, (before, now) in changed.items():
            if name not in ("recipe", "seed"):
                continue
            raise ValueError(f"{folder} was trained with --{name} {before}, not {now}; resume with that, choose "
                             "another --out, or begin again with --restart")
        if stored.config != model.config:
            raise ValueError(f"{folder} holds a model of another shape; choose another --out, or begin again with "
                             "--restart")
        if words.model != tokenizer.model:
            raise ValueError(f"{folder} was trained with another tokenizer than that of this run's --data or --init; "
                             "choose another --out, or begin again with --restart")
        model.load_state_dict(stored.state_dict())
        if changed and parallel.rank() == 0:
            print("settings that differ from those of the sitting before: " + ", ".join(
                f"--{name.replace('_', '-')} {now} ({before})" for name, (before, now) in changed.items()),
                file=sys.stderr)
        if marks["began"] not in (None, began) and parallel.rank() == 0:
            print(f"the weights that {folder} began with have changed since; it goes on from its own, --restart begins "
                  "with the new ones", file=sys.stderr)
        return state, tensors
    if damaged:
        raise ValueError(f"{folder}: none of its {len(damaged)} states can be read ({next(iter(damaged.values()))}); "
                         "go on with the version that wrote them, or begin again with --restart")
    return None


def _changed(before: dict, now: dict) -> dict[str, tuple]:
    """Setting -> (before, now), where they differ; the end of a run may move, so limits are left out."""
    free = ("max_steps", "max_tokens", "max_minutes", "restart", "json")
    return {name: (before[name], now[name]) for name in now
            if name in before and name not in free and before[name] != now[name]}


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[list]:
    """A list that fills when Ctrl-C or SIGTERM arrives; a second Ctrl-C stops at once."""
    stop: list[int] = []

    def remember(number: int, frame: object) -> None:
        if stop and number == signal.SIGINT and parallel.size() == 1:        # torchrun passes each Ctrl-C on once more
            raise KeyboardInterrupt
        stop.append(number)

    try:
        previous = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:                                               # not the main thread: signals are not ours
        previous = {}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _open_metrics(path: Path, step: int):
    """metrics.jsonl opened to append, without the rows of steps that were lost and will be trained again."""
    rows = [json.dumps(row) + "\n" for row in plot.read_metrics(path.parent) if row["step"] <= step] if step else []
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(rows), encoding="utf-8")
    temporary.replace(path)
    return path.open("a", encoding="utf-8")


class _ProgressBar:
    """One line on stderr: share done, step, tokens/s, loss, validation loss, learning rate, time left."""

    def __init__(self) -> None:
        self.val, self.speed, self.loss = "", None, None
        self.start: tuple[float, float] | None = None                # (seconds, progress) at the first row
        self.bar = tqdm(total=100, bar_format="{percentage:3.0f}%|{bar:20}| {desc}", file=sys.stderr,
                        mininterval=0.2 if sys.stderr.isatty() else 30)

    def __enter__(self) -> "_ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()

    def show(self, row: dict) -> None:
        if "val_loss" in row:
            bits = f" ({row['bits_per_byte']:.3f} bits/byte)" if "bits_per_byte" in row else ""
            self.val = f"  val {row['val_loss']:.3f}{bits}"
            return
        smooth = lambda old, new: new if old is None else 0.9 * old + 0.1 * new
        self.speed, self.loss = smooth(self.speed, row["tokens_per_second"]), smooth(self.loss, row["loss"])
        self.start = self.start or (row["seconds"], row["progress"])
        gained = row["progress"] - self.start[1]
        left = (row["seconds"] - self.start[0]) * (1 - row["progress"]) / gained if gained > 0 else 0
        self.bar.set_description_str(f"step {row['step']:,}  {self.speed:,.0f} tokens/s  loss {self.loss:.3f}{self.val}"
                                     f"  lr {row['lr']:.1e}  ETA {int(left // 60)}:{int(left % 60):02d}", refresh=False)
        self.bar.update(100 * row["progress"] - self.bar.n)

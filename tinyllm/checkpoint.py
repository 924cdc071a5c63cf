"""A folder <-> (model, tokenizer, settings), saved so that a crash at any instant leaves one that loads.

A run's folder (checkpoints/pretrain) holds metrics.jsonl and a `step-00000500` folder for each kept state: the newest
two and the best. A step folder is renamed into place when it is complete, so its name alone says that it is whole.
Weights are safetensors, settings JSON; nothing that can run code is read. Explained by tests/test_checkpoint.py.
"""

import contextlib
import dataclasses
import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tinyllm
from tinyllm.config import (
    Settings,
    command,
    from_dict,
    hold,
    opt,
    read_json,
    read_settings,
    refuse_checkpoint,
    write_atomically,
)
from tinyllm.model import ModelConfig, TinyLLM
from tinyllm.tokenizer import Tokenizer

# Folders under checkpoints/, the last stage first; without any, the model beside the package, if there is one.
STAGES = ("cot_sft", "quickstart/base", "quickstart/cot_sft", "sft", "quickstart/sft", "pretrain",
          "quickstart/pretrain")
SHIPPED = Path(__file__).parent.parent / "checkpoints" / "nano"


def save(run: str | Path, model: TinyLLM, tokenizer: Tokenizer, settings: Any, state: dict,
         optimizer: dict[str, Tensor] | None = None) -> Path:
    """Writes `run`/step-N (N from state["step"]) and removes all but the two newest and the best state."""
    run = Path(run)
    final = run / f"step-{state['step']:08d}"
    if final.exists():                                               # the same step of the same run: the same weights
        return final
    folder = run / f".writing-{final.name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        save_file({name: weight.contiguous() for name, weight in model.state_dict().items()},
                  folder / "model.safetensors")
        tokenizer.save(folder / "tokenizer.model")
        _write_json(folder / "config.json", {
            "model": dataclasses.asdict(model.config), "chat": getattr(settings, "chat", False),
            "made_by": type(settings).__name__,                      # PretrainConfig, SFTConfig: which kind of stage
            "settings": dataclasses.asdict(settings),
            "step": state["step"], "seed": settings.seed, "versions": {
                "tinyllm": tinyllm.__version__, "torch": torch.__version__, "python": platform.python_version()}})
        if optimizer is not None:
            save_file(optimizer, folder / "optimizer.safetensors")
        _write_json(folder / "state.json", state)
        for path in [*folder.iterdir(), folder]:
            _sync(path)
        folder.rename(final)
        _sync(run)
    except (OSError, safetensors.SafetensorError) as error:          # a full disk: give back what this attempt took
        shutil.rmtree(folder, ignore_errors=True)
        raise ValueError(f"{final} could not be written ({error}); make room, then the same command (without "
                         "--restart) goes on from the checkpoint before") from None
    kept = best(run)
    forget(run, [folder for folder in steps(run)[:-2] if folder != kept])
    return final


def _write_json(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    if os.name == "nt":                                              # Windows cannot open a folder to sync it
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def forget(run: Path, states: list[Path]) -> None:
    """Removes states of a run, and what attempts to write or to remove one have left."""
    for folder in states:
        folder.rename(run / f".removing-{folder.name}")              # half-removed must not look whole
    for leftover in [*run.glob(".removing-*"), *run.glob(".writing-*")]:
        shutil.rmtree(leftover, ignore_errors=True)


def steps(run: str | Path) -> list[Path]:
    """The states that a run has kept, oldest first; the last is the one to resume from."""
    return sorted(folder for folder in Path(run).glob("step-*") if folder.is_dir())


def best(run: str | Path) -> Path | None:
    """The state with the lowest validation loss, the newer of two equals; None if nothing was saved yet.

    Losses compare on the same held-out rows alone: once these are others, only the states since then count.
    """
    states = {}
    for folder in steps(run):
        with contextlib.suppress(ValueError, OSError):               # damaged: another one may be whole
            state = read_json(folder / "state.json")
            if isinstance(state.get("val_loss"), (int, float, type(None))):
                states[folder] = state
    newest = next(reversed(states.values()), {})
    chosen, lowest = None, math.inf
    for folder, state in states.items():
        loss = state.get("val_loss")
        if state.get("held_out") != newest.get("held_out"):
            continue
        if chosen is None or (loss is not None and loss <= lowest) or (loss is None and lowest == math.inf):
            chosen, lowest = folder, lowest if loss is None else loss
    return chosen


def resolve(folder: str | Path) -> Path:
    """The folder that holds the weights: `folder` itself, or the best state of the run in it."""
    folder = Path(folder)
    found = folder if (folder / "model.safetensors").is_file() else best(folder) if folder.is_dir() else None
    if found is None:
        raise ValueError(f"{folder}: no checkpoint here; train one with the stage that writes this folder "
                         "(pretrain, then sft, then cot_sft), or name another one")
    return found


def refuse_overwriting(start: str | Path, out: str | Path) -> None:
    """ValueError if a training that starts from `start` would write over it in `out`, or if there is no `start`."""
    folder = resolve(start).resolve()
    if Path(out).resolve() in (folder, *folder.parents):
        raise ValueError(f"{out} would replace the checkpoint that the training starts from; choose another --out")


def default() -> Path:
    """The checkpoint to use when the user names none: that of the last stage there is."""
    for folder in [*(Path("checkpoints") / stage for stage in STAGES), SHIPPED]:
        if (folder / "model.safetensors").is_file() or steps(folder):
            if folder == SHIPPED:
                print("no checkpoint of your own yet: using the small model beside the package", file=sys.stderr)
            return resolve(folder)
    raise ValueError("no checkpoint under checkpoints/ yet; train one with `python -m tinyllm.quickstart` "
                     "or name one with --checkpoint")


def is_chat(folder: str | Path) -> bool:
    """Whether the model of a checkpoint was fine-tuned to answer in turns, rather than to continue texts."""
    return bool(read_json(resolve(folder) / "config.json").get("chat"))


def shape(folder: str | Path) -> ModelConfig:
    """The shape of the model in a checkpoint or run folder."""
    path = resolve(folder) / "config.json"
    settings = read_json(path)
    if not isinstance(settings.get("model"), dict):
        raise ValueError(f"{path}: no \"model\" settings; this is not a tinyllm checkpoint")
    return from_dict(ModelConfig, settings["model"], str(path))


def load(folder: str | Path) -> tuple[TinyLLM, Tokenizer]:
    """The model (in eval mode, fp32) and the tokenizer of a checkpoint or run folder.

    Strict: every weight must be there with the right shape, and no other. ValueError says what is wrong with the file.
    """
    folder = resolve(folder)
    config = shape(folder)
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens but the model has "
                         f"{config.vocab_size}; they do not belong together")
    weights = read_tensors(folder / "model.safetensors")
    model = TinyLLM(config)
    expected = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    if found != expected:
        wrong = sorted(set(found.items()) ^ set(expected.items()))[0][0]
        raise ValueError(f"{folder / 'model.safetensors'}: not the weights that config.json describes ({wrong}: "
                         f"expected shape {expected.get(wrong, 'none')}, found {found.get(wrong, 'none')})")
    model.load_state_dict(weights)
    return model.eval(), tokenizer


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ValueError when it is missing, truncated or something else."""
    if not path.is_file():
        raise ValueError(f"{path}: missing from the checkpoint")
    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: truncated or not a safetensors file ({error}); restore it from a copy or train "
                         "again with --restart") from None


@contextlib.contextmanager
def lock(run: str | Path) -> Iterator[None]:
    """Holds the run's folder for one trainer; ValueError if another has it, or if a copy to give away lies there."""
    refuse_checkpoint(run)                                           # resolve() would find that, and never the run
    with hold(run, "trainer"):
        yield


# --- python -m tinyllm.checkpoint ---

def pack(folder: str | Path, out: str | Path) -> int:
    """Copies a checkpoint to `out` to give away; returns the bytes written.

    Weights in bfloat16 (half the bytes, about 3 digits: enough to use and to fine-tune), tokenizer and settings; what
    only resuming needs stays behind. config.json comes last, so a copy that was cut off does not load.
    """
    folder, out = resolve(folder), Path(out)
    model, tokenizer = load(folder)
    if any(out.glob("*.safetensors")) or steps(out):
        raise ValueError(f"{out} already holds a checkpoint; remove it or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in model.state_dict().items()}
    write_atomically(out / "model.safetensors", safetensors.torch.save(weights))
    tokenizer.save(out / "tokenizer.model")
    write_atomically(out / "config.json", (folder / "config.json").read_bytes())
    return sum((out / name).stat().st_size for name in ("model.safetensors", "tokenizer.model", "config.json"))


@dataclass
class PackConfig(Settings):
    """Copy a checkpoint to a small folder to give away: bfloat16 weights, tokenizer, settings.

    Example:
      python -m tinyllm.checkpoint --checkpoint checkpoints/cot_sft --out checkpoints/mine
    """

    checkpoint: str = opt("", "run or checkpoint folder; the last stage under checkpoints/ when absent")
    out: str = opt("checkpoints/packed", "folder for the copy")


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(PackConfig, "python -m tinyllm.checkpoint", argv)
    size = pack(config.checkpoint or default(), config.out)
    print(f"{size / 1e6:.1f} MB -> {config.out}")


if __name__ == "__main__":
    sys.exit(main())

"""The only training loop. Pretraining, fine-tuning and everything later differ in the batches and the loss they pass.

In: a model, batch_at(step) -> Batch, a TrainConfig. Out: the model, trained in place. The loop knows no text and no
files; `run_stage` below wraps it in a folder that can be resumed. Explained by tests/test_train.py.
"""

import contextlib
import dataclasses
import json
import math
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from tinyllm import checkpoint, optim
from tinyllm.config import Settings, opt
from tinyllm.data import IGNORE, Batch
from tinyllm.model import TinyLLM
from tinyllm.tokenizer import Tokenizer

LossFn = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


@dataclass
class TrainConfig(Settings):
    """What every stage of training can be told."""

    max_steps: int = opt(0, "stop after this many optimizer steps (0: no limit)", low=0)
    max_tokens: int = opt(0, "stop after this many training tokens (0: no limit)", low=0)
    max_minutes: float = opt(0.0, "stop after this many minutes (0: no limit); the clock then drives the schedule, "
                                  "so only runs limited by steps or tokens repeat bit for bit", low=0)
    batch_size: int = opt(4, "rows of the full context in one forward pass (micro-batch)", low=1)
    effective_batch_size: int = opt(8, "rows per optimizer step; the gradients of its micro-batches add up", low=1)
    start_context: int = opt(0, "cut rows to this length in the first half of the run (0: never); a step keeps its "
                                "number of tokens", low=0)
    optimizer: str = opt("muon", "of the hidden matrices; everything else uses AdamW", choices=("muon", "adamw"))
    lr: float = opt(2e-3, "peak learning rate of AdamW", low=0)
    muon_lr: float = opt(0.02, "peak learning rate of Muon", low=0)
    warmup_steps: int = opt(20, "optimizer steps of linear warm-up", low=0)
    schedule: str = opt("trapezoid", "learning rate after warm-up", choices=("trapezoid", "cosine"))
    weight_decay: float = opt(0.1, "pull towards zero, on matrices only", low=0)
    clip: float = opt(1.0, "largest gradient norm; longer gradients are scaled down", low=0)
    dtype: str = opt("auto", "of activations; weights stay float32. auto: bfloat16 where the CPU has it",
                     choices=("auto", "float32", "bfloat16"))
    compile: str = opt("auto", "torch.compile. auto: on for runs of 10 minutes or more if there is a C++ compiler",
                       choices=("auto", "on", "off"))
    val_every: int = opt(100, "steps between validations", low=1)
    save_every: int = opt(100, "steps between checkpoints", low=1)
    seed: int = opt(0, "of weights, batches and dropout", low=0)
    restart: bool = opt(False, "begin again instead of resuming; the earlier states are removed")


@dataclass
class TrainState:
    """Where a run stands: with the weights and the optimizer tensors, all that resuming needs."""

    step: int = 0                                                    # optimizer steps taken
    tokens: int = 0                                                  # positions read
    seconds: float = 0.0                                             # spent in the loop, over all sittings
    loss: float | None = None                                        # mean of the last step, nats per token
    val_loss: float | None = None                                    # of these weights, if they were validated
    best_val_loss: float | None = None

    def progress(self, config: TrainConfig) -> float:
        """Share of the run that is done: the largest share of any limit."""
        shares = [done / limit for done, limit in ((self.step, config.max_steps), (self.tokens, config.max_tokens),
                                                   (self.seconds, config.max_minutes * 60)) if limit]
        if not shares:
            raise ValueError("a run needs an end: give --max-steps, --max-tokens or --max-minutes")
        return min(1.0, max(shares))


def next_token_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(sum of cross-entropies in nats, number of targets that are not IGNORE)."""
    logits = model(batch.tokens)                                     # (B, T, V)
    loss = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=IGNORE, reduction="sum")
    return loss, (batch.targets != IGNORE).sum()


def train(model: nn.Module, batch_at: Callable[[int], Batch], config: TrainConfig, *, val: Sequence[Batch] = (),
          loss_fn: LossFn = next_token_loss,
          save: Callable[[TrainState, dict[str, Tensor]], None] | None = None,
          resume: tuple[TrainState, dict[str, Tensor]] | None = None,
          report: Callable[[dict], None] = lambda row: None,
          should_stop: Callable[[], bool] = lambda: False) -> TrainState:
    """Trains `model` in place until a limit of `config` is reached or should_stop(); returns where it stands.

    One step: read batch_at(step) in micro-batches, add up the gradients of the summed loss, divide by the number of
    targets of the whole step (never a mean of means), clip, move the weights. `save` gets the state and the optimizer
    tensors every `save_every` steps and at the end; giving them back as `resume` continues bit for bit. `report`
    gets one row of numbers per step and per validation, the first before any step.
    """
    dtype = pick_dtype(config.dtype)
    state, tensors = resume or (TrainState(), {})
    optimizers = optim.make_optimizers(model, config.optimizer, lr=config.lr, muon_lr=config.muon_lr,
                                       weight_decay=config.weight_decay, dtype=dtype)
    optim.load_state_tensors(model, optimizers, tensors)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    loss_of = _compiled(loss_fn, config)
    torch.set_flush_denormal(True)                                   # numbers near 1e-40 are 100 times slower
    started, before, saved_at = time.monotonic(), state.seconds, state.step

    def validate() -> None:
        state.val_loss = mean_loss(model, val, loss_fn, dtype)
        state.best_val_loss = min(state.val_loss, state.best_val_loss or math.inf)
        report({"step": state.step, "tokens": state.tokens, "seconds": before + time.monotonic() - started,
                "val_loss": state.val_loss})

    if len(val) and state.step == 0:
        validate()                                                   # what an untrained model knows: about ln V
    while (progress := state.progress(config)) < 1 and not should_stop():
        step_started = time.monotonic()
        model.train()
        torch.manual_seed(config.seed * 1_000_003 + state.step)      # dropout is a function of (seed, step) as well
        share = optim.warmup_at(state.step, config.warmup_steps) * optim.decay_at(progress, config.schedule)
        optim.set_rate(optimizers, share)
        micro_batches = _micro_batches(batch_at(state.step), config, progress)
        loss_sum, n_targets = 0.0, 0
        for batch in micro_batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss, count = loss_of(model, batch)
            loss.backward()
            loss_sum, n_targets = loss_sum + loss.item(), n_targets + int(count)
        if n_targets == 0:
            raise ValueError(f"step {state.step} has no target to learn; every label of the batch is masked")
        for weight in weights:
            if weight.grad is not None:
                weight.grad /= n_targets
        grad_norm = float(nn.utils.clip_grad_norm_(weights, config.clip))
        _check_finite(loss_sum / n_targets, grad_norm, state.step, config)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

        n_tokens = sum(batch.tokens.numel() for batch in micro_batches)
        state.step, state.tokens, state.loss = state.step + 1, state.tokens + n_tokens, loss_sum / n_targets
        state.val_loss = None
        now = time.monotonic()
        state.seconds = before + now - started
        report({"step": state.step, "tokens": state.tokens, "seconds": state.seconds, "loss": state.loss,
                "lr": config.lr * share, "grad_norm": grad_norm, "context": micro_batches[0].tokens.shape[1],
                "tokens_per_second": n_tokens / (now - step_started), "progress": state.progress(config)})
        finished = state.progress(config) >= 1
        if len(val) and (state.step % config.val_every == 0 or finished):
            validate()
        if save and state.step % config.save_every == 0 and not finished:
            save(state, optim.state_tensors(model, optimizers))
            saved_at = state.step
        state.seconds = before + time.monotonic() - started
    if save and saved_at != state.step:
        save(state, optim.state_tensors(model, optimizers))
    model.eval()
    return state


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Sequence[Batch], loss_fn: LossFn = next_token_loss,
              dtype: torch.dtype = torch.float32) -> float:
    """Loss per target in nats over `batches`, without dropout."""
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss, n = loss_fn(model, batch)
        total, count = total + loss.item(), count + int(n)
    return total / max(1, count)


def pick_dtype(name: str) -> torch.dtype:
    """The dtype of activations: "auto" is bfloat16 on a CPU with bfloat16 instructions, else float32."""
    if name == "auto":
        capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if capable else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def _micro_batches(batch: Batch, config: TrainConfig, progress: float) -> list[Batch]:
    """The rows of one step in portions that fit in memory; shorter rows at first if start_context says so."""
    full = batch.tokens.shape[1]
    length = min(full, config.start_context or full) if progress < 0.5 else full
    return [micro.cut(length) for micro in batch.split(config.batch_size)]


def _compiled(loss_fn: LossFn, config: TrainConfig) -> LossFn:
    wanted = config.compile == "on" or (config.compile == "auto" and config.max_minutes >= 10)
    if wanted and not any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl")):
        print("no C++ compiler found: training without torch.compile", file=sys.stderr)
        wanted = False
    return torch.compile(loss_fn, dynamic=False) if wanted else loss_fn


def _check_finite(loss: float, grad_norm: float, step: int, config: TrainConfig) -> None:
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise ValueError(f"step {step}: loss is {loss:.3g} and gradient norm {grad_norm:.3g}; the usual cause is a "
                         f"learning rate that is too high (--lr {config.lr:g}, --muon-lr {config.muon_lr:g}): lower "
                         "them, or try --dtype float32; the last checkpoint is untouched")


# --- the loop with a folder around it: what pretrain, sft and cot_sft call ---

def run_stage(model: TinyLLM, tokenizer: Tokenizer, batch_at: Callable[[int], Batch], config: TrainConfig,
              folder: str | Path, *, val: Sequence[Batch] = (), loss_fn: LossFn = next_token_loss,
              bytes_per_token: float | None = None, report: Callable[[dict], None] = lambda row: None) -> TrainState:
    """Trains in `folder`: resumes what is there, shows a progress bar, logs metrics.jsonl, saves, survives signals.

    With `bytes_per_token` of the validation text, validation rows also carry bits per byte. Ctrl-C and SIGTERM finish
    the step, save and raise KeyboardInterrupt.
    """
    folder = Path(folder)
    with checkpoint.lock(folder), _stop_on_signal() as stop:
        resume = None if config.restart else load_run(folder, model)
        if config.restart:
            for old in [*folder.glob("step-*"), *folder.glob("damaged-step-*")]:
                shutil.rmtree(old)
        step = resume[0].step if resume else 0
        if resume:
            print(f"resuming {folder} at step {step:,}", file=sys.stderr)
            if resume[0].progress(config) >= 1:
                print("it has already reached its limit: raise the limit to go on, or --restart", file=sys.stderr)
                return resume[0]
        with _open_metrics(folder / "metrics.jsonl", step) as metrics, _ProgressBar(resume) as bar:

            def log(row: dict) -> None:
                if "val_loss" in row and bytes_per_token:
                    row["bits_per_byte"] = row["val_loss"] / bytes_per_token / math.log(2)
                metrics.write(json.dumps(row) + "\n")
                metrics.flush()
                bar.show(row)
                report(row)

            def save(state: TrainState, tensors: dict[str, Tensor]) -> None:
                checkpoint.save(folder, model, tokenizer, config, dataclasses.asdict(state), tensors)

            state = train(model, batch_at, config, val=val, loss_fn=loss_fn, save=save, resume=resume, report=log,
                          should_stop=lambda: bool(stop))
    if stop and state.progress(config) < 1:
        print(f"stopped and saved at step {state.step:,}; the same command goes on from here", file=sys.stderr)
        raise KeyboardInterrupt
    return state


def load_run(folder: Path, model: TinyLLM) -> tuple[TrainState, dict[str, Tensor]] | None:
    """Puts the newest whole state of `folder` into `model`; returns it with its optimizer tensors, or None if empty.

    A damaged state is set aside with a line on stderr, and the one before it is used.
    """
    for newest in reversed(checkpoint.steps(folder)):
        try:
            stored, _ = checkpoint.load(newest)
            tensors = checkpoint.read_tensors(newest / "optimizer.safetensors")
            state = TrainState(**checkpoint.read_json(newest / "state.json"))
        except ValueError as error:
            print(f"{error}; set aside as damaged-{newest.name}", file=sys.stderr)
            newest.rename(folder / f"damaged-{newest.name}")
            continue
        if stored.config != model.config:
            raise ValueError(f"{folder} holds a model of another shape; choose another --out, or begin again with "
                             "--restart")
        model.load_state_dict(stored.state_dict())
        return state, tensors
    return None


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[list]:
    """A list that fills when Ctrl-C or SIGTERM arrives; a second Ctrl-C stops at once."""
    stop: list[int] = []

    def remember(number: int, frame: object) -> None:
        if stop and number == signal.SIGINT:
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
    rows = []
    if path.exists() and step:
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):          # a line cut off by a crash
                if json.loads(line)["step"] <= step:
                    rows.append(line + "\n")
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(rows), encoding="utf-8")
    temporary.replace(path)
    return path.open("a", encoding="utf-8")


class _ProgressBar:
    """One line on stderr: share done, step, tokens/s, loss, validation loss, learning rate, time left."""

    def __init__(self, resume: tuple | None) -> None:
        self.val, self.speed, self.loss = "", None, None
        self.start: tuple[float, float] | None = None                # (seconds, progress) at the first row
        self.bar = tqdm(total=100, bar_format="{percentage:3.0f}%|{bar:20}| {postfix}", file=sys.stderr,
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
        self.bar.set_postfix_str(f"step {row['step']:,}  {self.speed:,.0f} tokens/s  loss {self.loss:.3f}{self.val}  "
                                 f"lr {row['lr']:.1e}  ETA {int(left // 60)}:{int(left % 60):02d}", refresh=False)
        self.bar.update(100 * row["progress"] - self.bar.n)

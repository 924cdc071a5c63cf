"""The only training loop. Pretraining, fine-tuning and everything later differ in the batches and the loss they pass.

In: a model, batch_at(step) -> Batch, a TrainConfig. Out: the model, trained in place. The loop knows no text and no
files; stage.py wraps it in a folder that can be resumed. Explained by tests/test_train.py.
"""

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tinyllm import optim, parallel
from tinyllm.config import RECIPES, Settings, no_memory, opt
from tinyllm.data import IGNORE, Batch
from tinyllm.loss import CrossEntropy
from tinyllm.model import Block

LossFn = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
CPU = torch.device("cpu")
SAME_SHAPE = 128                                                     # positions scored at once, see next_token_loss
COMPILE_FROM = 3.6e13                                                # operations: 3 minutes at 200 GFLOP/s


@dataclass
class TrainConfig(Settings):
    """What every stage of training can be told."""

    recipe: str = opt("fast", "fast: what learns most in a minute on a CPU; classic: what most code for large models "
                              "does, to see the difference: AdamW 3e-4, 64 rows a step, cosine; in pretrain also no "
                              "start_context, planted heads and QK-norm; single flags win over it",
                      choices=tuple(RECIPES))
    max_steps: int = opt(0, "stop after this many optimizer steps (0: no limit)", low=0)
    max_tokens: int = opt(0, "stop after this many training tokens (0: no limit)", low=0)
    max_minutes: float = opt(0.0, "stop after this many minutes (0: no limit; an hour if no other is given); the clock "
                                  "then drives the schedule, so only runs limited by steps or tokens repeat bit for "
                                  "bit", low=0)
    batch_size: int = opt(4, "rows of the full context in one forward pass (micro-batch)", low=1)
    effective_batch_size: int = opt(4, "rows per optimizer step; the gradients of its micro-batches add up", low=1,
                                    high=2 ** 20)
    start_context: int = opt(0, "cut rows to this length in the first half of the run (0: never); a step keeps its "
                                "number of tokens", low=0)
    optimizer: str = opt("muon", "of the hidden matrices; everything else uses AdamW", choices=("muon", "adamw"))
    lr: float = opt(2e-3, "peak learning rate of AdamW", low=0)
    muon_lr: float = opt(0.02, "peak learning rate of Muon", low=0)
    warmup_steps: int = opt(20, "optimizer steps of linear warm-up", low=0)
    schedule: str = opt("trapezoid", "learning rate after warm-up", choices=("trapezoid", "linear", "cosine"))
    weight_decay: float = opt(0.1, "pull towards zero, on matrices only", low=0)
    dropout: float = opt(0.0, "share of activations zeroed at first; falls to 0 in four stairs over the run", low=0,
                         high=0.9)
    clip: float = opt(1.0, "largest gradient norm; longer gradients are scaled down (0: never)", low=0)
    dtype: str = opt("auto", "of activations; weights stay float32. auto: bfloat16 where the CPU has it",
                     choices=("auto", "float32", "bfloat16"))
    compile: str = opt("auto", "torch.compile. auto: on if the run is long enough to win back the time and there is a "
                               "C++ compiler", choices=("auto", "on", "off"))
    device: str = opt("cpu", "where to train: cpu, or a GPU that torch knows, such as cuda")
    val_every: int = opt(100, "steps between validations", low=1)
    save_every: int = opt(100, "steps between checkpoints", low=1)
    seed: int = opt(0, "of weights, batches and dropout", low=0)
    restart: bool = opt(False, "begin again instead of resuming; the earlier states are removed")

    def __post_init__(self) -> None:
        super().__post_init__()
        pick_device(self.device)                                     # a GPU that is not there is said before any work


@dataclass
class TrainState:
    """Where a run stands: with the weights and the optimizer tensors, all that resuming needs."""

    step: int = 0                                                    # optimizer steps taken
    tokens: int = 0                                                  # positions read
    seconds: float = 0.0                                             # spent in the loop, over all sittings
    loss: float | None = None                                        # mean of the last step, nats per token
    val_loss: float | None = None                                    # of these weights, if they were validated

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, (int, float)) and not (value is None and name in ("loss", "val_loss")):
                raise ValueError(f"{name} of a state must be a number, not {value!r}")

    def progress(self, config: TrainConfig) -> float:
        """Share of the run that is done: the largest share of any limit."""
        shares = [done / limit for done, limit in ((self.step, config.max_steps), (self.tokens, config.max_tokens),
                                                   (self.seconds, config.max_minutes * 60)) if limit]
        if not shares:
            raise ValueError("a run needs an end: give --max-steps, --max-tokens or --max-minutes")
        return min(1.0, max(shares))


def next_token_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(sum of cross-entropies in nats, number of targets that are not IGNORE).

    Nothing is scored where nothing is learnt. The number of positions that are left changes from step to step and is
    filled up to a multiple of 128, or to all: for each shape it meets torch makes and keeps code for the product with
    the embedding, which else takes time and 30 MB in every step.
    """
    hidden = model.last_hidden(batch.tokens, starts=batch.starts).flatten(0, 1)                # (B*T, D)
    targets = batch.targets.flatten()                                # (B*T,)
    learnt = (targets != IGNORE).nonzero()[:, 0]                     # (N,)
    more = min(-len(learnt) % SAME_SHAPE, len(targets) - len(learnt))
    fill = (0, more)                                                 # the first position again, with nothing to learn
    logits = model.logits(hidden[F.pad(learnt, fill)])               # (N + more, V)
    return model.cross_entropy(logits, F.pad(targets[learnt], fill, value=IGNORE)), (targets != IGNORE).sum()


def train(model: nn.Module, batch_at: Callable[[int], Batch], config: TrainConfig, *,
          val: Mapping[str, Sequence[Batch]] = MappingProxyType({}),
          loss_fn: LossFn = next_token_loss,
          save: Callable[[TrainState, dict[str, Tensor]], None] | None = None,
          resume: tuple[TrainState, dict[str, Tensor]] | None = None,
          report: Callable[[dict], None] = lambda row: None,
          should_stop: Callable[[], bool] = lambda: False) -> TrainState:
    """Trains `model` in place until a limit of `config` is reached or should_stop(); returns where it stands.

    One step: read batch_at(step) in micro-batches (each of several processes its share of the rows), add up the
    gradients of the summed loss, divide by the number of targets of the whole step (never a mean of means), clip, move
    the weights. `save` gets the state and the optimizer tensors every `save_every` steps and at the end; giving them
    back as `resume` continues bit for bit. `report` gets one row of numbers per step and per validation, the first
    before any step. `val` holds batches by name: one loss over all of them is reported, and one for each name if there
    are several. The model is trained on `config.device` and comes back on the CPU.
    """
    device = pick_device(config.device)
    dtype = pick_dtype(config.dtype, device)
    model.to(device)
    state, tensors = resume or (TrainState(), {})
    optimizers = optim.make_optimizers(model, config.optimizer, lr=config.lr, muon_lr=config.muon_lr,
                                       weight_decay=config.weight_decay, dtype=dtype)
    optim.load_state_tensors(model, optimizers, tensors)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    loss_of = compiled(model, loss_fn) if worth_compiling(model, batch_at, config) else loss_fn
    torch.set_flush_denormal(True)                                   # numbers near 1e-40 are 100 times slower
    started, before, saved_at = time.monotonic(), state.seconds, state.step

    def validate() -> None:
        sums = {name: loss_sums(model, batches, loss_fn, dtype) for name, batches in val.items()}
        state.val_loss = sum(loss for loss, _ in sums.values()) / max(1, sum(count for _, count in sums.values()))
        by_name = {name: loss / max(1, count) for name, (loss, count) in sums.items()} if len(val) > 1 else {}
        report({"step": state.step, "tokens": state.tokens, "seconds": before + time.monotonic() - started,
                "val_loss": state.val_loss} | ({"val_loss_by": by_name} if by_name else {}))

    if len(val) and state.step == 0:
        validate()                                                   # what an untrained model knows: about ln V
    while True:
        progress, stop = parallel.agreed(state.progress(config), should_stop())
        if progress >= 1 or stop:
            break
        step_started = time.monotonic()
        model.train()
        if config.dropout:                                           # 0: a scorer's head keeps its own
            set_dropout(model, config.dropout * (3 - int(4 * progress)) / 3)
        # Dropout is a function of (seed, step) as well, and different for the rows of another process.
        torch.manual_seed((config.seed * 1_000_003 + state.step) * parallel.size() + parallel.rank())
        share = optim.warmup_at(state.step, config.warmup_steps) * optim.decay_at(progress, config.schedule)
        optim.set_rate(optimizers, share)
        whole = batch_at(state.step)
        micro_batches = _micro_batches(parallel.share(whole), config, progress)
        loss_sum, n_targets = 0.0, 0
        for batch in micro_batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss, count = loss_of(model, batch.to(device))
            loss.backward()
            loss_sum, n_targets = loss_sum + loss.item(), n_targets + int(count)
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        parallel.add_up(gradients)
        loss_sum, n_targets = parallel.total(loss_sum, n_targets)
        if n_targets == 0:
            raise ValueError(f"step {state.step} has no target to learn; every label of the batch is masked")
        grad_norm = float(nn.utils.get_total_norm(gradients)) / n_targets
        _check_finite(loss_sum / n_targets, grad_norm, state.step, config)
        clipping = min(1.0, config.clip / (grad_norm + 1e-6)) if config.clip else 1.0
        torch._foreach_mul_(gradients, clipping / n_targets)         # both in one pass over them
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

        n_tokens = whole.tokens.numel()
        state.step, state.tokens, state.loss = state.step + 1, state.tokens + n_tokens, loss_sum / n_targets
        state.val_loss = None
        now = time.monotonic()
        state.seconds = before + now - started
        report({"step": state.step, "tokens": state.tokens, "seconds": state.seconds, "loss": state.loss,
                "lr": config.lr * share, "grad_norm": grad_norm, "context": micro_batches[0].tokens.shape[1],
                "tokens_per_second": n_tokens / (now - step_started), "progress": state.progress(config)})
        if len(val) and (state.step % config.val_every == 0 or state.progress(config) >= 1):
            validate()                                               # before saving: the best state is known by it
            state.seconds = before + time.monotonic() - started
        if save and state.step % config.save_every == 0:
            save(state, optim.state_tensors(model, optimizers))
            saved_at = state.step
    if save and saved_at != state.step:
        save(state, optim.state_tensors(model, optimizers))
    model.cpu().eval()
    return state


@torch.no_grad()
def loss_sums(model: nn.Module, batches: Iterable[Batch], loss_fn: LossFn = next_token_loss,
              dtype: torch.dtype = torch.float32) -> tuple[float, int]:
    """(sum of losses in nats, number of targets) over `batches`, without dropout."""
    model.eval()
    total, count, device = 0.0, 0, next(model.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
    for batch in batches:
        with torch.compiler.set_stance("force_eager"), autocast:     # of any shape: compiling each would take for ever
            loss, n = loss_fn(model, batch.to(device))
        total, count = total + loss.item(), count + int(n)
    return total, count


def set_dropout(model: nn.Module, share: float) -> None:
    """Zeroes `share` of the activations in training from now on."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share


def pick_dtype(name: str, device: torch.device = CPU) -> torch.dtype:
    """The dtype of activations: "auto" is bfloat16 where the CPU has bfloat16 instructions and on CUDA, else float32.
    """
    if name == "auto":
        capable = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if device.type == "cuda" or (device.type == "cpu" and capable) else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def pick_device(name: str) -> torch.device:
    """The device called `name`; "cuda" is one GPU for each process. ValueError if torch cannot use it here."""
    try:
        device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" else name)
        torch.zeros(1, device=device).item()                         # "meta" has no numbers
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name} cannot be used here ({str(error).splitlines()[0]}); leave it out to train "
                         "on the CPU") from None
    return device


def _micro_batches(batch: Batch, config: TrainConfig, progress: float) -> list[Batch]:
    """The rows of one step in portions that fit in memory; shorter rows at first if start_context says so."""
    full = batch.tokens.shape[1]
    length = min(full, config.start_context or full) if progress < 0.5 else full
    return [micro.cut(length) for micro in batch.split(config.batch_size)]


def worth_compiling(model: nn.Module, batch_at: Callable[[int], Batch], config: TrainConfig) -> bool:
    """Whether the run is long enough to win back the half minute that compiling takes: three minutes or more.

    A run that ends after so many steps or tokens is judged by its arithmetic, never by a clock: it must repeat bit for
    bit, and compiled code rounds otherwise.
    """
    if config.compile != "auto":
        return config.compile == "on"
    step_tokens = batch_at(0).tokens.numel() if config.max_steps else 0
    tokens = [limit for limit in (config.max_tokens, config.max_steps * step_tokens) if limit]
    flops = 6 * sum(weight.numel() for weight in model.parameters()) * min(tokens, default=math.inf)
    return flops >= COMPILE_FROM and (config.max_minutes or math.inf) >= 3


def compiled(model: nn.Module, loss_fn: LossFn) -> LossFn:
    """`loss_fn` with the blocks and the cross-entropy of `model` fused by torch.compile.

    All blocks share the code that is made for the first; that of the cross-entropy is made for any number of targets.
    Where there is no working compiler, the plain `loss_fn`, with one line on stderr.
    """
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl")):
        print("no C++ compiler found: training without torch.compile", file=sys.stderr)
        return loss_fn
    for module in model.modules():
        if isinstance(module, (Block, CrossEntropy)):
            module.compile(dynamic=isinstance(module, CrossEntropy))
    plain = torch.compiler.set_stance("force_eager")(loss_fn)
    ways = [loss_fn]

    def fused(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        random = torch.get_rng_state()
        try:
            return ways[0](model, batch)
        except RuntimeError as error:
            if ways[0] is plain or no_memory(error):
                raise
            said = " ".join(filter(None, str(error).splitlines()[:2]))        # torch names itself first, then the cause
            print(f"torch.compile failed ({said}): training without it", file=sys.stderr)
            torch.set_rng_state(random)                              # the failed attempt may have drawn for dropout
            ways[0] = plain
            return plain(model, batch)

    return fused


def _check_finite(loss: float, grad_norm: float, step: int, config: TrainConfig) -> None:
    if not (math.isfinite(loss) and math.isfinite(grad_norm)):
        raise ValueError(f"step {step}: loss is {loss:.3g} and gradient norm {grad_norm:.3g}; the usual cause is a "
                         f"learning rate that is too high (--lr {config.lr:g}"
                         + f", --muon-lr {config.muon_lr:g}" * (config.optimizer == "muon") + "): lower it, or try "
                         "--dtype float32; the checkpoints so far are as they were")

"""How fast this machine trains and decodes, beside what it could do and what the textbook's code would do.

In: a preset. Out: rows, each a number with its unit and its ratio to yardsticks measured in the same minutes: matrix
products, memory bandwidth, tests/reference.py. What is timed is the code that users run: train.train, next_token_loss,
make_optimizers, generate.stream. Explained by tests/test_bench.py.
"""

import dataclasses
import functools
import importlib.util
import json
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F

from tinyllm import generate, train
from tinyllm.config import command, opt, part, read_settings
from tinyllm.model import ModelConfig, TinyLLM
from tinyllm.optim import make_optimizers
from tinyllm.scaling import measure_scaling
from tinyllm.timing import (
    alternate,
    dtype_name,
    flops_per_token,
    forward_backward,
    gradient_name,
    make_row,
    random_batch,
    timed,
)
from tinyllm.weights import kind_of, read_as

TEXTBOOK = Path(__file__).resolve().parents[1] / "tests" / "reference.py"
PEERS = TEXTBOOK.with_name("peers.py")                               # others' code, where it is installed
Ways = dict[str, tuple[train.LossFn, torch.dtype]]                   # name -> how to get the loss, dtype of activations


@dataclass
class BenchConfig(ModelConfig):
    """Measure training and decoding speed on this machine, in a few minutes.

    --json prints {"machine", "settings", "rows", "notes"}; a row has "name", "value" (the median), "unit", "ratios"
    (yardstick -> value / yardstick), "runs", "low", "high". Examples:
      python -m tinyllm.bench
      python -m tinyllm.bench --preset nano --json
      python -m tinyllm.bench --shapes 4x512 --repeats 9 --seconds 300
    """

    preset: str = opt("base", "shape of the model; single flags such as --n-layers win over it",
                      choices=("base", "nano"))
    shapes: list[str] = opt([], "micro-batches to time, ROWSxTOKENS; default: 2048 tokens in rows of 256 and of the "
                                "full context")
    repeats: int = opt(5, "timed runs of everything, alternating; warm-up is not counted", low=1)
    seconds: float = opt(90.0, "time for all timed runs together; each is run at least once", low=0)
    dtype: str = opt("auto", "of activations in training; auto: bfloat16 where the CPU has it",
                     choices=("auto", "float32", "bfloat16"))
    prompt_tokens: int = opt(64, "length of the prompt before decoding", low=1)
    new_tokens: int = opt(128, "tokens to decode after the first", low=1)
    seed: int = opt(0, "of weights and tokens", low=0)
    json: bool = opt(False, "print one JSON object instead of a table")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt_tokens + self.new_tokens >= self.context:
            raise ValueError(f"--prompt-tokens {self.prompt_tokens} and --new-tokens {self.new_tokens} do not fit in "
                             f"context={self.context}; ask for fewer")
        lengths = sorted({min(256, self.context), self.context})
        self.shapes = self.shapes or [f"{max(1, 2048 // length)}x{length}" for length in lengths]
        for shape in self.shapes:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", shape) or int(shape.split("x")[1]) > self.context:
                raise ValueError(f"--shapes takes ROWSxTOKENS of at most context={self.context} tokens, not {shape!r}")


# --- yardsticks ---

def matmul_rates(repeats: int, size: int = 2048) -> dict[str, list[float]]:
    """GFLOP/s of a square matrix product, by dtype; bfloat16 only where the CPU has it (elsewhere it is emulated)."""
    jobs = {}
    for dtype in dict.fromkeys([torch.float32, train.pick_dtype("auto")]):
        a, b = torch.randn(2, size, size).to(dtype)
        jobs[dtype_name(dtype)] = functools.partial(timed, functools.partial(torch.mm, a, b))
        jobs[dtype_name(dtype)]()                                    # warm-up
    return {name: [2 * size ** 3 / seconds / 1e9 for seconds in times]
            for name, times in alternate(jobs, repeats, float("inf")).items()}


def read_rates(repeats: int, n_bytes: int = 256 << 20) -> list[float]:
    """GB/s of reading memory far larger than any cache: a sum of int64 numbers, which is next to no arithmetic."""
    numbers = torch.ones(n_bytes // 8, dtype=torch.int64)
    numbers.sum()
    return [n_bytes / timed(numbers.sum) / 1e9 for _ in range(repeats)]


def load_yardstick(path: Path) -> ModuleType | None:
    """The module at `path`, or None when it is not there: an installed package comes without the tests."""
    if not path.is_file():
        return None
    spec = importlib.util.spec_from_file_location(f"tinyllm_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peak_mb() -> list[float]:
    """[the most memory in MB that this process has held]; [] where the system does not say (Windows)."""
    if importlib.util.find_spec("resource") is None:
        return []
    import resource
    return [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)]


# --- training ---

def loss_functions(model: TinyLLM, textbook: ModuleType | None, dtype: torch.dtype) -> Ways:
    """The ways to one loss: eager, compiled where there is a C++ compiler, from the logits of `textbook`."""
    eager = torch.compiler.set_stance("force_eager")(train.next_token_loss)      # even where the blocks are compiled
    ways: Ways = {f"eager {dtype_name(dtype)}": (eager, dtype)}
    compiled = train.compiled(model, train.next_token_loss)
    if compiled is not train.next_token_loss:
        ways[f"compiled {dtype_name(dtype)}"] = (compiled, dtype)
    if textbook:
        ways["textbook"] = (lambda model, batch: (F.cross_entropy(
            textbook.logits(model, batch.tokens).flatten(0, 1), batch.targets.flatten(), reduction="sum"),
            torch.tensor(batch.targets.numel())), torch.float32)
    return ways


def measure_steps(model: TinyLLM, rows: int, length: int, gflops: float, config: train.TrainConfig,
                  seconds: float) -> tuple[list[dict], float]:
    """Steps of the training loop itself, optimizer and all, and the seconds of one; the first compiles: its own row."""
    full = config.effective_batch_size * model.config.context        # tokens of a step: whole micro-batches
    batch = random_batch(model, max(1, full // (rows * length)) * rows, length)
    steps: list[dict] = []
    train.train(model, lambda step: batch, config, report=steps.append,
                should_stop=lambda: len(steps) > 1 and steps[-1]["seconds"] - steps[0]["seconds"] > seconds)
    row = make_row(f"training step {rows}x{length}, {config.optimizer}",
                   [step["tokens_per_second"] for step in steps[1:]], "tokens/s",
                   {"matmul ceiling": gflops * 1e9 / flops_per_token(model.config, length)})
    later = batch.tokens.numel() / row["value"]
    return [row, make_row(f"first step {rows}x{length}", [steps[0]["seconds"]], "s", {"later step": later})], later


def measure_gradients(model: TinyLLM, rows: int, length: int, gflops: float, ways: Ways, repeats: int,
                      seconds: float) -> list[dict]:
    """Forward + backward of one micro-batch, each way in turn."""
    batch = random_batch(model, rows, length)
    jobs = {way: functools.partial(forward_backward, model, batch, *how) for way, how in ways.items()}
    for job in jobs.values():
        job()                                                        # warm-up
    speeds = {way: [rows * length / second for second in times]
              for way, times in alternate(jobs, repeats, seconds).items()}
    yardsticks = {"matmul ceiling": gflops * 1e9 / flops_per_token(model.config, length)}
    if "textbook" in speeds:
        yardsticks["textbook"] = statistics.median(speeds["textbook"])
    others = [statistics.median(speed) for way, speed in speeds.items()
              if not way.startswith(("eager", "compiled", "textbook"))]
    if others:
        yardsticks["best peer"] = max(others)
    return [make_row(gradient_name(rows, length, way), speed, "tokens/s", yardsticks)
            for way, speed in speeds.items()]


def measure_optimizers(model: TinyLLM, dtype: torch.dtype, step_seconds: float, repeats: int,
                       seconds: float) -> list[dict]:
    """Milliseconds in which each optimizer moves all weights, beside a whole training step."""
    with torch.compiler.set_stance("force_eager"):                   # for the gradients alone; of a shape of its own
        forward_backward(model, random_batch(model, 1, 2), train.next_token_loss, torch.float32)
    jobs = {}
    for name in ("adamw", "muon"):
        made = make_optimizers(model, name, lr=0.0, muon_lr=0.0, weight_decay=0.1, dtype=dtype)
        jobs[name] = functools.partial(timed, lambda made=made: [optimizer.step() for optimizer in made])
        jobs[name]()                                                 # warm-up: the first step makes the state
    return [make_row(f"optimizer step, {name}", [second * 1e3 for second in times], "ms",
                     {"training step": step_seconds * 1e3})
            for name, times in alternate(jobs, repeats, seconds).items()]


# --- decoding ---

def decode(model: TinyLLM, prompt: list[int], n: int, new_tokens: int) -> float:
    """Seconds for n x `new_tokens` tokens after the first of each continuation, so that prefill is not counted.

    Random weights are sure of nothing, and a draw among thousands of likely tokens takes long; a trained model mostly
    has one, as these have at a low temperature.
    """
    ids = generate.stream(model, prompt, end=-1, n=n, max_new_tokens=new_tokens + 1, temperature=0.03)  # -1: no end
    next(ids)
    started = time.perf_counter()
    n_steps = sum(1 for _ in ids)
    assert n_steps == new_tokens
    return time.perf_counter() - started


def measure_decoding(model: TinyLLM, prompt_tokens: int, new_tokens: int, textbook: ModuleType | None,
                     gb_per_second: float, repeats: int, seconds: float) -> list[dict]:
    """Tokens/s of 1 and of 5 continuations of one prompt, with each kind of weights that the CPU computes in.

    The limit is reading all weights once a step, in the bytes of their kind.
    """
    model.eval()
    prompt = torch.randint(model.config.vocab_size, (prompt_tokens,)).tolist()
    runs = {}                                                        # name -> (continuations, bytes of a weight, run)
    for kind in dict.fromkeys(["fp32", kind_of("auto"), "int8"]):
        quick, size = read_as(kind, model), {"fp32": 4, "bf16": 2, "int8": 1}[kind]
        runs |= {f"{n} continuation{'s' * (n > 1)}, {kind}": (n, size, functools.partial(decode, quick, prompt, n))
                 for n in (1, 5)}
    if textbook:
        runs["textbook"] = (1, 4, lambda count: timed(lambda: textbook.generate_greedy(model, prompt, count)))
    if (peers := load_yardstick(PEERS)) and (peer := peers.decode_seconds(model.config, prompt)):
        runs["HF fp32"] = (1, 4, peer)
    for *_, run in runs.values():
        run(2)                                                       # warm-up
    times = alternate({name: functools.partial(run, new_tokens) for name, (*_, run) in runs.items()}, repeats, seconds)
    speeds = {name: [runs[name][0] * new_tokens / second for second in ran] for name, ran in times.items()}
    others = {name: statistics.median(speeds[key]) for name, key in (
        ("1 in fp32", "1 continuation, fp32"), ("textbook", "textbook"), ("HF fp32", "HF fp32")) if key in speeds}
    n_weights = sum(weight.numel() for weight in model.parameters() if weight.ndim == 2)
    alone = lambda name: {"1 of this kind": statistics.median(speeds[f"1 continuation, {name.split(', ')[1]}"])} \
        if runs[name][0] > 1 else {}
    return [make_row(f"decode, {name}", speed, "tokens/s", {
        "weights read once a step": runs[name][0] * gb_per_second * 1e9 / (n_weights * runs[name][1]), **others,
        **alone(name)}) for name, speed in speeds.items()]


# --- all of it ---

def bench(config: BenchConfig) -> dict:
    """What the command prints: {"machine", "settings", "rows", "notes"}. Says on stderr what it is measuring."""
    torch.manual_seed(config.seed)
    tell = lambda text: print(f"measuring {text} ...", file=sys.stderr)
    shapes = [tuple(map(int, shape.split("x"))) for shape in config.shapes]
    model, dtype = TinyLLM(part(ModelConfig, config)), train.pick_dtype(config.dtype)
    textbook = load_yardstick(TEXTBOOK)
    repeats, seconds = config.repeats, config.seconds / (2 * len(shapes) + 6)      # an equal share for each group

    tell("matrix products and memory")
    matmul, read = matmul_rates(repeats), read_rates(repeats)
    gflops, gb_per_second = max(map(max, matmul.values())), max(read)
    found = [make_row(f"matmul 2048x2048, {name}", rates, "GFLOP/s", {"best run": gflops})
             for name, rates in matmul.items()] + [make_row("memory read", read, "GB/s", {"best run": gb_per_second})]
    ways = loss_functions(model, textbook, dtype)
    compiled = any(way.startswith("compiled") for way in ways)
    for rows, length in shapes:                                      # before textbook and peers, which need more memory
        tell(f"training steps of {rows}x{length}" + " (compiling first)" * compiled)
        settings = train.TrainConfig(batch_size=rows, max_steps=1 + repeats, dtype=dtype_name(dtype),
                                     compile="on" if compiled else "off")
        measured, step_seconds = measure_steps(model, rows, length, gflops, settings, seconds)
        found += measured
    weights_mb = sum(weight.nbytes for weight in model.parameters()) / 1e6
    found += [make_row("peak memory of training", [peak], "MB", {"weights": weights_mb}) for peak in peak_mb()]
    ways |= peers.losses(model.config, dtype, compiled) if (peers := load_yardstick(PEERS)) else {}
    for rows, length in shapes:
        tell(f"forward + backward of {rows}x{length}")
        found += measure_gradients(model, rows, length, gflops, ways, repeats, seconds)
    tell("other contexts, batches, sizes and threads")
    found += measure_scaling(model.config, *shapes[0], gflops, dtype, repeats, seconds, [row["name"] for row in found])
    tell("optimizers")
    found += measure_optimizers(model, dtype, step_seconds, repeats, seconds)
    tell("decoding")
    found += measure_decoding(model, config.prompt_tokens, config.new_tokens, textbook, gb_per_second, repeats, seconds)
    no_peers = not any("best peer" in row["ratios"] for row in found)
    return {"machine": {"torch": torch.__version__, "threads": torch.get_num_threads(),
                        "cpu": torch.backends.cpu.get_cpu_capability()},
            "settings": dataclasses.asdict(config), "rows": found,
            "notes": [sentence for sentence, missing in [
                (f"no textbook rows: {TEXTBOOK} is not there (an installed package has no tests)", textbook is None),
                ("no rows of others' code: transformers is not installed", no_peers),
                ("no compiled rows: there is no C++ compiler", not compiled)] if missing]}


def table(result: dict) -> str:
    """The rows of bench() as text: name, median, unit, ratios, runs with their range."""
    lines = [", ".join(f"{name} {value}" for name, value in result["machine"].items())]
    for row in result["rows"]:
        ratios = "; ".join(f"{ratio:.2f} x {other}" for other, ratio in row["ratios"].items())
        spread = f"{row['runs']} runs {row['low']:,.1f}-{row['high']:,.1f}" if row["runs"] > 1 else "1 run"
        lines.append(f"{row['name']:43}{row['value']:>10,.1f} {row['unit']:9}{ratios:72} {spread}")
    return "\n".join(lines + result["notes"])


@command
def main(argv: list[str] | None = None) -> None:
    config = read_settings(BenchConfig, "python -m tinyllm.bench", argv)
    result = bench(config)
    print(json.dumps(result) if config.json else table(result))


if __name__ == "__main__":
    sys.exit(main())

"""Settings: one typed dataclass per command; its fields become the flags.

Precedence: default < preset < recipe < `--config FILE.json` < flag. Nothing is accepted silently: an unknown key, a
wrong type or a value out of range is one sentence on stderr and exit code 2. Explained by tests/test_config.py.
"""

import argparse
import contextlib
import dataclasses
import difflib
import functools
import json
import math
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

# A preset only fills in fields that the command has, so `--preset nano` means the same model everywhere.
PRESETS = {
    "base": {"dim": 512, "n_layers": 8, "n_heads": 8, "n_kv_heads": 8, "ffn_dim": 2048, "context": 512,
             "vocab_size": 16000, "qk_norm": True},
    "nano": {"dim": 256, "n_layers": 4, "n_heads": 4, "n_kv_heads": 4, "ffn_dim": 704, "context": 256,
             "vocab_size": 4096, "qk_norm": True, "batch_size": 8, "effective_batch_size": 8, "lr": 4e-3,
             "muon_lr": 0.006},
}

# A preset says what is trained, a recipe how; both fill in fields. "fast" is what the defaults say: Muon, few tokens a
# step, heads that can copy from the start. "classic" is what most code for large models does.
RECIPES = {
    "fast": {},
    "classic": {"optimizer": "adamw", "lr": 3e-4, "effective_batch_size": 64, "warmup_steps": 20, "schedule": "cosine",
                "weight_decay": 0.1, "clip": 1.0, "start_context": 0, "induction": False, "qk_norm": False},
}


LARGEST = 10 ** 12                                                   # of any number that a user may give


def opt(default: Any, help: str, *, choices: tuple = (), low: float = -LARGEST, high: float = LARGEST,
        positional: bool = False) -> Any:
    """A dataclass field that knows its help text, its allowed values and whether it is a flag or a bare word."""
    metadata = {"help": help, "choices": choices, "low": low, "high": high, "positional": positional}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass
class Settings:
    """Base of every config: checks each field once, when it is made, from Python, JSON and flags alike."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, _checked(field, getattr(self, field.name)))


def flag_name(field: dataclasses.Field) -> str:
    """The name a user types: `--max-steps` for the field `max_steps`."""
    return field.name if field.metadata.get("positional") else "--" + field.name.replace("_", "-")


def _checked(field: dataclasses.Field, value: Any) -> Any:
    """`value` with the type of `field`, or ValueError saying what was expected."""
    name, meta = flag_name(field), field.metadata
    is_list = get_origin(field.type) is list
    kind = get_args(field.type)[0] if is_list else field.type
    listed = isinstance(value, (list, tuple))
    for item in value if is_list and listed else [value]:
        fits = isinstance(item, (int, float) if kind is float else kind)
        if (is_list and not listed) or not fits or (isinstance(item, bool) and kind is not bool):
            wanted = f"a list of {kind.__name__}" if is_list else kind.__name__
            raise ValueError(f"{name} must be {wanted}, not {value!r}")
        if item == "" and not meta.get("choices") and (is_list or (isinstance(field.default, str) and field.default)):
            raise ValueError(f"{name} is empty; give a value or leave it out")
        if kind in (int, float):
            if isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"{name} must be a finite number, not {item}")
            low, high = meta.get("low", -LARGEST), meta.get("high", LARGEST)
            if not low <= item <= high:
                form = "," if kind is int else "g"
                limit = f"at least {low:{form}}" if item < low else f"at most {high:{form}}"
                raise ValueError(f"{name} must be {limit}, not {item}")
        if meta.get("choices") and item not in meta["choices"]:
            raise ValueError(f"{name} must be one of {', '.join(filter(None, meta['choices']))}, not {item!r}")
    return float(value) if kind is float and not is_list else value


def part(cls: type, config: Any) -> Any:
    """The fields of `cls` taken out of a larger config: part(ModelConfig, pretrain_config) -> ModelConfig."""
    return cls(**{field.name: getattr(config, field.name) for field in dataclasses.fields(cls)})


def from_dict(cls: type, values: dict, where: str, flags: Collection[str] = ()) -> Any:
    """A `cls` from plain values; an error names the file `where` they stand: an unknown key with the nearest known
    one, or a bad value, unless it came by one of the `flags`."""
    known = [field.name for field in dataclasses.fields(cls)]
    for key in values:
        if key not in known:
            raise ValueError(f"{where}: unknown setting {key!r}{_nearest(key, known)}")
    try:
        return cls(**values)
    except ValueError as error:
        flag, _, fault = str(error).partition(" ")
        name = flag.removeprefix("--").replace("-", "_")
        if flag.startswith("--") and name in values and name not in flags:
            raise ValueError(f"{where}: {name} {fault}") from None
        raise


def read_json(path: str | Path) -> dict:
    """The JSON object stored in `path`; ValueError with file and position when it is anything else."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (ValueError, RecursionError) as error:                    # a number of thousands of digits, endless brackets
        raise ValueError(f"{path}: not JSON that can be read ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected one JSON object {{...}}, found a {type(values).__name__}")
    return values


def write_atomically(path: Path, content: bytes) -> None:
    """After a crash `path` is absent, old or complete, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def refuse_checkpoint(out: str | Path) -> None:
    """ValueError if `out` holds the weights of a model, to which what is written beside them would not belong."""
    if (Path(out) / "model.safetensors").is_file():
        raise ValueError(f"{out} holds the checkpoint of a model; choose another --out")


def refuse_folder(out: str) -> None:
    """ValueError if the file to be written is a folder, before any work is done for it."""
    if Path(out).is_dir() or out.endswith(("/", os.sep)):
        raise ValueError(f"--out {out} is a folder; give the name of a file")


class _Parser(argparse.ArgumentParser):
    """argparse with its complaints cut down to one sentence."""

    def error(self, message: str) -> None:
        if message.startswith("unrecognized arguments: "):
            unknown = (message.removeprefix("unrecognized arguments: ").split() or ['""'])[0]
            known = [flag for action in self._actions for flag in action.option_strings]
            message = f"unknown argument {unknown}{_nearest(unknown, known)}"
            if any(not action.option_strings for action in self._actions):
                message += "; put -- before a text that begins with -" if unknown.startswith("-") else \
                    "; put a text with spaces in quotes"
        self.exit(2, f"{self.prog}: {message} (--help lists what it takes)\n")


def _nearest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _add_flags(parser: argparse.ArgumentParser, cls: type) -> None:
    for field in dataclasses.fields(cls):
        meta, default = field.metadata, field.default
        if field.default_factory is not dataclasses.MISSING:
            default = " ".join(map(str, field.default_factory()))
        shown = "" if default in ("", None, dataclasses.MISSING) else f" (default: {default})"
        extra: dict[str, Any] = {"help": meta["help"].replace("%", "%%") + shown, "default": argparse.SUPPRESS}
        if field.type is bool:
            extra["action"] = argparse.BooleanOptionalAction
        else:
            is_list = get_origin(field.type) is list
            kind = get_args(field.type)[0] if is_list else field.type
            extra |= {"type": kind, "metavar": _metavar(meta, kind)}
            if is_list:                                              # `--input a --input b` is both; no file is none
                extra |= {"action": "extend", "nargs": "*" if kind is int else "+"}
            elif meta["positional"]:
                extra["nargs"] = "?"
        parser.add_argument(flag_name(field), **extra)
    parser.add_argument("--config", metavar="FILE.json", default=argparse.SUPPRESS,
                        help="read settings from a JSON object; flags given here win over it")


def _metavar(meta: Any, kind: type) -> str:
    return "{" + ",".join(filter(None, meta["choices"])) + "}" if meta["choices"] else \
        {int: "N", float: "X", str: "TEXT"}[kind]


def read_settings(cls: type, prog: str, argv: list[str] | None = None) -> Any:
    """A `cls` from the command line: default < preset < recipe < --config file < flag.

    The docstring of `cls` is what --help teaches. Bad flags leave with exit code 2, bad values raise ValueError.
    """
    return _read(cls, _parser(cls, prog), sys.argv[1:] if argv is None else argv)


def read_command(commands: dict[str, type], prog: str, argv: list[str] | None = None) -> tuple[str, Any]:
    """(name, settings) of a command with subcommands, such as `tokenizer train --input ...`."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv and argv[0] in commands:
        return argv[0], _read(commands[argv[0]], _parser(commands[argv[0]], f"{prog} {argv[0]}"), argv[1:])
    lines = [f"  {name:10} {cls.__doc__.splitlines()[0]}" for name, cls in commands.items()]
    parser = _Parser(prog=prog, description="\n".join(lines), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=list(commands), metavar="|".join(commands))
    parser.parse_known_args(argv)                                    # leaves if the subcommand is missing or unknown
    parser.error(f"the subcommand comes first: one of {', '.join(commands)}")


def _parser(cls: type, prog: str) -> argparse.ArgumentParser:
    parser = _Parser(prog=prog, description=_dedent(cls.__doc__), allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)
    _add_flags(parser, cls)
    return parser


def _dedent(doc: str) -> str:
    first, _, rest = doc.partition("\n")
    return first + "\n" + "\n".join(line.removeprefix("    ") for line in rest.splitlines())


def _read(cls: type, parser: argparse.ArgumentParser, argv: list[str]) -> Any:
    flags = vars(parser.parse_args(argv))
    path = flags.pop("config", None)
    stored = read_json(path) if path else {}
    names = [field.name for field in dataclasses.fields(cls)]
    values = {}
    for name, sets in (("preset", PRESETS), ("recipe", RECIPES)):    # the later one wins
        if name in names:
            chosen = flags.get(name, stored.get(name, cls.__dataclass_fields__[name].default))
            values |= {key: value for key, value in sets.get(str(chosen), {}).items() if key in names}
    return from_dict(cls, values | stored | flags, path or "command line", flags)


def _sentence(error: Exception) -> str:
    """What the system says about a file or a full disk, in words; a ValueError already is a sentence."""
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; check the path, the permissions and the free space"
    if isinstance(error, UnicodeDecodeError):                        # files name themselves
        return f"standard input is not UTF-8 text ({error.reason}, byte {error.start} of what was read); convert it"
    return str(error)


def no_memory(error: RuntimeError) -> bool:
    """Whether this is how torch says that there is too little memory, of the machine or of a GPU."""
    return "allocate memory" in str(error) or "out of memory" in str(error)


@contextlib.contextmanager
def hold(folder: str | Path, who: str) -> Iterator[None]:
    """Holds a folder for one writer; ValueError if another has it. The system frees it even after kill -9."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+b") as file:
        try:
            if os.name == "nt":
                import msvcrt
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                import fcntl
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):                   # what Unix and what Windows says
            raise ValueError(f"{folder}: another {who} is writing here; wait for it or choose another --out") from None
        yield


def start_worker() -> None:
    """A worker process leaves Ctrl-C to the main process, and ends when that dies, however it dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def command(main: Any) -> Any:
    """Decorates a command's `main(argv=None)`: a user's mistake leaves one line on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        for stream in (sys.stdin, sys.stdout, sys.stderr):           # Chinese is Chinese under any locale
            if hasattr(stream, "reconfigure"):
                as_it_is = {"errors": "strict", "newline": ""} if stream is sys.stdin else {"errors": "replace"}
                stream.reconfigure(encoding="utf-8", **as_it_is)
        try:
            status = main(argv) or 0
            sys.stdout.flush()                                       # a closed pipe is met here, not when Python ends
            return status
        except BrokenPipeError:                                      # `... | head`: not an error
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (ValueError, OSError) as error:
            print(f"{Path(sys.argv[0]).stem}: {_sentence(error)}", file=sys.stderr)
            raise SystemExit(2) from None
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not no_memory(error):
                raise
            print(f"{Path(sys.argv[0]).stem}: not enough memory; choose a smaller model, batch or input",
                  file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    return wrapped

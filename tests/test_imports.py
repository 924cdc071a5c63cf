"""Reading order: each module uses only what the reader has already met."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = ["config", "corpus", "clean", "vocabulary", "tokenizer", "chat", "lexicon", "grammar", "simulation",
         "world", "arithmetic", "wordings", "unheard", "telling", "accounts", "groups", "typed", "sums",
         "reading", "exercises", "overlap", "problems", "schoolbook", "choices", "options", "drills", "parts",
         "made_by", "prepare", "data", "loss", "model", "induction", "optim", "checkpoint", "parallel",
         "train", "plot", "stage", "pretrain", "practice", "sft", "cot_sft", "grow", "calculator", "decode",
         "vote", "weights", "generate", "report", "evaluate", "shortcuts", "fork", "head", "train_head",
         "labels", "fork_speed", "scorer", "anatomy", "peek", "timing", "scaling", "bench", "plan",
         "quickstart"]
CORE = {"torch", "sentencepiece", "numpy", "tqdm", "safetensors"}
OPTIONAL = {"matplotlib"}


def imports(path):
    """(top-level package, tinyllm module or None) of every import statement in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for module, name in names:
            root, _, rest = module.partition(".")
            yield root, (rest or name) if root == "tinyllm" else None


def test_every_module_has_its_place():
    """A new module must say where in the book it belongs."""
    assert sorted(ORDER) == sorted(path.stem for path in ROOT.glob("tinyllm/*.py") if path.stem != "__init__")


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_earlier_ones(module):
    """So "read in this order and nothing is undefined" is a checked fact."""
    earlier = ORDER[:ORDER.index(module)] + ["__version__", None]
    used = {name for root, name in imports(ROOT / "tinyllm" / f"{module}.py") if root == "tinyllm"}
    assert used <= set(earlier), f"{module} imports {used - set(earlier)}, which the reader has not met yet"


def test_the_core_needs_five_packages():
    """torch, sentencepiece, numpy, tqdm, safetensors, and what Python brings."""
    import sys
    used = {root for path in ROOT.glob("tinyllm/*.py") for root, _ in imports(path)}
    assert used <= CORE | OPTIONAL | {"tinyllm"} | set(sys.stdlib_module_names)
    assert {re.split("[>=<]", line.strip())[0] for line in re.search(
        r"install_requires =\n((?:    .*\n)+)", (ROOT / "setup.cfg").read_text()).group(1).splitlines()} == CORE


def test_nothing_read_from_disk_can_run_code():
    """No pickle, no eval: a checkpoint from a stranger is only numbers and settings."""
    for path in ROOT.glob("tinyllm/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert name not in ("eval", "exec", "torch.load", "np.load") or "allow_pickle=False" in ast.unparse(node)
        assert not {"pickle", "dill", "joblib"} & {root for root, _ in imports(path)}


def test_a_thread_that_waits_may_sleep_and_a_user_may_say_otherwise():
    """torch's threads read the setting once, when torch is loaded; so it must stand before that."""
    told = "import sys, os, tinyllm; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    plain = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    for given, expected in ((plain, "3000"), (plain | {"GOMP_SPINCOUNT": "7"}, "7")):
        ran = subprocess.run([sys.executable, "-c", told], env=given, cwd=ROOT, capture_output=True, text=True,
                             check=False)
        assert ran.stdout == f"{expected} False\n", ran.stderr

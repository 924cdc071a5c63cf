"""Pictures of numbers: the loss curve of a run, drawn from its metrics.jsonl. Needs matplotlib (`tinyllm[plot]`)."""

import json
import sys
from pathlib import Path


def read_metrics(run: str | Path) -> list[dict]:
    """The rows of `run`/metrics.jsonl in order."""
    path = Path(run) / "metrics.jsonl"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; name the folder of a training run")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draw_losses(run: str | Path) -> Path | None:
    """Writes `run`/loss.png, training and validation loss against tokens read; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no loss curve: `pip install -e '.[plot]'` draws one", file=sys.stderr)
        return None
    rows = read_metrics(run)
    axes = (figure := Figure(figsize=(7, 4), dpi=120)).add_subplot()
    for key, label, style in (("loss", "training (one step)", {"alpha": 0.4, "linewidth": 0.8}),
                              ("val_loss", "validation", {"marker": "o", "markersize": 3})):
        chosen = [(row["tokens"] / 1e6, row[key]) for row in rows if key in row]
        axes.plot(*zip(*chosen), label=label, **style) if chosen else None
    axes.set(xlabel="tokens read (millions)", ylabel="loss (nats per token)", title=Path(run).name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(Path(run) / "loss.png")
    return Path(run) / "loss.png"

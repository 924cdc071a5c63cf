"""Pictures of numbers: the loss curve of a run, drawn from its metrics.jsonl. Needs matplotlib (`tinyllm[plot]`)."""

import contextlib
import json
import sys
from pathlib import Path


def read_metrics(run: str | Path) -> list[dict]:
    """The rows of `run`/metrics.jsonl in order, as many as can be read: the numbers of a run are no reason to lose it.
    """
    path, rows = Path(run) / "metrics.jsonl", []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError):                        # a line cut off by a crash
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def draw_losses(run: str | Path) -> Path | None:
    """Writes `run`/loss.png, training and validation loss against tokens read; None without matplotlib or numbers."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no loss curve: `pip install -e '.[plot]'` draws one", file=sys.stderr)
        return None
    if not (rows := read_metrics(run)):
        return None
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

"""tinyllm: a complete language model to learn from. Read the modules in the order of the table in README.md."""

import os

__version__ = "0.1.0"

# A thread that waits for the other cores goes to sleep after a moment instead of keeping its own core busy: beside
# another program, training is then half again as fast. Read once, when torch is loaded; other libraries ignore it.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

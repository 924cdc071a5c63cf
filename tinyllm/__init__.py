"""tinyllm: a complete language model to learn from. Read the modules in the order of the table in README.md."""

__version__ = "0.1.0"

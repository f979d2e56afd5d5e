"""The command line. It uses what `dutiful` exports, and nothing else."""

from dutiful.cli.app import main

__all__ = ["main"]

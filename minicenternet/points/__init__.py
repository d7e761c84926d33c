"""The paper and nothing else: what the network should answer, how wrong it is, and how its answer is read."""

from . import decode, losses, targets

__all__ = ["decode", "losses", "targets"]

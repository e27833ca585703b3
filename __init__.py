"""Choose what to train on, with every FLOP of the choosing counted."""

__version__ = "0.1.0"

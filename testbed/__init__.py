"""A small vSphere estate on one Linux machine, with a real vMotion data path."""

__version__ = "0.1.0"

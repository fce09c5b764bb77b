"""Topology in, ordered steps out: pure data, no root."""

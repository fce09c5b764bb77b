"""Latency of a wire: netem, or the delay line on NFQUEUE."""

"""Measurements on one clock (CLOCK_MONOTONIC): iperf3, ping, and the theory beside them."""

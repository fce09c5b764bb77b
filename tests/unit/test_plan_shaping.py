"""HTB is told what makes a link carry Ethernet's goodput."""

import pytest

from testbed.measure.theory import tcp_goodput_bps
from testbed.plan.shaping import burst_bytes, htb_rate_bytes_per_s


@pytest.mark.parametrize("mtu", [1500, 9000])
@pytest.mark.parametrize("rate_bps", [10**8, 10**9, 7 * 10**9, 10**10, 10**11])
def test_full_frames_at_the_told_rate_take_the_links_time(rate_bps: int, mtu: int) -> None:
    frames_per_s = htb_rate_bytes_per_s(rate_bps, mtu) / (mtu + 14)
    assert frames_per_s * (mtu + 38) * 8 == pytest.approx(rate_bps, rel=1e-6)
    assert frames_per_s * (mtu - 52) * 8 == pytest.approx(tcp_goodput_bps(rate_bps, mtu), rel=1e-6)


@pytest.mark.parametrize(
    ("rate_bps", "kib"), [(10**7, 16), (10**9, 61), (10**10, 610), (4 * 10**10, 976)]
)
def test_burst_grows_with_the_rate_within_the_measured_bounds(rate_bps: int, kib: int) -> None:
    assert burst_bytes(rate_bps) // 1024 == kib

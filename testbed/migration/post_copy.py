"""Post-copy: the guest runs at the destination, and its last pages follow (Quick Resume).

Both ends keep to this order:

    source                                        destination
    ResumeFile.create, before the stun            ResumeFile.open, Fetching, before the stun
    suspend the guest
    tell which pages are missing                  Fetching.prepare(missing)
    RESUME                                        resume the guest
                                                  Fetching.tell_running(body), RESUMED
    Serving(...).run(): the report                Fetching.run(streams)
    power the guest off

If the network fails before RESUMED came, `ResumeFile.said_running` has its body. From RESUMED
on the guest is the destination's: if either end is lost before `run` returns, it has failed
(`PostCopyFailed`).
"""

from __future__ import annotations

from testbed.guest.missing import lacks_missing_pages
from testbed.migration.post_copy_destination import Fetching
from testbed.migration.post_copy_source import Serving
from testbed.migration.post_copy_threads import PostCopyFailed
from testbed.migration.resume_file import ResumeFile

__all__ = ["Fetching", "PostCopyFailed", "ResumeFile", "Serving", "lacks_missing_pages"]

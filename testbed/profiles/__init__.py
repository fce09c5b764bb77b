"""Profiles of vMotion's generations as data, each value with how it is known."""

from testbed.profiles.inheriting import DEFAULT, is_path, load, names, own
from testbed.profiles.profile import Origin, Profile
from testbed.profiles.reading import Entry

__all__ = ["DEFAULT", "Entry", "Origin", "Profile", "is_path", "load", "names", "own"]

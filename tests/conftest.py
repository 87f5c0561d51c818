"""For every test: property tests that try the same examples each time.

A run is repeatable, here and in CI; HYPOTHESIS_PROFILE=explore tries new ones.
"""

import os

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore", derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

"""For every test: property tests that try the same examples each time, signals as they are
at a prompt.

A run is repeatable, here and in CI; HYPOTHESIS_PROFILE=explore tries new ones. What runs in
the background of a script begins with SIGINT and SIGQUIT ignored, under nohup with SIGHUP,
and so would all that is tested: substrate hands on what was ignored when it was called.
"""

import os
import signal

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore", derandomize=False, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))

for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        normal = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, normal)

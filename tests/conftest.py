"""Settings for every test: properties have no deadline, and programs that tests start hear Ctrl-C."""

import signal

from hypothesis import settings

settings.register_profile("bench", deadline=None)
settings.load_profile("bench")

# A shell starts a background job with SIGINT ignored, and programs inherit that: a test of Ctrl-C could not interrupt
# what it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

"""What holds for all tests: how long a property takes is no property."""

from hypothesis import settings

settings.register_profile("bench", deadline=None)
settings.load_profile("bench")

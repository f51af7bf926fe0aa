"""What holds for every test in this folder: Hypothesis has no deadline, for the first call of an operation is slower than the next."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("pagedattn", deadline=None, print_blob=True)
settings.load_profile("pagedattn")

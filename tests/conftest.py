"""What all tests share: how many examples property tests try.

``ci`` is the default: few examples, the same ones every time. ``--hypothesis-profile=long`` looks for new ones.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("ci", max_examples=60, derandomize=True, deadline=None, database=None)
settings.register_profile(
    "long", max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.load_profile("ci")

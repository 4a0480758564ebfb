"""Permission to send from Redis or Valkey, for hosts that share the limits of one PX subscription.

Nothing is imported here: the daemon loads ``join`` if ``fleet.url`` is set.
"""

"""The control room: what people may ask of a running daemon, and of an outbox without one.

``server`` documents the API, ``desk`` does what it asks, ``client`` is how the command line speaks it. Nothing is
imported here, so that a verb that only talks to the daemon loads nothing of the rest.
"""

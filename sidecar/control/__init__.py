"""The control API: how operators inspect and control a running daemon, or an outbox file without one.

``server`` defines the routes; ``state``, ``outbox_admin`` and ``delivery_control`` implement them; ``client`` is the
command line's side. Nothing is imported here, so that a verb that only talks to the daemon does not load the rest.
"""

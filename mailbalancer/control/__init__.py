"""The supervisor: configuration, checks, drains, listeners, control socket."""

"""Balancing decisions, pure: who gets a session, given members, counts and `now`."""

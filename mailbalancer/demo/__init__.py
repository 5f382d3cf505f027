"""Embedded mail servers for `mailbalancer demo`."""

"""TLS: what is shown to clients, how servers are verified, and what must be said about certificates in time."""

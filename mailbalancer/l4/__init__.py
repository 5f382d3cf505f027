"""Layer 4 rules and paths, pure."""

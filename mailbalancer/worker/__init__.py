"""The data plane: one process per core."""

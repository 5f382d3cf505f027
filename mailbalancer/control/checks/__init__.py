"""Active health checks, one file per type."""

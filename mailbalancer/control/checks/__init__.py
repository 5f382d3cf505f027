"""Active health checks, one file per type; `run.run_check` runs one, `scheduler.Scheduler` keeps them running."""

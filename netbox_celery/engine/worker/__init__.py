"""A worker beside the tasks that it runs: set-up (`signals`), heartbeat (`presence`), `sweep`, what it refuses."""

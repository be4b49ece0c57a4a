"""Read access: what pages and REST show of runs and schedules, limited to what the reader may view."""

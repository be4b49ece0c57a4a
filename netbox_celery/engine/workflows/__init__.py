"""Canvas: the signatures that a message brings along (`canvas`), and the runs that have a root in common (`family`)."""

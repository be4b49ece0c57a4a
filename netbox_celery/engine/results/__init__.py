"""The result backend: Celery reports here how a task ended, and this writes it into the row.

Its layers, from the outside in: `TrackingMixin` and `StoringMixin` (`backend`), `RowResultsMixin` (`rowresults`),
`ChordsMixin` (`chords`), `UpstreamMixin` (`upstream`), and the backend that is configured.
"""

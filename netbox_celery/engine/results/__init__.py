"""The result backend: Celery reports here how a task ended, and this writes it into the row.

`layers` has the order of the layers over the backend that is configured: `TrackingMixin` and `StoringMixin`
(`backend`), `RowResultsMixin` (`rowresults`), `ChordsMixin` (`chords`) and `UpstreamMixin` (`upstream`).
"""

"""The result backend: Celery reports here how a task ended, and the backend's layers write that into the row.

`layers` has the order of the layers over the configured backend: `TrackingMixin` and `StoringMixin` (`backend`),
`RowResultsMixin` (`rowresults`), `ChordsMixin` (`chords`) and `UpstreamMixin` (`upstream`, with `closing`).
"""

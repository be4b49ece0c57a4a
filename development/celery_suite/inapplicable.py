"""What of Celery's tests cannot apply: beginnings of their names, each with the reason."""

__all__ = (
    'INAPPLICABLE',
)

INAPPLICABLE: dict[str, str] = {
}

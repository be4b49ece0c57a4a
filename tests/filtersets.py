"""NetBox's test bases look a model's filterset up by the package that the test is in."""
from netbox_celery.filtersets import *  # noqa: F403

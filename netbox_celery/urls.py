"""The URLs of the user interface. Views register themselves, as everywhere in NetBox."""
from django.urls import include, path

from utilities.urls import get_model_urls

from . import views  # noqa: F401 - registers the views

urlpatterns = tuple(
    path(prefix + suffix, include(get_model_urls('netbox_celery', model, detail=bool(suffix))))
    for prefix, model in (
        ('results/', 'celeryresult'),
        ('tasks/', 'celerytask'),
        ('schedules/', 'celeryschedule'),
        ('workers/', 'celeryworker'),
    )
    for suffix in ('', '<int:pk>/')
)

from netbox.api.routers import NetBoxRouter

from . import schedules, views

app_name = 'netbox_celery-api'

router = NetBoxRouter()
router.APIRootView = views.CeleryRootView

router.register('log-entries', views.CeleryLogEntryViewSet)
router.register('results', views.CeleryResultViewSet)
router.register('schedules', schedules.CeleryScheduleViewSet)
router.register('tasks', views.CeleryTaskViewSet)
router.register('workers', views.CeleryWorkerViewSet)

urlpatterns = router.urls

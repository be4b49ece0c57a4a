"""Celery's tests that do not apply, or that test behavior that the plugin changes on purpose: files, or single tests as
pytest names them, each with the reason."""

__all__ = (
    'INAPPLICABLE',
)

OWN_APP = 'creates its own apps: the plugin is not part of them'

INAPPLICABLE: dict[str, str] = {
    't/integration/test_backend.py': 'wants Azure',
    't/integration/test_backend_leak_in_fixture_teardown.py': OWN_APP,
    't/integration/test_cache_backend.py': 'requires memcached as the result backend',
    't/integration/test_connection_recovery.py': 'requires RabbitMQ as the broker',
    't/integration/test_database_backend.py':
        'changes the result backend of its app, which NetBox\'s settings fix',
    't/integration/test_events_state_memory_leak.py': OWN_APP,
    't/integration/test_logfile_format.py': OWN_APP,
    't/integration/test_mem_leak_in_exception_handling.py': OWN_APP,
    't/integration/test_loader.py::test_loader::test_autodiscovery__when_packages_do_not_exist':
        'expects a package that cannot be imported to stop the process: here the other packages are loaded',
    't/integration/test_request_backend_down.py': OWN_APP,
    't/integration/test_security.py': 'signs messages (`auth`): only JSON is accepted from the broker',
    't/integration/test_serialization.py': 'requires pickle and YAML: only JSON is accepted from the broker',
    't/integration/test_tasks.py::test_tasks::test_revoked_by_headers_complex_canvas':
        'sends a frozen signature again while its run is active: here the second call is refused (`TaskConflict`)',
    't/integration/test_upgrade.py': OWN_APP,
    't/integration/test_worker.py::test_concurrency_auto_sizes_prefork_pool': OWN_APP,
    't/integration/test_worker.py::test_django_fixup_direct_worker': OWN_APP,
    't/integration/test_worker.py::test_django_fixup_installs_django_task_for_celery_subclass': OWN_APP,
    't/integration/test_worker.py::test_django_fixup_signals_only_handled_by_own_app': OWN_APP,
    't/integration/test_worker.py::test_run_worker': OWN_APP,
}

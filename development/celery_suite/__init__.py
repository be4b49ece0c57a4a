"""
Celery's own integration tests, unmodified, on the plugin's app and on plain Celery: `make celery-suite`.

Plain Celery is the oracle: a test that passes there has to pass with the plugin. The tests come from the source
distribution of the installed Celery version. They are kept in `development/.state/celery-suite`.

    source.py         downloads the tests, and the packages that they need beside Celery
    plugin.py         pytest's plugin for both: lets the tests use the plugin's app, and reports
    inapplicable.py   tests that do not apply, with the reasons
"""

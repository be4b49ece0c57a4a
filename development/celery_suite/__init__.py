"""
Celery's own integration tests, unmodified, on the plugin's app and on plain Celery: `make celery-suite`.

Plain Celery is the oracle: a test that passes there has to pass with the plugin. The tests come from Celery's source
distribution of the version that is installed. They stay in `development/.state/celery-suite`.

    source.py         gets the tests, and what they need beside Celery
    plugin.py         pytest's plugin for both: lets the tests use the plugin's app, and reports
    inapplicable.py   what cannot apply, each with the reason
"""

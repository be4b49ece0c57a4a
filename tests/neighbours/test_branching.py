"""NetBox Branching."""


def test_installed():
    from django.apps import apps

    assert apps.is_installed('netbox_branching')

"""
Example data for an empty NetBox: a user to log in as, sites and devices, a few runs.

Runs inside NetBox, in a process of its own with `NETBOX_ROOT` set: `python -m development.stack.seed prepare` before
NetBox's processes start, `... runs` after. Repeating it does not change existing data.
"""

import json
import sys
import time

import django

__all__ = ()

SITES = (
    # name, slug, time zone, status
    ('Amsterdam', 'ams', 'Europe/Amsterdam', 'active'),
    ('Frankfurt', 'fra', 'Europe/Berlin', 'active'),
    ('Lisbon', 'lis', 'Europe/Lisbon', 'staging'),
)

TYPES = {
    # slug: (manufacturer, model, height, platform)
    'mx204': ('Juniper', 'MX204', 1, 'Junos'),
    'qfx5120': ('Juniper', 'QFX5120-48Y', 1, 'Junos'),
    '7050sx3': ('Arista', 'DCS-7050SX3-48YC8', 1, 'EOS'),
    'c9300': ('Cisco', 'C9300-48T', 1, 'IOS-XE'),
}

ROLES = {
    # slug: (name, colour)
    'router': ('Router', '2196f3'),
    'leaf': ('Leaf Switch', '4caf50'),
    'access': ('Access Switch', 'ff9800'),
}

DEVICES = (
    # name, role, type, status, serial, asset tag
    ('ams-rtr-01', 'router', 'mx204', 'active', 'JN1204A0AFB', 'NL-0001'),
    ('ams-rtr-02', 'router', 'mx204', 'active', 'JN1204A0AFC', 'NL-0002'),
    ('ams-leaf-01', 'leaf', 'qfx5120', 'active', 'XH3120410012', 'NL-0003'),
    ('ams-leaf-02', 'leaf', 'qfx5120', 'failed', 'XH3120410013', 'NL-0004'),
    ('ams-acc-01', 'access', 'c9300', 'active', '', 'NL-0005'),
    ('fra-rtr-01', 'router', 'mx204', 'active', 'JN1204A0B11', 'DE-0001'),
    ('fra-leaf-01', 'leaf', '7050sx3', 'active', 'JPE20341177', 'DE-0002'),
    ('fra-leaf-02', 'leaf', '7050sx3', 'offline', 'JPE20341178', None),
    ('fra-acc-01', 'access', 'c9300', 'active', 'FCW2233L0GH', 'DE-0003'),
    ('lis-rtr-01', 'router', 'mx204', 'planned', '', None),
    ('lis-leaf-01', 'leaf', '7050sx3', 'staged', 'JPE20350021', 'PT-0001'),
    ('lis-acc-01', 'access', 'c9300', 'inventory', 'FCW2240L1AB', None),
)

# Beside hello_world, which every start of the demo ends with
RUNS = (
    ('netbox_example_plugin:audit_devices', {'delay': 0.1}),
    ('netbox_example_plugin:backup_configs', {'delay': 0.1}),
    ('netbox_example_plugin:flaky', {'succeed_on': 2}),
    ('netbox_example_plugin:hello_world', {'name': 'NetBox'}),
)

SCHEDULES = (
    # name, task, crontab, arguments, description
    ('Clear sessions', 'command.django.contrib.sessions.clearsessions', '30 2 * * *', {}, 'As Django advises'),
    ('Audit Amsterdam', 'netbox_example_plugin:audit_devices', '*/15 * * * *', {'site': 'ams', 'delay': 0.1}, ''),
)


#
# Before the processes start
#

def prepare(username, password, token_key, token, migrate, collectstatic):
    """
    Bring the database and the static files up to date, and fill the database.
    """
    from django.core.management import call_command

    if migrate:
        call_command('migrate', interactive=False, verbosity=0)
    if collectstatic:
        call_command('collectstatic', interactive=False, clear=True, verbosity=0)
    add_devices()
    user = add_superuser(username, password)
    add_token(user, token_key, token)
    add_schedules(user)


def add_superuser(username, password):
    from users.models import User

    user = User.objects.filter(username=username).first()
    if user is None:
        user = User.objects.create_superuser(username, f'{username}@example.com', password)
    elif not user.check_password(password):
        user.set_password(password)
        user.save()
    return user


def add_token(user, key, token):
    from users.models import Token

    if not Token.objects.filter(key=key, user=user).exists():
        Token.objects.filter(key=key).delete()
        Token(user=user, key=key, token=token, description='Demo').save()


def add_schedules(user):
    from netbox_celery.engine.schedules.sync import sync_catalogue
    from netbox_celery.models import CelerySchedule, CeleryTask

    sync_catalogue()
    for name, task, crontab, kwargs, description in SCHEDULES:
        if not CelerySchedule.objects.filter(name=name).exists():
            schedule = CelerySchedule(
                name=name, task=CeleryTask.objects.get(name=task), crontab=crontab, kwargs=kwargs, owner=user,
                description=description
            )
            schedule.full_clean()
            schedule.save()


def add_devices():
    from django.db import transaction

    from dcim.models import Device, DeviceRole, DeviceType, Manufacturer, Platform, Site

    def get_or_save(model, lookup, /, **values):
        # Not get_or_create(): validate as for users' input
        instance = model.objects.filter(**lookup).first()
        if instance is None:
            instance = model(**lookup, **values)
            instance.full_clean()
            instance.save()
        return instance

    with transaction.atomic():
        sites = {
            slug: get_or_save(Site, {'slug': slug}, name=name, time_zone=time_zone, status=status)
            for name, slug, time_zone, status in SITES
        }
        roles = {
            slug: get_or_save(DeviceRole, {'slug': slug}, name=name, color=color)
            for slug, (name, color) in ROLES.items()
        }
        types, platforms = {}, {}
        for slug, (maker, model, height, platform) in TYPES.items():
            manufacturer = get_or_save(Manufacturer, {'slug': maker.lower()}, name=maker)
            types[slug] = get_or_save(
                DeviceType, {'slug': slug}, manufacturer=manufacturer, model=model, u_height=height
            )
            platforms[slug] = get_or_save(
                Platform, {'slug': platform.lower()}, name=platform, manufacturer=manufacturer
            )
        for name, role, device_type, status, serial, asset_tag in DEVICES:
            get_or_save(
                Device, {'name': name, 'site': sites[name[:3]]}, role=roles[role], device_type=types[device_type],
                # The platform of the planned device is not decided yet
                platform=None if status == 'planned' else platforms[device_type],
                status=status, serial=serial, asset_tag=asset_tag,
            )


#
# After the processes have started
#

def runs(username, timeout=60):
    """
    Run a few tasks, if none has run yet, and then hello_world; print its log.
    """
    from netbox_celery.models import CeleryLogEntry, CeleryResult
    from users.models import User

    user = User.objects.get(username=username)
    if not CeleryResult.objects.exists():
        for name, kwargs in RUNS:
            CeleryResult.enqueue(name, kwargs=kwargs, user=user)

    task_id = str(CeleryResult.enqueue('netbox_example_plugin:hello_world', user=user).task_id)
    deadline = time.monotonic() + timeout
    while True:
        result = CeleryResult.objects.get(task_id=task_id)
        if result.completed or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    print(f'netbox_example_plugin:hello_world is {result.status}. Its log:\n')
    for entry in CeleryLogEntry.objects.filter(result=result).order_by('pk'):
        print(f'  {entry.created.astimezone():%H:%M:%S}  {entry.message}')
    if result.status != 'completed':
        return f'\n{result.traceback or result.error or "No worker has taken it."}'
    return 0


if __name__ == '__main__':
    django.setup()
    sys.exit({'prepare': prepare, 'runs': runs}[sys.argv[1]](**json.load(sys.stdin)))

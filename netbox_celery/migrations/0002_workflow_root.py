from importlib import import_module

from django.db import migrations, models

from ._forerunner import ReplaceForerunner

# What is here is main's alone: NetBox Branching must not look for it in the schemas of its branches
fake_on_branch = True

initial = import_module('netbox_celery.migrations.0001_initial').Migration


class Migration(migrations.Migration):

    dependencies = [
        ('netbox_celery', '0001_initial'),
    ]

    operations = [
        # Django takes a `0001_initial` of the earlier plugin for ours
        ReplaceForerunner(initial.operations),
        migrations.RemoveIndex(
            model_name='celeryresult',
            name='netbox_celery_result_root',
        ),
        migrations.AddIndex(
            model_name='celeryresult',
            index=models.Index(condition=models.Q(('root_id__lt', models.F('task_id')), ('root_id__gt', models.F('task_id')), _connector='OR'), fields=['root_id'], name='netbox_celery_result_root'),
        ),
    ]

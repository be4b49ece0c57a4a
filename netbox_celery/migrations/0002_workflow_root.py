from django.db import migrations, models

# What is here is main's alone: NetBox Branching must not look for it in the schemas of its branches
fake_on_branch = True


class Migration(migrations.Migration):

    dependencies = [
        ('netbox_celery', '0001_initial'),
    ]

    operations = [
        migrations.RemoveIndex(
            model_name='celeryresult',
            name='netbox_celery_result_root',
        ),
        migrations.AddIndex(
            model_name='celeryresult',
            index=models.Index(condition=models.Q(('root_id__lt', models.F('task_id')), ('root_id__gt', models.F('task_id')), _connector='OR'), fields=['root_id'], name='netbox_celery_result_root'),
        ),
    ]

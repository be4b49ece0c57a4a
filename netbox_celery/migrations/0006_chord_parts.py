from django.db import migrations, models

# What is here is main's alone: NetBox Branching must not look for it in the schemas of its branches
fake_on_branch = True


class Migration(migrations.Migration):

    dependencies = [
        ('netbox_celery', '0005_schedule_stopped'),
    ]

    operations = [
        migrations.AddIndex(
            model_name='celeryresult',
            index=models.Index(
                fields=['completed'],
                condition=models.Q(completed__isnull=False, options__has_key='chord'),
                name='netbox_celery_result_part',
            ),
        ),
    ]

from django.db import migrations, models

# What is here is main's alone: NetBox Branching must not look for it in the schemas of its branches
fake_on_branch = True


class Migration(migrations.Migration):

    dependencies = [
        ('netbox_celery', '0004_schedules'),
    ]

    operations = [
        migrations.AddField(
            model_name='celeryschedule',
            name='stopped',
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
    ]

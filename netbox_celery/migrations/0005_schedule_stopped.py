from django.db import migrations, models


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

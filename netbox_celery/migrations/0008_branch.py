from django.db import migrations, models

# What is here is main's alone: NetBox Branching must not look for it in the schemas of its branches
fake_on_branch = True


class Migration(migrations.Migration):

    dependencies = [
        ('netbox_celery', '0007_exact'),
    ]

    operations = [
        migrations.AddField(
            model_name='celeryresult',
            name='branch',
            field=models.CharField(blank=True, db_default='', default='', editable=False, max_length=100),
        ),
        migrations.AddField(
            model_name='celeryschedule',
            name='branch',
            field=models.CharField(blank=True, db_default='', default='', editable=False, max_length=100),
        ),
    ]

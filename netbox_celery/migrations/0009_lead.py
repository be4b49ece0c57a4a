from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('netbox_celery', '0007_exact'),
    ]

    operations = [
        migrations.CreateModel(
            name='Lease',
            fields=[
                ('name', models.CharField(max_length=50, primary_key=True, serialize=False)),
                ('holder', models.UUIDField()),
                ('until', models.DateTimeField()),
            ],
        ),
    ]

from django.db import migrations, models

# What is here is main's alone: NetBox Branching must not look for it in the schemas of its branches
fake_on_branch = True


class Migration(migrations.Migration):

    dependencies = [
        ('netbox_celery', '0006_chord_parts'),
    ]

    operations = [
        migrations.AddField(
            model_name='celeryresult',
            name='exact_call',
            field=models.TextField(
                editable=False,
                help_text='Arguments, keyword arguments and options as JSON, where their own columns hold other '
                          'numbers, or keys in another order.',
                null=True,
            ),
        ),
        migrations.AddField(
            model_name='celeryresult',
            name='exact_result',
            field=models.TextField(
                editable=False,
                help_text='The result as JSON, where its own column holds other numbers, or keys in another order.',
                null=True,
            ),
        ),
    ]

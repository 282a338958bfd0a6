from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("carrot_twisted", "0014_flows"),
    ]

    operations = [
        migrations.AddField(
            model_name="messagelog",
            name="trace",
            field=models.TextField(
                editable=False,
                help_text="OpenTelemetry's context of its publishing: traceparent, and tracestate if there is one; empty: it was not traced.",
                null=True,
            ),
        ),
        migrations.AddField(
            model_name="queuestatistics",
            name="limited",
            field=models.PositiveIntegerField(
                help_text="Waiting tasks that their limits do not let start; empty: nobody has looked.",
                null=True,
            ),
        ),
    ]

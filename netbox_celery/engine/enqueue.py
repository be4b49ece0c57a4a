def send(app, publish, name, args, kwargs, options):
    return publish(name, args, kwargs, **options)

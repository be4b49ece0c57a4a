def tracking(backend):
    return backend

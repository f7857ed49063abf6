"""The Ray Serve application: HTTP in front of registered models.

    request ─▶ Serve's proxy ─▶ http (protocol.py: keys, limits, errors) ─▶ model replicas (model.py: batches) ─▶ answer

``app.py`` ties them together for Serve, ``deploy.py`` brings them to a cluster, ``settings.py`` says what can be set.
"""

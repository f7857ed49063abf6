"""The Ray Serve application: an HTTP endpoint for registered models.

    request ─▶ Serve's proxy ─▶ http (protocol.py: routes, keys, limits, errors) ─▶ replicas (model.py: batches)

``app.py`` builds the Serve application, ``deploy.py`` deploys it, ``settings.py`` has its settings, ``schemas.py`` the
JSON bodies.
"""

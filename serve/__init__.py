"""The Ray Serve applications: an HTTP endpoint for registered models.

    client ─▶ HAProxy ─▶ a model's replica (model_app ─▶ reading, bodies ─▶ pipeline: decode, batch, forward pass)
                  └────▶ the front (front, directory: health, the list of models, metrics, the description)

What runs where:

- ``haproxy`` and ``haproxy_guard`` start HAProxy with a corrected configuration, and a stand-in if it is killed
- ``app`` builds the applications; ``settings`` are their arguments; ``config`` and ``deploy`` read a YAML and deploy it
- ``replica`` loads a version and its decoders; ``model_app`` answers HTTP by hand, because it is in everybody's way;
  ``pipeline`` gathers images of several requests; ``answers`` writes predictions and problems (RFC 9457)
- ``front`` answers what is in nobody's way by FastAPI; ``schemas`` and ``description`` make ``/openapi.json``
- ``keys`` admits requests; ``recording``, ``telemetry`` and ``rotating_file`` write the access log and the metrics
"""

"""The Ray Serve application: HTTP in front of registered models."""

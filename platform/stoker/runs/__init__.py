"""A run's folder in object storage, ``<storage>/runs/<name>/``: no Ray, no models.

folder             the folder itself: recipe, history, result, lease, skipped steps
records            what is stored as JSON: history, result, metrics
checkpoints        read checkpoints: committed whole, or not visible at all
fence              which attempt may change them: the newest
checkpoint_writer  write them in the background and commit them
tensor_file        a safetensors file as a sequence of pieces, without a second copy in memory
"""

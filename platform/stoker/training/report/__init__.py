"""What a finished run leaves for people: ``report.html`` next to ``result.json``.

Rank 0 writes both after the last epoch (:func:`~.result.finish_run`); ``result.json`` comes last and marks the run as
finished. The registry publishes the report with the model version, so it has to stand alone: one HTML file, no
script, nothing loaded from elsewhere, light and dark.

| in the report | from |
|---|---|
| headline numbers, confusion matrix, classes and pairs | ``Result``: the final evaluation of the validation split |
| loss, accuracy, learning rate, images/s by epoch | ``History``: one record per epoch, over all attempts |
| where the time went, and the advice | ``EpochRecord.goodput`` (``training.telemetry.goodput``, ``advice``) |
| pictures of the worst mistakes | ``pictures``: the samples are read again and preprocessed as in evaluation |
| data set, fingerprint, versions, recipe | ``Result`` and the resolved recipe |

``report`` turns these records into the template's values, ``charts`` draws SVG, ``report.html.j2`` is the page.
"""

"""From image bytes to class probabilities, with the very preprocessing that evaluation used."""

from stoker.predict.evaluation import Judged, evaluate_judged, file_judged, run_judged, version_judged
from stoker.predict.parity import check_parity
from stoker.predict.predictor import Predictor

__all__ = [
    "Judged",
    "Predictor",
    "check_parity",
    "evaluate_judged",
    "file_judged",
    "run_judged",
    "version_judged",
]

"""From image bytes to class probabilities, with the very preprocessing that evaluation used."""

from stoker.predict.evaluation import evaluate_reference
from stoker.predict.parity import check_parity
from stoker.predict.predictor import Predictor

__all__ = ["Predictor", "check_parity", "evaluate_reference"]

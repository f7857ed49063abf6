"""From image bytes to class probabilities, with exactly the preprocessing that evaluation uses."""

from stoker.predict.parity import check_parity
from stoker.predict.predictor import Predictor
from stoker.predict.targets import EvaluationTarget, evaluate_target

__all__ = ["EvaluationTarget", "Predictor", "check_parity", "evaluate_target"]

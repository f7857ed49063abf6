"""From image bytes to class probabilities, with exactly the preprocessing that evaluation uses.

Names are imported lazily: the processes of ``contained`` decode images, and need no model.
"""

from typing import TYPE_CHECKING

from stoker.lazy import lazy_names

if TYPE_CHECKING:
    from stoker.predict.parity import check_parity
    from stoker.predict.predictor import Predictor
    from stoker.predict.targets import EvaluationTarget, evaluate_target

__all__ = ["EvaluationTarget", "Predictor", "check_parity", "evaluate_target"]

_HOMES = {
    "EvaluationTarget": "targets",
    "Predictor": "predictor",
    "check_parity": "parity",
    "evaluate_target": "targets",
}

__getattr__ = lazy_names(__name__, _HOMES)

"""How close a student is to the cached teacher, measured without the teacher.

`evaluate` measures everything, and `evaluate_loaded` does so for a model that is loaded already. `evaluate_model`
measures the few figures that training logs.
"""

from student.evaluation.ratios import ratio_with_error
from student.evaluation.whole import evaluate, evaluate_loaded, evaluate_model

__all__ = ["evaluate", "evaluate_loaded", "evaluate_model", "ratio_with_error"]

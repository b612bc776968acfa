"""Other harnesses: a run as a model of lmms-eval, tasks for it, predictions for VLMEvalKit.

The model itself, `dmole.harness._lmms_model`, needs lmms-eval; the rest does not.
"""

from dmole.harness.tasks import export_tasks
from dmole.harness.vlmevalkit import BenchmarkTable, write_predictions

__all__ = ["BenchmarkTable", "export_tasks", "write_predictions"]

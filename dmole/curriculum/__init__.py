"""How much each part of the model is updated while a task trains."""

"""The lesson: the model, its loss, and under each forward its gradient."""

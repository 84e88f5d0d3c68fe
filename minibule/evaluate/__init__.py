"""What a model does with prompts and records it was not trained on."""

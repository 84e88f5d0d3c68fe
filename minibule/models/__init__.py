"""Models and adapters on disk: Hugging Face, PEFT, GGUF."""

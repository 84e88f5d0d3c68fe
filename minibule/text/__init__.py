"""Messages to text to token ids."""

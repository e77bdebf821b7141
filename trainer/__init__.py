"""Fine-tunes a code model on your code and registers it: `trainer --help`."""

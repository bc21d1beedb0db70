"""What both engines stand on: a thread that owns a model, and a checkpoint's chat template and tokenizer."""

"""Error-recycling fine-tuning (SVI): a model is trained on inputs that hold its own errors."""

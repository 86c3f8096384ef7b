"""What `miga narrlv` and `miga prompts narrlv` do."""

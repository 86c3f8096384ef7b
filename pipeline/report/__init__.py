"""The page of a run: `page.py` puts it together, the other files say what stands in it."""

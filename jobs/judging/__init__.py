"""What `miga judge` does: a study is opened, served and reported."""

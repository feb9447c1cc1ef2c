"""The loop: pairs in, rows out."""

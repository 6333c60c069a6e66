"""One round on a GPU: is it right there, and how fast is it."""

"""What is computed from networks for figures, and how it is drawn."""

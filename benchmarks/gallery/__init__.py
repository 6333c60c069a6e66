"""Make the pictures and tables of docs/gallery.md."""

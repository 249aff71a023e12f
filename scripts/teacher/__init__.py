"""Make the small teacher that the demo runs on: choose its text, train it, say in its card how it was made."""
